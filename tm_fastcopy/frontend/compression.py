"""Compression: whether chunks travel packed, decided by what moves more of the image in the same time.

On a slow link packing wins; where the link is faster than the CPUs of the two machines, plain does.  Neither is known
beforehand, and both change while a transfer runs.  So chunks are sent in slices, each packed or plain; the rate of
each slice (plain bytes that the other side has acknowledged, per second) is compared, and now and then a slice tries
the other way, more seldom the longer it has been the worse.  What does not shrink is found by the codec and costs
neither.
"""

from __future__ import annotations

import time
from typing import Callable, Dict, Optional

MIB = 1024 * 1024
_SLICE = 0.3  # seconds that a slice should take: long against the acknowledgements' jitter, short against a transfer
_SMALLEST, _LARGEST = 2 * MIB, 16 * MIB
_FRESH = 0.5  # weight of the newest slice in a rate
_BETTER = 1.05  # the other way must win by this much: less is noise, and changing costs an odd slice
_FIRST_TRIAL, _RAREST_TRIAL = 2, 32  # slices between trials
_LONGEST_TRIAL = 2 * MIB
_CHANGED = 1.4  # a rate that moves by this much says that link or CPUs are not what they were


class Slice:
    """Some chunks that are sent in the same way, and how fast they arrived."""

    def __init__(self, packed: bool, planned: int) -> None:
        self.packed, self.planned = packed, planned
        self.sent = self.arrived = 0
        self.first: Optional[float] = None
        self.counted = 0

    @property
    def whole(self) -> bool:
        """Whether all of it was sent and has arrived."""
        return self.sent >= self.planned and self.arrived >= self.sent


class Compression:
    """The choice for one transfer.  *way* is "auto", "zstd" (always packed) or "none" (never)."""

    def __init__(self, way: str = "auto", clock: Callable[[], float] = time.monotonic) -> None:
        self._way, self._clock = way, clock
        self._favourite = way != "none"
        self._rates: Dict[bool, float] = {}
        self._since_trial, self._patience = 0, _FIRST_TRIAL
        self._current = Slice(self._favourite, _SMALLEST)
        self.packed = self.plain = 0
        """Bytes that were sent in slices of either kind."""

    def next(self, length: int) -> Slice:
        """The slice that a chunk of *length* bytes belongs to; it is about to be sent."""
        if self._current.sent >= self._current.planned:
            self._current = self._plan()
        self._current.sent += length
        if self._current.packed:
            self.packed += length
        else:
            self.plain += length
        return self._current

    def arrived(self, part: Slice, length: int) -> None:
        """A chunk of a slice was acknowledged."""
        now = self._clock()
        part.arrived += length
        if part.first is None:
            part.first = now  # what it took until here is the last slice's time
        else:
            part.counted += length
        if part.whole and part.counted and now > part.first:
            self._learn(part.packed, part.counted / (now - part.first))

    def _learn(self, packed: bool, rate: float) -> None:
        before = self._rates.get(packed, rate)
        self._rates[packed] = before + _FRESH * (rate - before)
        if packed == self._favourite and not 1 / _CHANGED < rate / before < _CHANGED:
            self._patience = _FIRST_TRIAL
        if len(self._rates) == 2 and self._rates[not self._favourite] > _BETTER * self._rates[self._favourite]:
            self._favourite, self._patience, self._since_trial = not self._favourite, _FIRST_TRIAL, 0

    def _plan(self) -> Slice:
        """The next slice."""
        self._since_trial += 1
        usual = min(max(self._rates.get(self._favourite, 0.0) * _SLICE, _SMALLEST), _LARGEST)
        if self._way != "auto" or self._since_trial <= self._patience or self._favourite not in self._rates:
            return Slice(self._favourite, int(usual))
        self._since_trial, self._patience = 0, min(2 * self._patience, _RAREST_TRIAL)
        return Slice(not self._favourite, _LONGEST_TRIAL)
