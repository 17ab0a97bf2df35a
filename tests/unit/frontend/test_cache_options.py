"""What the agent is told of the cache, from what an administrator wrote."""

from __future__ import annotations

from tm_fastcopy.core.messages import DEFAULT_OPTIONS, CacheOptions
from tm_fastcopy.frontend.cache_options import cache_options
from tm_fastcopy.frontend.settings import Settings


def test_without_settings_it_is_what_an_agent_assumes() -> None:
    assert cache_options(Settings.of({})) == DEFAULT_OPTIONS


def test_every_setting_gets_there() -> None:
    environ = {
        "FASTCOPY_CACHE_MAX_SIZE": "500G",
        "FASTCOPY_CACHE_RESERVE": "7%",
        "FASTCOPY_CACHE_MIN_AGE": "900",
        "FASTCOPY_CLONE": "reflink",
        "FASTCOPY_VERIFY": "always",
    }
    assert cache_options(Settings.of(environ)) == CacheOptions(True, 500 << 30, 0, 0, 7, 900, "reflink", "always")


def test_a_cache_of_no_size_is_none() -> None:
    for environ in ({"FASTCOPY_CACHE_ENABLE": "no"}, {"FASTCOPY_CACHE_MAX_SIZE": "0%"}):
        assert not cache_options(Settings.of(environ)).enable
