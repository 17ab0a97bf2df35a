"""Messages about disks that have no image: one is made on its host, one grows there.  Both follow an `Open`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List

from .errors import ProtocolError
from .wire import Message

SWAP = "swap"
MAX_SIZE = 1 << 60  # bytes; more than any file system holds
MAX_OPTIONS = 64  # words for mkfs; an administrator writes a few

_FS = re.compile(r"[a-z0-9]{0,16}")


@dataclass(frozen=True)
class MakeDisk(Message):
    """Make a disk of *size* bytes, as its guest sees it, and publish it.  Answer: Published.

    *format* is "raw" or "qcow2"; *fs* the file system that is made in it, `SWAP`, or "" for zeros only; *options* are
    words for mkfs, a line each.  *mode* are the permission bits; not *sparse* means that all of it is allocated.
    """

    size: int
    format: str
    fs: str
    options: str
    mode: int
    sparse: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.size <= MAX_SIZE or not _FS.fullmatch(self.fs) or len(self.words) > MAX_OPTIONS:
            raise ProtocolError(f"there can be no such disk: {self!r:.300}")

    @property
    def words(self) -> List[str]:
        """The options."""
        return self.options.split("\n") if self.options else []


@dataclass(frozen=True)
class GrowDisk(Message):
    """Make the disk *size* bytes large for its guest, if it is smaller.  Answer: Grown.

    *format* is as in `MakeDisk`; not *sparse* means that what is added is allocated.
    """

    size: int
    format: str
    sparse: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.size <= MAX_SIZE:
            raise ProtocolError(f"there can be no such disk: {self!r:.300}")


@dataclass(frozen=True)
class Grown(Message):
    """The disk is durable; bytes that its guest saw *before*, and sees *after*."""

    before: int
    after: int
