"""Hops: which hosts reach each other, as far as it was tried."""

from __future__ import annotations

import time
from typing import Callable, Dict, Optional, Tuple

_REMEMBERED = 3600.0  # seconds: an administrator who opens a way between hosts waits that long, or restarts the daemon


class Hops:
    """What came of dialling one host from another.  *clock* is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: Dict[Tuple[str, str], Tuple[float, bool]] = {}

    def known(self, source: str, target: str) -> Optional[bool]:
        """Whether *source* reaches *target*; None if that has not been tried for a while."""
        when, works = self._known.get((source, target), (0.0, None))
        return works if works is not None and self._clock() - when < _REMEMBERED else None

    def note(self, source: str, target: str, works: bool) -> None:
        """Remember what came of it."""
        self._known[source, target] = self._clock(), works
