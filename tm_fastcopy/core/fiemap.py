"""The map of a file: which blocks of the disk it occupies, and which of them other files share.

Taken from FIEMAP with the SYNC flag (linux/fiemap.h, ioctl FS_IOC_FIEMAP), so that what is still in memory is mapped as
well.  The SHARED flag says that another file holds a block too; it does not say which, nor how many.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Iterator, NamedTuple, Optional, Tuple

FS_IOC_FIEMAP = 0xC020660B
FIEMAP_FLAG_SYNC = 1
FIEMAP_EXTENT_LAST = 0x0001
FIEMAP_EXTENT_SHARED = 0x2000

_REQUEST = struct.Struct("=QQLLLL")  # start, length, flags, mapped, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xL12x")  # logical, physical, length, flags
_AT_ONCE = 512  # extents a call: 28 KiB
_MOST = 1 << 20  # extents of one file that are looked at: a file in more pieces takes seconds to map, and to reflink

# What a file system without maps answers (tmpfs, some network file systems).
_NO_MAP = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS}


class Mapped(NamedTuple):
    """A run of a file and where it lies: offsets and length in bytes, and whether another file shares it."""

    logical: int
    physical: int
    length: int
    shared: bool


class Usage(NamedTuple):
    """What a file occupies: bytes in all, bytes that would be free without it, pieces that it lies in, and the
    (physical offset, length) of what others share.
    """

    allocated: int
    exclusive: int
    extents: int
    shared: Tuple[Tuple[int, int], ...]


def mapped_extents(fd: int) -> Iterator[Mapped]:
    """Yield the extents of *fd* in order; OSError with a number in `_NO_MAP` where the file system tells none."""
    start = 0
    for _ in range(_MOST // _AT_ONCE):
        request = bytearray(_REQUEST.pack(start, (1 << 64) - 1 - start, FIEMAP_FLAG_SYNC, 0, _AT_ONCE, 0))
        request += bytes(_EXTENT.size * _AT_ONCE)
        fcntl.ioctl(fd, FS_IOC_FIEMAP, request, True)
        count = _REQUEST.unpack_from(request)[3]
        for index in range(min(count, _AT_ONCE)):
            logical, physical, length, flags = _EXTENT.unpack_from(request, _REQUEST.size + index * _EXTENT.size)
            yield Mapped(logical, physical, length, bool(flags & FIEMAP_EXTENT_SHARED))
            start = logical + length
            if flags & FIEMAP_EXTENT_LAST:
                return
        if count == 0:
            return


def usage(fd: int) -> Usage:
    """What the open file *fd* occupies.  Where there is no map, all of it counts as exclusive, in no known pieces."""
    allocated = os.fstat(fd).st_blocks * 512
    try:
        return _summed(allocated, mapped_extents(fd))
    except OSError as error:
        if error.errno not in _NO_MAP:
            raise
        return Usage(allocated, allocated, 0, ())


def _summed(allocated: int, extents: Iterator[Mapped]) -> Usage:
    shared = []
    pieces = 0
    last: Optional[Mapped] = None
    for extent in extents:
        follows = last is not None and (
            (last.logical + last.length, last.physical + last.length) == (extent.logical, extent.physical)
        )
        pieces += 0 if follows else 1  # a piece of which a part is shared is reported in several
        if extent.shared:
            shared.append((extent.physical, extent.length))
        last = extent
    exclusive = max(0, allocated - sum(length for _, length in shared))
    return Usage(allocated, exclusive, pieces, tuple(shared))
