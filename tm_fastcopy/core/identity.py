"""Identity of a file's content as far as the file system tells: it changes whenever the file is written.

(device, inode, size, mtime, ctime), the times in nanoseconds.  Kernels before 6.13 take both times from a clock that
ticks every few milliseconds, so two writes within one tick leave no trace: an identity may be remembered for later
only if both times were at least two seconds old, by the file system's own clock, when reading began.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import blake3

from .files import Files

SETTLED_NS = 2_000_000_000
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Identity(NamedTuple):
    """What tells two states of a file apart."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity of the file that *status* describes."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def settled(self, now_ns: int) -> bool:
        """Whether the file was left alone long enough, at the time *now_ns*, for the identity to be remembered."""
        return max(self.mtime_ns, self.ctime_ns) + SETTLED_NS <= now_ns

    def key(self, machine: str) -> str:
        """32 hexadecimal digits that name this state of this file on the machine *machine*."""
        return blake3.blake3(repr((machine, *self)).encode()).hexdigest(length=16)


def backdate(files: Files, fd: int) -> int:
    """Give a file that only we have written a time of modification that no write to come can give it; return it, in
    nanoseconds: as long as the file has it, nobody has written to it since.

    It lies two seconds before the file's last change, by the file system's own clock, so from here on a write shows
    in the file's identity at once, also within one tick: that identity may be remembered without a rest.
    """
    seconds = (os.fstat(fd).st_ctime_ns - SETTLED_NS) // 1_000_000_000
    files.set_mtime(fd, seconds)
    return seconds * 1_000_000_000


def boot_id() -> str:
    """What tells this machine, since it was started, from every other; "" where the kernel does not say."""
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, ValueError):
        return ""
