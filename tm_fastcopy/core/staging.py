"""Staging: the file that is being made, and the table of its chunks.

A staging file is held by an flock on its open file description.  Whoever was given that description (a lane's process)
holds the lock as well, so the next action can neither resume nor publish the file while an old lane might still write.

The table says for every chunk what digest it must have and how far it is.  It lies in memory that processes can share.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import List, NamedTuple, Optional

from . import codec
from .buffer import Buffer
from .errors import BadChunk, NoSpace, ProtocolError, Refused
from .extents import data_runs
from .files import Files, lock
from .hashing import digest, hash_page, nonzero_runs
from .manifest import DIGEST_SIZE, ZERO_DIGEST, check_geometry, chunk_count
from .paths import has, is_named

UNKNOWN, HERE, WANTED = 0, 1, 2
"""States of a chunk: not offered yet; in the staging file; to come over a lane."""


class ChunkTable:
    """Digest and state of every chunk of a file, in a memory file that can be handed to another process."""

    def __init__(self, fd: int, size: int, chunk_size: int) -> None:
        check_geometry(size, chunk_size)
        self.fd, self.size, self.chunk_size = fd, size, chunk_size
        self.count = chunk_count(size, chunk_size)
        self._map = mmap.mmap(fd, self._bytes(self.count))

    @classmethod
    def create(cls, size: int, chunk_size: int) -> ChunkTable:
        """A table for a file of *size* bytes in which nothing is known yet."""
        check_geometry(size, chunk_size)
        fd = os.memfd_create("fastcopy-chunks", os.MFD_CLOEXEC)
        os.ftruncate(fd, cls._bytes(chunk_count(size, chunk_size)))
        return cls(fd, size, chunk_size)

    @staticmethod
    def _bytes(count: int) -> int:
        return count * (DIGEST_SIZE + 1) + 2  # the last bytes are the flags of `note_no_room` and `give_up_tee`

    def close(self) -> None:
        """Let go of the memory; the table is of no use afterwards."""
        self._map.close()
        os.close(self.fd)

    def length(self, index: int) -> int:
        """Bytes in chunk *index*; `ProtocolError` if there is no such chunk."""
        if not 0 <= index < self.count:
            raise ProtocolError(f"there is no chunk {index} in a file of {self.count} chunks")
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def digest(self, index: int) -> bytes:
        """What chunk *index* must be."""
        return self._map[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    def offer(self, first: int, digests: bytes) -> None:
        """Note what the chunks from *first* on must be."""
        if first < 0 or first + len(digests) // DIGEST_SIZE > self.count:
            raise ProtocolError("digests were offered for chunks that the file does not have")
        self._map[first * DIGEST_SIZE : first * DIGEST_SIZE + len(digests)] = digests

    def digests(self) -> bytes:
        """All digests, in order."""
        return self._map[: self.count * DIGEST_SIZE]

    def state(self, index: int) -> int:
        """How far chunk *index* is."""
        return self._map[self.count * DIGEST_SIZE + index]

    def set_state(self, index: int, state: int) -> None:
        """Note how far chunk *index* is."""
        self._map[self.count * DIGEST_SIZE + index] = state

    def give_up_tee(self) -> None:
        """Note that the second copy, which lanes write for the cache, is not complete."""
        self._map[-1] = 1

    @property
    def tee_complete(self) -> bool:
        """Whether no lane has given the second copy up."""
        return self._map[-1] == 0

    def note_no_room(self) -> None:
        """Note that a lane could not write a chunk because the file system is full."""
        self._map[-2] = 1

    @property
    def lacks_room(self) -> bool:
        """Whether chunks are missing for which a lane has found no room."""
        return self._map[-2] != 0 and self.missing() > 0

    def missing(self) -> int:
        """How many chunks are not in the staging file."""
        return self.count - self._map[self.count * DIGEST_SIZE : self.count * (DIGEST_SIZE + 1)].count(HERE)


class Staging:
    """An open staging file of *size* bytes.  `fresh` says that it holds nothing but a hole."""

    def __init__(self, files: Files, directory: int, name: str, fd: int, size: int, fresh: bool) -> None:
        self.files, self.directory, self.name = files, directory, name
        self.fd, self.size, self.fresh = fd, size, fresh

    @classmethod
    def open(cls, files: Files, directory: int, name: str, size: int) -> Optional[Staging]:
        """Create the staging file, or take over what an earlier action left; None if another process is at it."""
        _clear_strangers(files, directory, name)
        fresh = False
        # Whoever held the lock before may have published the file between our open and our lock: then it is somebody's
        # disk, and no longer what its name says.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            try:
                fd = os.open(name, flags, dir_fd=directory)
            except PermissionError:
                if not _make_writable(files, directory, name):
                    return None
                fd = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            try:
                fd, fresh = files.create(directory, name), True
            except FileExistsError:
                return None
        try:
            if not lock(fd) or not is_named(directory, name, fd):
                os.close(fd)
                return None
            # Between our creating it and our lock another may have had it, written, and died.
            fresh = fresh and os.fstat(fd).st_size == 0
            files.truncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(files, directory, name, fd, size, fresh)

    def have(self, first: int, count: int, chunk_size: int) -> List[Optional[bytes]]:
        """What lies in the chunks from *first* on.  Read and digested now: there is no journal that could be wrong."""
        if self.fresh:
            return [ZERO_DIGEST] * count
        found = hash_page(self.fd, self.size, chunk_size, first, count).digests
        return [found[i : i + DIGEST_SIZE] for i in range(0, len(found), DIGEST_SIZE)]

    def close(self) -> None:
        """Let go of the file, and with it of the lock."""
        os.close(self.fd)


def _clear_strangers(files: Files, directory: int, name: str) -> None:
    """Remove what is no staging file of ours but has its name: written to, a hard link would be somebody's disk."""
    found = has(directory, name)
    if found is None or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()):
        return
    if stat.S_ISDIR(found.st_mode):
        raise Refused(f"there is a directory {name} where a staging file must be; remove it and repeat the action")
    files.unlink(directory, name)


