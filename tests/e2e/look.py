"""Looking at files: content, allocation, shared blocks, owner, and what was left lying about."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
from pathlib import Path

from bench.images.edge import MIB, random_data
from bench.images.extents import SECTOR, data_runs
from bench.testbed.node import UID
from tests.support import qemu_img
from tm_fastcopy.core.manifest import DEFAULT_CHUNK

_FIEMAP = 0xC020660B  # linux/fiemap.h
_SYNC, _LAST, _SHARED = 1, 1, 0x2000
_ROOM = 2048  # extents asked for at once
_SLACK = MIB // 2  # what a file system allocates beyond a file's data: its own blocks, the end of the last one


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, holes read as zeros."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(MIB):
            found.update(piece)
    return found.hexdigest()


def same_content(one: Path, other: Path) -> bool:
    """Whether two files have the same size and SHA-256."""
    return one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other)


def random_qcow2(path: Path, size: int) -> None:
    """Write a qcow2 image of *size* bytes that do not compress."""
    raw = path.with_name(".raw")
    random_data(raw, size)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()


def allocated(path: Path) -> int:
    """Bytes that a file occupies."""
    return path.stat().st_blocks * SECTOR


def nonzero_bytes(path: Path, block: int = 4096) -> int:
    """Bytes in blocks that are not all zero."""
    zero, total = bytes(block), 0
    with path.open("rb") as file:
        while piece := file.read(block):
            total += 0 if piece == zero[: len(piece)] else len(piece)
    return total


def is_sparse_as(path: Path, source: Path) -> bool:
    """Whether a file has no data where its source is zero, and occupies no more than its source's data.

    Room is reserved for whole runs of the source's data, chunks that are all zero left out. To be asked before the
    file is read: ext4 takes reserved room for data while the page cache holds it.
    """
    with path.open("rb") as file:
        data = sum(length for _, length in data_runs(file.fileno(), path.stat().st_size))
    return data <= nonzero_bytes(source) and allocated(path) <= _data_of_chunks(source) + _SLACK


def _data_of_chunks(source: Path) -> int:
    """Bytes of data (as SEEK_DATA has it) in those chunks of a file that are not all zero."""
    total = 0
    with source.open("rb", buffering=0) as file:
        for start, length in data_runs(file.fileno(), source.stat().st_size):
            while length:
                piece = min(length, DEFAULT_CHUNK - start % DEFAULT_CHUNK)
                total += piece if any(os.pread(file.fileno(), piece, start)) else 0
                start, length = start + piece, length - piece
    return total


def shared_bytes(path: Path) -> int:
    """Bytes of a file that share their blocks with another file (FIEMAP with SYNC)."""
    total = start = 0
    with path.open("rb") as file:
        while True:
            question = struct.pack("=QQLLLL", start, 2**64 - 1 - start, _SYNC, 0, _ROOM, 0)
            request = bytearray(question + bytes(56 * _ROOM))
            fcntl.ioctl(file.fileno(), _FIEMAP, request, True)
            count = struct.unpack_from("=L", request, 20)[0]
            for index in range(count):
                logical, _, length, _, _, flags = struct.unpack_from("=QQQQQL", request, 32 + 56 * index)
                total += length if flags & _SHARED else 0
                start = logical + length
                if flags & _LAST:
                    return total
            if not count:
                return total


def is_disk(path: Path, mode: int) -> None:
    """Assert that a file is a regular one of oneadmin's with this mode."""
    found = path.lstat()
    assert stat.S_ISREG(found.st_mode)
    assert (found.st_uid, found.st_gid) == (UID, UID)
    assert oct(stat.S_IMODE(found.st_mode)) == oct(mode)


def leftovers(directory: Path) -> list[str]:
    """Names of staging files in a directory."""
    return [path.name for path in directory.iterdir() if path.name.endswith(".part")] if directory.exists() else []


def monitor(system: Path) -> str:
    """Content of the file that says which driver monitors a system datastore."""
    return (system / ".monitor").read_text()


def changed_chunks(old: Path, new: Path, chunk: int = DEFAULT_CHUNK) -> int:
    """Bytes of those chunks of `new` that are not zero and not at the same place in `old`."""
    total = 0
    with old.open("rb") as before, new.open("rb") as after:
        while piece := after.read(chunk):
            if piece != before.read(chunk) and any(piece):
                total += len(piece)
    return total
