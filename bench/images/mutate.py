"""Second versions of an image: what an update, or a guest that ran, changes in it."""

from __future__ import annotations

import bisect
import ctypes
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Tuple

from bench.images.edge import BLOCK, MIB
from bench.images.extents import data_runs

_KEEP_SIZE = 1  # linux/falloc.h
_PUNCH_HOLE = 2
_ATTEMPTS = 1000  # tries for a free place before the image counts as too small


@dataclass(frozen=True)
class Change:
    """One changed range, in bytes. `kind`: contiguous, scattered, zeroed, punched or grown."""

    kind: str
    offset: int
    length: int


def mutate(
    path: Path,
    seed: int,
    *,
    contiguous: int = 2 * MIB,
    scattered: int = 64,
    zeroed: int = 1 * MIB,
    punched: int = 1 * MIB,
    grown: int = 0,
) -> List[Change]:
    """Change the image in place and say what was changed; no two changes overlap.

    contiguous -- bytes of new random data in one run, on a block boundary
    scattered  -- how many single 4 KiB blocks get new random data, anywhere (also in holes)
    zeroed     -- bytes of existing data overwritten with zeros: still allocated
    punched    -- bytes of existing data turned into a hole
    grown      -- bytes of random data appended

    Ranges are whole blocks, except that `grown` may be any number. Raises ValueError where the image
    is too small for what is asked, and OSError where the file system cannot punch holes.
    """
    for kind, length in (("contiguous", contiguous), ("zeroed", zeroed), ("punched", punched)):
        if length % BLOCK:
            raise ValueError(f"{kind} must be whole blocks of {BLOCK} bytes, not {length}")
    generator = random.Random(seed)
    with path.open("r+b", buffering=0) as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        places = _Places(size // BLOCK, generator)
        data = _Blocks(list(data_runs(fd, size)))
        changes = [
            *places.take("punched", punched, data.random_run),
            *places.take("zeroed", zeroed, data.random_run),
            *places.take("contiguous", contiguous, places.random_run),
        ]
        for _ in range(scattered):
            changes += places.take("scattered", BLOCK, places.random_run)
        if grown:
            changes.append(Change("grown", size, grown))
        for change in changes:
            _apply(fd, change, generator)
    return changes


def _apply(fd: int, change: Change, generator: random.Random) -> None:
    if change.kind == "punched":
        punch(fd, change.offset, change.length)
    elif change.kind == "zeroed":
        _write(fd, bytes(change.length), change.offset)
    else:
        _write(fd, generator.randbytes(change.length), change.offset)


def _write(fd: int, content: bytes, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def punch(fd: int, offset: int, length: int) -> None:
    """Turn a range of bytes into a hole. Raises OSError where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)  # Python has posix_fallocate only, which has no flags
    arguments = (ctypes.c_longlong(offset), ctypes.c_longlong(length))
    if libc.fallocate64(fd, _PUNCH_HOLE | _KEEP_SIZE, *arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"punch {length} bytes at {offset}")


class _Blocks:
    """The whole blocks that hold data, as runs of (first block, count)."""

    def __init__(self, runs: List[Tuple[int, int]]) -> None:
        firsts_and_ends = [(-(-start // BLOCK), (start + length) // BLOCK) for start, length in runs]
        self.runs = [(first, end - first) for first, end in firsts_and_ends if first < end]

    def random_run(self, count: int, generator: random.Random) -> int:
        """The first of `count` blocks that all lie in one run of data; ValueError if no run is so long."""
        fitting = [(first, length) for first, length in self.runs if length >= count]
        if not fitting:
            raise ValueError(f"no run of data is {count * BLOCK} bytes long")
        weights = [length - count + 1 for _, length in fitting]
        first, length = generator.choices(fitting, weights)[0]
        return first + generator.randrange(length - count + 1)


class _Places:
    """Which blocks of the image are taken by a change already."""

    def __init__(self, blocks: int, generator: random.Random) -> None:
        self.blocks = blocks
        self.generator = generator
        self.taken: List[Tuple[int, int]] = []  # (first, end), sorted, disjoint

    def random_run(self, count: int, generator: random.Random) -> int:
        if count > self.blocks:
            raise ValueError(f"the image has fewer than {count} blocks")
        return generator.randrange(self.blocks - count + 1)

    def take(self, kind: str, length: int, choose: Callable[[int, random.Random], int]) -> List[Change]:
        """Take a free run of `length` bytes that `choose` finds; no change for a length of 0."""
        if not length:
            return []
        count = length // BLOCK
        for _ in range(_ATTEMPTS):
            first = choose(count, self.generator)
            if self._is_free(first, first + count):
                bisect.insort(self.taken, (first, first + count))
                return [Change(kind, first * BLOCK, length)]
        raise ValueError(f"no room left in the image for {length} bytes {kind}")

    def _is_free(self, first: int, end: int) -> bool:
        index = bisect.bisect_left(self.taken, (first, first))
        before = index > 0 and self.taken[index - 1][1] > first
        after = index < len(self.taken) and self.taken[index][0] < end
        return not before and not after
