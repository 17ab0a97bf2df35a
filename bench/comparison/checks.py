"""Whether a disk is what it should be, and was so when its driver said that it was done.

Every byte is compared with a copy of the image that no driver can reach. And the disk must not change after the entry
point has ended: a driver that ends early and goes on in the background is found by the times of the file, even if the
disk is whole by the time that we have read it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from bench import measure
from bench.jobs import WrongContent


@dataclass(frozen=True)
class Seen:
    """What stat(2) said of a disk at the moment when the entry point ended; no `inode`: there was no disk."""

    inode: Optional[int]
    size: int = 0
    modified: int = 0  # ns
    changed: int = 0  # ns

    @classmethod
    def of(cls, disk: Path) -> Seen:
        """Look now. Takes microseconds, so that it can be done before anything else."""
        try:
            found = os.stat(disk)
        except FileNotFoundError:
            return cls(None)
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def check(what: str, disk: Path, wanted: Path, at_exit: Seen) -> None:
    """WrongContent unless the disk is *wanted* byte for byte, and has been so since the entry point ended."""
    if at_exit.inode is None:
        raise WrongContent(f"{what}: the entry point ended with 0 and there was no disk")
    if not disk.is_file():
        raise WrongContent(f"{what}: the disk is gone")
    now = Seen.of(disk)
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
