"""Extents: which runs of a file hold data and which are holes.

Taken from SEEK_DATA and SEEK_HOLE (lseek(2)).  A file system that knows no holes answers with one run of data, which
is correct, only slower.
"""

from __future__ import annotations

import errno
import os
from typing import Iterator, List, NamedTuple, Tuple


class Extent(NamedTuple):
    """A run of a file: offset and length in bytes, and whether it holds data."""

    offset: int
    length: int
    data: bool

    @property
    def end(self) -> int:
        """Offset of the first byte after the run."""
        return self.offset + self.length


def data_runs(fd: int, start: int, end: int) -> Iterator[Tuple[int, int]]:
    """Yield (offset, length) of every run of data of *fd* in [start, end), in order, clipped to that window."""
    position = start
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end of the file
                return
            raise
        if data >= end:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data, hole - data
        position = hole


def extents(fd: int, size: int) -> Iterator[Extent]:
    """Yield the runs of *fd* from 0 to *size* in order, without gaps: holes are named too."""
    position = 0
    for offset, length in data_runs(fd, 0, size):
        if offset > position:
            yield Extent(position, offset - position, False)
        yield Extent(offset, length, True)
        position = offset + length
    if position < size:
        yield Extent(position, size - position, False)


def merge_runs(runs: List[Tuple[int, int]]) -> List[Tuple[int, int]]:
    """Join runs that touch; they must be in order and must not overlap."""
    merged: List[Tuple[int, int]] = []
    for offset, length in runs:
        if merged and merged[-1][0] + merged[-1][1] == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((offset, length))
    return merged
