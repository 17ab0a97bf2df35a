"""Options of a host's cache: from settings to the message that the agent is sent."""

from __future__ import annotations

from typing import Tuple

from ..core.messages import CacheOptions
from .kinds import Limit
from .settings import Settings


def cache_options(settings: Settings) -> CacheOptions:
    """The message for these settings."""
    cache = settings.cache
    limit, reserve = _bytes_or_percent(cache.max_size), _bytes_or_percent(cache.reserve)
    enable = cache.enable and any(limit)  # a limit of 0 is no cache
    return CacheOptions(enable, *limit, *reserve, cache.min_age, settings.clone, settings.verify)


def _bytes_or_percent(limit: Limit) -> Tuple[int, int]:
    return (0, limit.number) if limit.percent else (limit.number, 0)