def _make_writable(files: Files, directory: int, name: str) -> bool:
    """Give a staging file its owner's permissions back; False if another process is just about to publish it.

    An action that was cut off right before its rename left it with those of the final file, which may be read-only.
    """
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not lock(fd):
            return False
        if is_named(directory, name, fd):
            files.chmod(fd, 0o600)
        return True
    finally:
        os.close(fd)


def discard(files: Files, directory: int, name: str) -> bool:
    """Remove a staging file; False, with nothing touched, if somebody is still at it."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return True
    try:
        if not lock(fd):
            return False
        if is_named(directory, name, fd):  # published meanwhile, it is no staging file any more
            files.unlink(directory, name)
        return True
    finally:
        os.close(fd)


class Sink(NamedTuple):
    """Where a lane's chunks go: the table, the staging file, whether that is fresh, and the cache's copy (tee) or
    None.
    """

    files: Files
    table: ChunkTable
    fd: int
    fresh: bool
    tee: Optional[int] = None


def store_chunk(sink: Sink, index: int, length: int, encoding: int, payload: Buffer) -> None:
    """Decode, verify and write one chunk that came over a lane, and note that it is there.

    `BadChunk` if it is not what the table says; then nothing was written.
    """
    table = sink.table
    if length != table.length(index):
        raise ProtocolError(f"chunk {index} came with {length} bytes instead of {table.length(index)}")
    data = codec.decode(encoding, payload, length)
    if digest(data) != table.digest(index):
        raise BadChunk(f"chunk {index} is not what its digest says")
    if table.state(index) != WANTED:
        return  # it came twice; once is enough, and the file may be somebody's disk by now
    offset = index * table.chunk_size
    write_sparse(sink.files, sink.fd, offset, data, sink.fresh)
    if sink.tee is not None and table.tee_complete:
        try:
            write_sparse(sink.files, sink.tee, offset, data, fresh=True)
        except OSError:
            table.give_up_tee()  # the cache is optional
    table.set_state(index, HERE)


def write_sparse(files: Files, fd: int, offset: int, data: Buffer, fresh: bool) -> None:
    """Write *data* at *offset*, leaving (or making, unless the file is *fresh*) holes of its zero blocks."""
    view = memoryview(data)
    end = 0
    for start, length in nonzero_runs(data):
        if start > end and not fresh:
            files.punch(fd, offset + end, start - end)
        files.write(fd, view[start : start + length], offset + start)
        end = start + length
    if end < len(data) and not fresh:
        files.punch(fd, offset + end, len(data) - end)


def copy_sparse(
    files: Files, target: int, source: int, at: int, length: int, to: int, fresh: bool, share: bool = True
) -> None:
    """Copy a run of *source*, its holes as holes.  *share* lets the kernel share blocks where it can."""
    if os.fstat(source).st_size < at + length:
        raise OSError(errno.EIO, "the source of a copy ended early")  # what lies beyond its end is no hole
    end = at
    for start, run in data_runs(source, at, at + length):
        if start > end and not fresh:
            files.punch(target, to + end - at, start - end)
        files.copy_range(target, source, start, run, to + start - at, share)
        end = start + run
    if end < at + length and not fresh:
        files.punch(target, to + end - at, at + length - end)


def need_room(path: str, needed: int, free: int) -> None:
    """Raise `NoSpace`, with both figures, if *needed* bytes are more than *free*."""
    if needed > free:
        raise NoSpace(
            f"{path} needs {-(-needed // 2**20)} MiB and the file system has {free // 2**20} MiB free: "
            "make room there and repeat the action"
        )
