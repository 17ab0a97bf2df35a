"""Phases: where the time of an action goes, for its log line.

An action enters one phase after the other; what it enters again is added up.  The clock is given, so that tests (and
whoever reads the log line) know exactly what is counted: seconds between one `enter` and the next.
"""

from __future__ import annotations

import time
from typing import Callable, Dict, Optional

from .progress import Progress


class Phases:
    """The phases of one action, in the order in which they were first entered; and how far it is in its bytes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.progress = Progress(clock)
        self.named = ""
        """What has been done for good, in words, by an action that does several things so; "": nothing."""
        self._name: Optional[str] = None
        self._since = 0.0
        self._seconds: Dict[str, float] = {}

    @property
    def now(self) -> str:
        """The phase that it is in; "" before the first."""
        return self._name or ""

    def enter(self, name: str) -> None:
        """The phase before ends, and *name*, one word, begins."""
        now = self._clock()
        self._add(now)
        self._name, self._since = name, now
        self._seconds.setdefault(name, 0.0)

    def _add(self, now: float) -> None:
        if self._name is not None:
            self._seconds[self._name] += now - self._since

    @property
    def seconds(self) -> Dict[str, float]:
        """Seconds by phase, up to now."""
        now = self._clock()
        self._add(now)
        self._since = now
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}

    def __str__(self) -> str:
        """`0.512 s (oned 0.012, host 0.100, lanes 0.400)`, up to now."""
        now = self._clock()
        self._add(now)
        self._since = now
        parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in self._seconds.items())
        return f"{sum(self._seconds.values()):.3f} s ({parts})"
