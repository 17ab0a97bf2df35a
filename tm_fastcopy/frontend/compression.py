"""Compression: whether chunks travel packed, decided by what moves more of the image in the same time.

On a slow link packing wins; where the link is faster than the CPUs of the two machines, plain does.  Neither is known
beforehand, and both change while a transfer runs.  So chunks are sent in slices, each packed or plain; the rate of
each slice (plain bytes that the other side has acknowledged, per second) is compared, and now and then a slice tries
the other way, more seldom the longer it has been the worse.  Both ways share the link and the CPUs, so a slice is timed
from when all before it has arrived: what is on its way when the way changes would make both look the same.  What does
not shrink is found by the codec and costs neither.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Callable, Deque, Dict, Optional, Tuple

MIB = 1024 * 1024
_SLICE = 0.3  # seconds that a slice should take: long against the acknowledgements' jitter, short against a transfer
_SMALLEST, _LARGEST = 2 * MIB, 16 * MIB
_FRESH = 0.5  # weight of the newest slice in a rate
_BETTER = 1.1  # the other way must win by this much: less is noise, and changing costs an odd slice
_FIRST_TRIAL, _RAREST_TRIAL = 2, 32  # slices between trials
_LATER_TRIAL = 4  # slices before the first, where an earlier transfer has tried
_TRIAL = 0.08  # seconds that a trial should take at the usual rate
_LONGEST_TRIAL = 8 * MIB  # as much as is on its way with two lanes: less would be timed amid the others
_CHANGED, _JUMPS = 1.4, 2  # a rate that moves by this much, so often in a row, says that link or CPUs have changed
_COLLAPSED = 3.0  # by this much, once is enough
_FEWEST = 4  # chunks in a slice, however large they are: the first only starts its clock


class _Slice:
    """Some chunks that are sent in the same way, and how fast they arrived."""

    def __init__(self, packed: bool, planned: int) -> None:
        self.packed, self.planned = packed, planned
        self.sent = self.arrived = self.chunks = 0
        self.full = False
        """Whether no more is sent with it."""
        self.first: Optional[float] = None
        self.last = 0.0
        self.counted = 0

    def add(self, length: int) -> None:
        """A chunk is sent with it."""
        self.sent += length
        self.chunks += 1
        self.full = self.sent >= self.planned and self.chunks >= _FEWEST

    def lose(self, length: int) -> None:
        """A chunk will not arrive; it is sent again with another slice."""
        self.sent -= length
        self.full = True

    @property
    def whole(self) -> bool:
        """Whether all of it was sent and has arrived."""
        return self.full and self.arrived >= self.sent

    @property
    def rate(self) -> float:
        """Bytes per second; 0 if it was not seen long enough."""
        seconds = self.last - self.first if self.first is not None else 0.0
        return self.counted / seconds if seconds > 0 else 0.0


class Compression:
    """The choice for one transfer.  *way* is "auto", "zstd" (always packed) or "none" (never); *favourite*, what has
    been better between these machines lately, if that is known.
    """

    def __init__(
        self, way: str = "auto", clock: Callable[[], float] = time.monotonic, favourite: Optional[bool] = None
    ) -> None:
        self._way, self._clock = way, clock
        self._favourite = way != "none" if way != "auto" or favourite is None else favourite
        self._rates: Dict[bool, float] = {}
        self._since_trial, self._patience = 0, _FIRST_TRIAL if favourite is None else _LATER_TRIAL
        self._jumps = 0
        self._flying: Dict[int, Tuple[_Slice, int]] = {}
        self._slices: Deque[_Slice] = deque([_Slice(self._favourite, _SMALLEST)])
        self.packed = self.plain = 0
        """Bytes that were sent in slices of either kind."""

    @property
    def learned(self) -> Optional[bool]:
        """What is better, packed (True) or plain; None if only one way was tried."""
        return self._favourite if self._way == "auto" and len(self._rates) == 2 else None

    def next(self, index: int, length: int) -> bool:
        """Chunk *index*, of *length* bytes, is about to be sent, or sent again: whether packed."""
        if index in self._flying:
            part, sent = self._flying[index]
            part.lose(sent)
        current = self._slices[-1]
        if current.full:
            current = self._plan()
            self._slices.append(current)
        current.add(length)
        self._flying[index] = current, length
        if current.packed:
            self.packed += length
        else:
            self.plain += length
        return current.packed

    def awaits(self, index: int) -> bool:
        """Whether chunk *index* is on its way."""
        return index in self._flying

    def arrived(self, index: int) -> None:
        """Chunk *index* was acknowledged."""
        if index not in self._flying:
            return  # what answers for a chunk that it was not asked for is found by who takes the answers
        part, length = self._flying.pop(index)
        part.arrived += length
        now = self._clock()
        if part is self._slices[0]:
            if part.first is None:
                part.first = now  # what it took until here is the last slice's time
            else:
                part.counted += length
            part.last = now
        while len(self._slices) > 1 and self._slices[0].whole:
            done = self._slices.popleft()
            if done.rate:
                self._learn(done.packed, done.rate)

    def _learn(self, packed: bool, rate: float) -> None:
        before = self._rates.get(packed, rate)
        self._rates[packed] = before + _FRESH * (rate - before)
        if packed == self._favourite:
            self._jumps = 0 if 1 / _CHANGED < rate / before < _CHANGED else self._jumps + 1
            if self._jumps == _JUMPS or not 1 / _COLLAPSED < rate / before < _COLLAPSED:
                self._patience = self._since_trial = _FIRST_TRIAL  # the next slice is a trial
                self._jumps = 0
        if len(self._rates) == 2 and self._rates[not self._favourite] > _BETTER * self._rates[self._favourite]:
            self._favourite, self._patience, self._since_trial = not self._favourite, _FIRST_TRIAL, 0

    def _plan(self) -> _Slice:
        """The next slice."""
        self._since_trial += 1
        rate = self._rates.get(self._favourite, 0.0)
        if self._way != "auto" or self._since_trial <= self._patience or not rate:
            return _Slice(self._favourite, int(min(max(rate * _SLICE, _SMALLEST), _LARGEST)))
        self._since_trial, self._patience = 0, min(4 * self._patience, _RAREST_TRIAL)
        return _Slice(not self._favourite, int(min(max(rate * _TRIAL, _SMALLEST), _LONGEST_TRIAL)))
