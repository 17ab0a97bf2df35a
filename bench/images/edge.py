"""Files at the edges of what a copy must handle. Each function writes the file it is given.

All of them are quick, need no root, and give the same bytes for the same arguments.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import List

BLOCK = 4096
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

ISLAND = BLOCK  # one block of data, the smallest extent there is

_PIECE = 4 * MIB  # how much is held in memory while a file is written


def empty(path: Path) -> None:
    """No bytes at all."""
    path.write_bytes(b"")


def one_byte(path: Path) -> None:
    """One byte: shorter than a block, than a chunk, than any header."""
    path.write_bytes(b"\x01")


def odd(path: Path, size: int = 5 * MIB + 12_347, seed: int = 1) -> None:
    """Random data whose size is a multiple neither of a block nor of any chunk.

    Raises ValueError for a `size` that is a multiple of a sector: a copy may get those right by luck.
    """
    if size % 512 == 0:
        raise ValueError(f"{size} bytes are whole sectors: take an odd size")
    random_data(path, size, seed)


def zeros(path: Path, size: int = 64 * MIB) -> None:
    """Zeros that are written, so allocated: data for `SEEK_DATA`, nothing for a copy that looks."""
    piece = bytes(min(_PIECE, size))
    with path.open("wb") as file:
        for offset in range(0, size, _PIECE):
            file.write(piece[: size - offset])


def hole(path: Path, size: int = 64 * MIB) -> None:
    """A size and no data: what a freshly made volatile disk is."""
    with path.open("wb") as file:
        file.truncate(size)


def random_data(path: Path, size: int = 64 * MIB, seed: int = 1) -> None:
    """Data that no compressor makes smaller: an encrypted disk."""
    generator = random.Random(seed)
    with path.open("wb") as file:
        for offset in range(0, size, _PIECE):
            file.write(generator.randbytes(min(_PIECE, size - offset)))


def symbols(path: Path, size: int = 64 * MIB, count: int = 100, seed: int = 1) -> None:
    """Bytes of *count* values in no order: a compressor saves a little of them, and works for it."""
    generator = random.Random(seed)
    table = bytes(value % count for value in range(256))
    with path.open("wb") as file:
        for offset in range(0, size, _PIECE):
            file.write(generator.randbytes(min(_PIECE, size - offset)).translate(table))


def islands(path: Path, size: int = 4 * GIB, count: int = 10_000, seed: int = 1) -> List[int]:
    """A hole of `size` bytes with `count` blocks of random data in it, no two of them touching.

    The islands are spread evenly and each is moved at random within its stretch, so that the file has
    exactly `count` extents and no period that a fixed chunk size would fit. Gives their offsets.
    Raises ValueError where `size` leaves an island no block of hole beside it.
    """
    stretch = size // count // BLOCK  # in blocks; the last of each stays a hole
    if stretch < 2:
        raise ValueError(f"{count} islands do not fit into {size} bytes with holes between them")
    generator = random.Random(seed)
    offsets = [(index * stretch + generator.randrange(stretch - 1)) * BLOCK for index in range(count)]
    with path.open("wb", buffering=0) as file:
        file.truncate(size)  # first, so that no file system preallocates behind a growing end
        for offset in offsets:
            file.seek(offset)
            file.write(generator.randbytes(ISLAND))
    return offsets
