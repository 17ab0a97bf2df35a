"""Messages of a conversation about a VM's directory, and of the lanes that belong to it.  core/wire.py carries them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import List, Tuple

from .errors import ProtocolError
from .manifest import DIGEST_SIZE
from .wire import MAX_BLOB, Message

PAGE_CHUNKS = 1024  # chunks of one page: 32 KiB of digests, and 256 MiB of file at the default chunk size
MAX_AGE = 10 * 366 * 24 * 3600  # seconds; what is longer is a mistake in the configuration

_RUN = struct.Struct(">QQ")

# What a page's runs may take in a blob.  A page with more islands than this is sent with its runs joined.
MAX_RUNS = (MAX_BLOB - PAGE_CHUNKS * DIGEST_SIZE) // _RUN.size


@dataclass(frozen=True)
class Open(Message):
    """Take the guard of VM directory *vm* below the system datastore *base* for the disk (or file) *name*.

    (*seq*, *action*) is the fence: the VM's history sequence and a number that grows with every action.  *create* makes
    the directory and `.monitor`, which names *driver*.
    """

    base: str
    vm: int
    name: str
    seq: int
    action: int
    create: bool
    driver: str


@dataclass(frozen=True)
class Opened(Message):
    """The guard is held.  Lanes present *token* to the socket; *reflink* says what the file system can; *boot* is the
    kernel's boot id, by which a front-end knows its own machine.
    """

    reflink: bool
    socket: str
    token: str
    boot: str


@dataclass(frozen=True)
class CloneEntry(Message):
    """Make the disk from cache entry *manifest*, *size* bytes in the end, and publish it.  Answer: Published or
    Missing.

    *format* is "raw" or "qcow2", as oned says; *virtual* is how many bytes the guest of a qcow2 disk must see, 0 for
    as many as its image has.
    """

    manifest: str
    size: int
    mode: int
    sparse: bool
    format: str
    virtual: int


@dataclass(frozen=True)
class Missing(Message):
    """What was asked for is not here."""


@dataclass(frozen=True)
class Begin(Message):
    """Stage a file of *size* bytes, which will be published with *final* bytes.

    *key* names the source as it is now, so that two transfers of it find each other ("" if it cannot be named).
    *data* is how many bytes of it are not holes.  *format* and *virtual* are as in CloneEntry.  Answer: Begun.
    """

    key: str
    size: int
    data: int
    chunk: int
    final: int
    mode: int
    sparse: bool
    format: str
    virtual: int


@dataclass(frozen=True)
class Begun(Message):
    """*state*: "lead" (go on), "wait" (somebody else fetches it: ask again), "ready" (entry *manifest* is in the
    cache).
    """

    state: str
    manifest: str


@dataclass(frozen=True)
class Offer(Message):
    """*count* digests from chunk *first* on, then the runs of data there.  Answer: Wants."""

    first: int
    count: int
    blob: bytes

    @classmethod
    def make(cls, first: int, digests: bytes, runs: List[Tuple[int, int]]) -> Offer:
        """Pack a page; runs beyond the bound are joined, which only costs sparseness."""
        if len(runs) > MAX_RUNS:
            runs = [(runs[0][0], runs[-1][0] + runs[-1][1] - runs[0][0])]
        return cls(first, len(digests) // DIGEST_SIZE, digests + b"".join(_RUN.pack(*run) for run in runs))

    @property
    def digests(self) -> bytes:
        """The digests, 32 bytes each."""
        return bytes(self.blob[: self.count * DIGEST_SIZE])

    @property
    def runs(self) -> List[Tuple[int, int]]:
        """(offset, length) in bytes of each run of data."""
        return [(offset, length) for offset, length in _RUN.iter_unpack(self.blob[self.count * DIGEST_SIZE :])]

    def __post_init__(self) -> None:
        super().__post_init__()
        extra = len(self.blob) - self.count * DIGEST_SIZE
        if self.count > PAGE_CHUNKS or extra < 0 or extra % _RUN.size:
            raise ProtocolError("a page of digests has the wrong length")


@dataclass(frozen=True)
class Wants(Message):
    """One byte for each chunk that was offered: 1 if it must come over a lane, 0 if not."""

    blob: bytes


@dataclass(frozen=True)
class Commit(Message):
    """All chunks are there: check that, make it durable, publish it.  *manifest* is the id of what was offered."""

    manifest: str


@dataclass(frozen=True)
class Published(Message):
    """The disk has its final name.  *receipt* is a receipt as JSON; *how* says where it came from."""

    receipt: str
    how: str


@dataclass(frozen=True)
class OpenSource(Message):
    """Open the disk of this conversation for reading, as one of this *format*.  Answer: Source."""

    format: str


@dataclass(frozen=True)
class Source(Message):
    """What the disk is: its size in bytes, how many of them are not holes, and its permission bits."""

    size: int
    data: int
    mode: int


@dataclass(frozen=True)
class Scan(Message):
    """Digest *count* chunks of *chunk* bytes from *first* on.  Answer: Offer."""

    first: int
    count: int
    chunk: int


@dataclass(frozen=True)
class CloseSource(Message):
    """Say whether the disk is still what it was when it was opened.  Answer: Done or Failure."""


@dataclass(frozen=True)
class Remove(Message):
    """Remove the disk *name* of VM *vm* ("" is its whole directory), under the guard, with a fence as in `Open`.

    It is a conversation of its own: no `Open` comes before it.  Answer: Done, also if there is nothing.
    """

    base: str
    vm: int
    name: str
    seq: int
    action: int


@dataclass(frozen=True)
class Discard(Message):
    """Remove what actions that were ended have staged for the disk *name* of VM *vm*, under the guard and with the
    fence of the action; for "", what a move has staged of the whole directory.  What has its name stays.

    *key*, unless "", names an image as in `Begin`, of which what is staged in the cache is removed as well.  A
    conversation of its own, as `Remove`.  Answer: Done; or Missing, if somebody is still at that image.
    """

    base: str
    vm: int
    name: str
    seq: int
    action: int
    key: str


@dataclass(frozen=True)
class Leave(Message):
    """Give the guard back; the next question is an `Open` again.  Answer: Done, when nothing more is written.

    To a lane: let go of the files; a `Join` may follow.
    """


@dataclass(frozen=True)
class CacheOptions(Message):
    """How this conversation may use the host's cache; without it, as `DEFAULT_OPTIONS` say.  Answer: Done.

    The cache may grow to *limit* bytes and to *limit_percent* of its file system (0: not limited so), and leaves
    *reserve* bytes and *reserve_percent* of it free.  What was used within *min_age* seconds is not removed for that.
    *clone* is how disks are made: "auto", "reflink" (or not at all) or "copy" (that shares no block); *verify* is what
    an image of the cache must have behind it before it is reflinked: "scrubbed" (the scrub) or "always" (a look now).
    """

    enable: bool
    limit: int
    limit_percent: int
    reserve: int
    reserve_percent: int
    min_age: int
    clone: str
    verify: str

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = self.limit_percent <= 100 and self.reserve_percent <= 100 and self.min_age <= MAX_AGE
        if not fine or self.clone not in ("auto", "reflink", "copy") or self.verify not in ("scrubbed", "always"):
            raise ProtocolError(f"these options of the cache cannot be: {self!r:.300}")


DEFAULT_OPTIONS = CacheOptions(True, 0, 80, 0, 5, 0, "auto", "scrubbed")


@dataclass(frozen=True)
class CloneLocal(Message):
    """Make the disk from the image itself, which is the file *rest* below the datastore *base* on this same machine.

    *boot* is the machine's boot id; *device* to *ctime_ns* are the identity of the file that the front-end has open;
    *manifest* is its manifest's id, or "".  The others are as in `CloneEntry`.  Answer: Published; or Missing, if this
    is another machine, the path leads to another file, or the file lies elsewhere than the disk.
    """

    boot: str
    base: str
    rest: str
    device: int
    inode: int
    length: int
    mtime_ns: int
    ctime_ns: int
    manifest: str
    size: int
    mode: int
    sparse: bool
    format: str
    virtual: int


# --- bulk: one lane ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Join(Message):
    """First message of a lane: what `Opened` said.  Answer: Done."""

    socket: str
    token: str


@dataclass(frozen=True)
class Put(Message):
    """Chunk *index*, *length* bytes when decoded.  Answer: Stored, or Failure."""

    index: int
    length: int
    codec: int
    blob: bytes


@dataclass(frozen=True)
class Stored(Message):
    """Chunk *index* was verified and written."""

    index: int


@dataclass(frozen=True)
class Get(Message):
    """Send *length* bytes at *index* x *chunk* of the source, *packed* if they shrink.  Answer: Put."""

    index: int
    chunk: int
    length: int
    packed: bool
