"""Digests of chunks, and finding those that hold nothing.

BLAKE3 is a chunk's identity, across images and tenants.  Holes are not read at all.
"""

from __future__ import annotations

import os
from typing import Iterable, List, NamedTuple, Tuple

import blake3

from .buffer import Buffer
from .errors import SourceChanged
from .extents import data_runs
from .manifest import MAX_CHUNK, ZERO_DIGEST

BLOCK = 4096
_ZEROS = bytes(MAX_CHUNK)
_ZERO_BLOCK = bytes(BLOCK)


def digest(data: Buffer) -> bytes:
    """The BLAKE3 digest of a chunk's content; `ZERO_DIGEST` if it is all zero."""
    if is_zero(data):
        return ZERO_DIGEST
    return blake3.blake3(data).digest()


def is_zero(data: Buffer) -> bool:
    """Whether *data* (at most `MAX_CHUNK` bytes) is all zero."""
    return not data or (data[0] == 0 and data == _ZEROS[: len(data)])


def nonzero_runs(data: Buffer) -> List[Tuple[int, int]]:
    """(offset, length) of the runs of 4 KiB blocks that are not all zero.  The last block may be short."""
    runs: List[Tuple[int, int]] = []
    start = -1
    for offset in range(0, len(data), BLOCK):
        # The first byte decides for most blocks, without a copy of them.
        if data[offset] == 0 and data[offset : offset + BLOCK] == _ZERO_BLOCK[: len(data) - offset]:
            if start >= 0:
                runs.append((start, offset - start))
                start = -1
        elif start < 0:
            start = offset
    if start >= 0:
        runs.append((start, len(data) - start))
    return runs


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Read *length* bytes at *offset*; `SourceChanged` if the file ends before."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    whole = bytearray(length)
    read_into(fd, offset, memoryview(whole))
    return bytes(whole)


def read_into(fd: int, offset: int, view: memoryview) -> memoryview:
    """As `read_exactly`, into memory that is there already; returns it."""
    filled = 0
    while filled < len(view):
        count = os.preadv(fd, [view[filled:]], offset + filled)
        if not count:
            raise SourceChanged(f"the file became shorter than {offset + len(view)} bytes while it was read")
        filled += count
    return view


class Page(NamedTuple):
    """Consecutive chunks of a file: index of the first, their digests, and the runs of data that they hold."""

    first: int
    digests: bytes
    runs: List[Tuple[int, int]]


def hash_page(fd: int, size: int, chunk_size: int, first: int, count: int) -> Page:
    """Digest *count* chunks from chunk *first* on.  Blocking; both hashing and reading release the GIL."""
    start = first * chunk_size
    end = min(size, (first + count) * chunk_size)
    runs = list(data_runs(fd, start, end))
    digests = bytearray(-(-(end - start) // chunk_size) * len(ZERO_DIGEST))
    room = memoryview(bytearray(chunk_size))  # one for all chunks: new memory costs more than reading into it
    for index in _touched(runs, chunk_size):
        offset = index * chunk_size
        data = read_into(fd, offset, room[: min(chunk_size, size - offset)])
        at = (index - first) * len(ZERO_DIGEST)
        digests[at : at + len(ZERO_DIGEST)] = digest(data)
    return Page(first, bytes(digests), runs)


def _touched(runs: Iterable[Tuple[int, int]], chunk_size: int) -> Iterable[int]:
    """Indices of the chunks that the runs lie in, each once, in order."""
    following = 0
    for offset, length in runs:
        for index in range(max(following, offset // chunk_size), (offset + length - 1) // chunk_size + 1):
            yield index
            following = index + 1
