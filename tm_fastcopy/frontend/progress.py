"""Progress: how far an action is, for `fastcopy status`, and as a few lines of the VM's log.

An action says how many bytes its disk or image has, and which of them are in their place: those that need not travel
at once, the others as they arrive.  Rates are of the last seconds, so that they say what the link does now.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import Callable, Deque, NamedTuple, Optional, Tuple

WINDOW = 8.0  # seconds that a rate is taken over
_GRAIN = 0.25  # seconds between two samples that are kept: 32 of them
FIRST_LINE = 10.0  # seconds until an action says in the log how far it is; most have ended by then


class Snapshot(NamedTuple):
    """How far it is: bytes in their place, of how many (0: not known yet), and bytes a second of late."""

    done: int
    total: int
    rate: float

    @property
    def left(self) -> Optional[float]:
        """Seconds until the end at this rate; None if nobody can say."""
        return (self.total - self.done) / self.rate if self.total and self.rate >= 1 else None

    @property
    def percent(self) -> Optional[int]:
        """Percent of the bytes; None if it is not known of how many."""
        return self.done * 100 // self.total if self.total else None


class Progress:
    """The bytes of one action.  The clock is given, so that tests know what a rate is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done = self._total = 0
        self._samples: Deque[Tuple[float, int]] = collections.deque([(clock(), 0)])
        self._travelled = 0

    def expect(self, total: int) -> None:
        """A transfer of *total* bytes begins, perhaps anew: a connection that broke is dialled again."""
        self._done, self._total, self._travelled = 0, total, 0
        self._samples.clear()
        self._samples.append((self._clock(), 0))

    def found(self, count: int) -> None:
        """Bytes that need not travel are in their place."""
        self._done += count

    def moved(self, count: int) -> None:
        """Bytes have arrived."""
        self._done += count
        self._travelled += count
        now = self._clock()
        if now - self._samples[-1][0] >= _GRAIN:
            self._samples.append((now, self._travelled))
            while len(self._samples) > 2 and now - self._samples[1][0] > WINDOW:
                self._samples.popleft()

    def snapshot(self) -> Snapshot:
        """As of now.  More bytes than expected are all of them: chunks are counted whole, and data is estimated."""
        since, before = next(
            (sample for sample in self._samples if self._clock() - sample[0] <= WINDOW), self._samples[-1]
        )
        seconds = max(self._clock() - since, _GRAIN)
        return Snapshot(max(0, min(self._done, self._total)), self._total, (self._travelled - before) / seconds)


def line(phase: str, seconds: float, seen: Snapshot) -> str:
    """What the log says of an action that has run for so long."""
    text = f"after {duration(seconds)}: {phase}"
    if seen.percent is None:
        return text
    text += f", {seen.percent} % of {size(seen.total)}, {size(int(seen.rate))}/s"
    return text if seen.left is None else f"{text}, {duration(seen.left)} left"


async def narrate(tell: Callable[[float], None]) -> None:
    """Call *tell* with the seconds that have passed, until cancelled: after 10 s, 20 s, 40 s and so on.

    One_tm hands the lines over when the action has ended, all at once: a line every ten seconds would be many, and the
    last ones all that anybody reads.
    """
    began, pause = time.monotonic(), FIRST_LINE
    while True:
        await asyncio.sleep(pause)
        passed = time.monotonic() - began
        tell(passed)
        pause = passed


def size(count: int) -> str:
    """Bytes as people read them: `812 B`, `1.2 GiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.1f} {units[0]}" if value < 100 and units[0] != "B" else f"{value:.0f} {units[0]}"


def duration(seconds: float) -> str:
    """Seconds as people read them: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
