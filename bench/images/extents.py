"""What a file consists of: its runs of data, its holes, and what they cost on disk.

Data is what `SEEK_DATA` says it is: written zeros are data, a preallocated range that was never
written is a hole, until it is read: ext4 calls it data while the page cache holds it. The number of
*physical* extents is another thing (one run of data may lie in many places), and is what a reflink has
to copy; FIEMAP counts them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Tuple

SECTOR = 512  # the unit of st_blocks, whatever the file system's block is

_FS_IOC_FIEMAP = 0xC020660B  # linux/fiemap.h: _IOWR('f', 11, struct fiemap), 32 bytes
_FIEMAP_FLAG_SYNC = 1


def data_runs(fd: int, size: int) -> Iterator[Tuple[int, int]]:
    """The runs of data in the first `size` bytes, as (offset, length) in bytes, in order.

    A file system without `SEEK_DATA` reports one run: the whole file.
    """
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        if start >= size:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end - start


def physical_extents(fd: int) -> Optional[int]:
    """How many extents the file system's map of the file has; None where it does not tell (tmpfs)."""
    # start, length, flags, count (the answer), room for extents (none: only count them), reserved
    request = bytearray(struct.pack("=QQLLLL", 0, 2**64 - 1, _FIEMAP_FLAG_SYNC, 0, 0, 0))
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request, True)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            return None
        raise
    return int(struct.unpack("=QQLLLL", request)[3])


@dataclass(frozen=True)
class Summary:
    """A file in numbers; sizes in bytes."""

    size: int
    data: int
    allocated: int
    extents: int
    physical: Optional[int]


def summary(path: Path) -> Summary:
    """Count what `path` consists of. Reads no content. Raises OSError where it cannot be opened."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        runs = list(data_runs(file.fileno(), status.st_size))
        return Summary(
            size=status.st_size,
            data=sum(length for _, length in runs),
            allocated=status.st_blocks * SECTOR,
            extents=len(runs),
            physical=physical_extents(file.fileno()),
        )
