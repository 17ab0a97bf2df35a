"""Messages of a conversation about the cache of a system datastore.  core/wire.py carries them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import List, NamedTuple, Sequence

from .errors import ProtocolError
from .wire import Message

MAX_ENTRIES = 10_000  # images in one answer: 800 KiB; more than fit a host's disk

_ROW = struct.Struct(">32sQQQQQQ??")


@dataclass(frozen=True)
class OpenCache(Message):
    """Open the cache that serves the system datastore *base*.  Answer: CacheOpened."""

    base: str


@dataclass(frozen=True)
class CacheOpened(Message):
    """Where the cache is, whether its files can be cloned, and the bytes that its file system has and has free."""

    path: str
    reflink: bool
    total: int
    free: int


@dataclass(frozen=True)
class ListEntries(Message):
    """Answer: Entries."""


class EntryRow(NamedTuple):
    """An image in the cache: sizes in bytes, times in seconds since the epoch (0: never).

    *exclusive* is what no other file shares, *extents* in how many pieces it lies (0: not known); *bad* says that it is
    quarantined and counts for nothing any more.
    """

    manifest: str
    size: int
    allocated: int
    exclusive: int
    extents: int
    used: int
    scrubbed: int
    pinned: bool
    bad: bool


@dataclass(frozen=True)
class Entries(Message):
    """The images of the cache, the one that was used last first; at most `MAX_ENTRIES`."""

    count: int
    blob: bytes

    @classmethod
    def make(cls, rows: Sequence[EntryRow]) -> Entries:
        """Pack rows; those beyond the bound are left out."""
        rows = rows[:MAX_ENTRIES]
        return cls(len(rows), b"".join(_ROW.pack(bytes.fromhex(row.manifest), *row[1:]) for row in rows))

    @property
    def rows(self) -> List[EntryRow]:
        """The images."""
        return [EntryRow(row[0].hex(), *row[1:]) for row in _ROW.iter_unpack(self.blob)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count > MAX_ENTRIES or len(self.blob) != self.count * _ROW.size:
            raise ProtocolError("a list of images has the wrong length")


@dataclass(frozen=True)
class Pin(Message):
    """Keep image *manifest* from being removed (or, *pinned* false, no longer).  Answer: Done."""

    manifest: str
    pinned: bool


@dataclass(frozen=True)
class Evict(Message):
    """Remove image *manifest*, unless it is pinned.  Answer: Done."""

    manifest: str


@dataclass(frozen=True)
class Scrub(Message):
    """Read on in image *manifest* ("": in all, where the last scrub stopped), *rate* bytes a second (0: as fast as it
    goes), for some seconds.  Answer: Scrubbed; to be asked again until it is finished.
    """

    manifest: str
    rate: int


@dataclass(frozen=True)
class Scrubbed(Message):
    """*read* bytes were read since the last answer and *damaged* images were found; *manifest* is the one that was read
    last.  *finished*: the image, or every image, has been read to its end.
    """

    manifest: str
    read: int
    damaged: int
    finished: bool
