"""Whether a disk is what it should be, and was so when its driver said that it was done.

Every byte is compared with a copy of the image that no driver can reach. And the disk must not change after the entry
point has ended: a driver that ends early and goes on in the background is found by the times of the file, even if the
disk is whole by the time that we have read it.

And it must be a VM's own: a regular file with one name, which oneadmin can read and write. Whoever follows a link to
the image sees the right bytes, too, and the first write of the guest would be the end of the image.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Optional

from bench import measure
from bench.jobs import WrongContent


@dataclass(frozen=True)
class Seen:
    """What lstat(2) said of a disk at the moment when the entry point ended; no `inode`: there was no disk."""

    inode: Optional[int]
    size: int = 0
    modified: int = 0  # ns
    changed: int = 0  # ns
    device: int = 0
    mode: int = 0
    names: int = 0
    owner: int = 0

    @classmethod
    def of(cls, disk: Path) -> Seen:
        """Look now. Takes microseconds, so that it can be done before anything else."""
        try:
            found = os.lstat(disk)
        except (FileNotFoundError, NotADirectoryError):
            return cls(None)
        return cls(
            found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_mode,
            found.st_nlink, found.st_uid,
        )  # fmt: skip


_USABLE = stat.S_IRUSR | stat.S_IWUSR


def check(what: str, disk: Path, wanted: Path, at_exit: Seen, owner: int) -> None:
    """WrongContent unless the disk is *wanted* byte for byte, and *owner*'s own, since the entry point ended."""
    if at_exit.inode is None:
        raise WrongContent(f"{what}: the entry point ended with 0 and there was no disk")
    if not stat.S_ISREG(at_exit.mode) or disk.parent.is_symlink():
        raise WrongContent(f"{what}: the disk is no regular file in a directory of its own, but a link, or worse")
    if at_exit.names != 1:
        raise WrongContent(f"{what}: the disk has {at_exit.names} names: it is another file, too")
    if at_exit.owner != owner or at_exit.mode & _USABLE != _USABLE:
        raise WrongContent(
            f"{what}: the disk is of user {at_exit.owner}, mode {stat.S_IMODE(at_exit.mode):04o}: user {owner} cannot "
            "read and write it"
        )
    now = Seen.of(disk)
    if now.inode is None:
        raise WrongContent(f"{what}: the disk is gone")
    size = wanted.stat().st_size
    if at_exit.size != size:
        raise WrongContent(f"{what}: the disk had {at_exit.size} bytes when the entry point ended, not {size}")
    if now != at_exit:
        raise WrongContent(f"{what}: the disk was still being written when the entry point had ended")
    wrong = measure.changed_blocks(wanted, disk)
    if wrong:
        raise WrongContent(f"{what}: {wrong} bytes of the disk are not what they should be")
    if Seen.of(disk) != at_exit:
        raise WrongContent(f"{what}: the disk changed while it was compared")


def check_link(what: str, disk: Path, target: str) -> None:
    """WrongContent unless the disk is a symbolic link to *target*."""
    if not disk.is_symlink() or os.readlink(disk) != target:
        raise WrongContent(f"{what}: the disk is no symbolic link to {target}")


def check_apart(what: str, seen: Iterable[Seen]) -> None:
    """WrongContent if two disks are the same file."""
    files = [(one.device, one.inode) for one in seen]
    if len(set(files)) < len(files):
        raise WrongContent(f"{what}: two of {len(files)} disks are the same file")
