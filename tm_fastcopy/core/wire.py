"""The wire: messages to bytes and back.  No socket, no await, no file; docs/PROTOCOL.md says what is sent when.

A frame is a header and a blob:

    u32 header length   u32 blob length   header (JSON, an object)   blob (bytes)        big endian

The header's "m" names the message, the other keys are its fields.  Messages are frozen dataclasses that check
themselves when made, so that a wrong one can neither be sent nor received.  Both lengths are checked against their
bounds before anything is allocated for them.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Dict, Iterator, List, NamedTuple, Sequence, Tuple, Type, TypeVar, Union

from .errors import FastcopyError, ProtocolError, of_kind
from .manifest import DIGEST_SIZE, KIB, MAX_CHUNK

PROTOCOL_VERSION = 1

MAX_HEADER = 32 * KIB  # the longest field is a path, and PATH_MAX is 4 KiB; JSON may write a byte as six
MAX_BLOB = MAX_CHUNK + 64 * KIB  # the largest chunk; what does not shrink is sent plain, so it never grows
PAGE_CHUNKS = 1024  # chunks of one page: 32 KiB of digests, and 256 MiB of file at the default chunk size
MAX_TEXT = 2 * KIB  # characters of an error sentence, as many as oned keeps; JSON may write one as twelve bytes

_PREFIX = struct.Struct(">II")
_RUN = struct.Struct(">QQ")
_ROW = struct.Struct(">32sQQQQQQ??")
MAX_ENTRIES = 10_000  # images in one answer: 800 KiB; more than fit a host's disk
MAX_AGE = 10 * 366 * 24 * 3600  # seconds; what is longer is a mistake in the configuration

# What a page's runs may take in a blob.  A page with more islands than this is sent with its runs joined.
MAX_RUNS = (MAX_BLOB - PAGE_CHUNKS * DIGEST_SIZE) // _RUN.size

M = TypeVar("M", bound="Message")
_MESSAGES: Dict[str, Type[Message]] = {}


@dataclass(frozen=True)
class Message:
    """Base of all messages.  Fields are int (never negative), bool or str; the field `blob` is bytes."""

    _types: ClassVar[Dict[str, type]] = {"int": int, "bool": bool, "str": str, "bytes": bytes}

    def __init_subclass__(cls) -> None:
        _MESSAGES[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            value, wanted = getattr(self, field.name), self._types[str(field.type)]
            if type(value) is not wanted or (isinstance(value, int) and not 0 <= value < 1 << 63):
                raise ProtocolError(f"{type(self).__name__}.{field.name} cannot be {value!r:.60}")


# --- control: one conversation with the agent about one VM directory -----------------------------------------


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
        return self.blob[: self.count * DIGEST_SIZE]

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
class Leave(Message):
    """Give the guard back; the next question is an `Open` again.  Answer: Done, when nothing more is written."""


@dataclass(frozen=True)
class Ping(Message):
    """Sent now and then by the front-end: it is alive.  Answer: Pong, at once, whatever else is being done."""


@dataclass(frozen=True)
class Pong(Message):
    """The agent is alive, and may still be at work on what it was asked."""


@dataclass(frozen=True)
class Done(Message):
    """It is done, and there is nothing to say about it."""


@dataclass(frozen=True)
class Failure(Message):
    """What was asked for failed.  *kind* is the kind of the error, *text* its sentence."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: FastcopyError) -> Failure:
        """The message that tells the peer of *error*."""
        return cls(error.kind, str(error)[:MAX_TEXT])

    def error(self) -> FastcopyError:
        """The error that the peer met."""
        return of_kind(self.kind, self.text)


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


# --- control: one conversation about the cache of a system datastore ------------------------------------------


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


# --- bytes ---------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The frame of *message*."""
    header: Dict[str, Any] = {"m": type(message).__name__}
    blob = b""
    for field in fields(message):
        if field.name == "blob":
            blob = getattr(message, "blob")  # noqa: B009 (the base class has no such field)
        else:
            header[field.name] = getattr(message, field.name)
    raw = json.dumps(header, separators=(",", ":")).encode()
    if len(raw) > MAX_HEADER or len(blob) > MAX_BLOB:
        raise ProtocolError(f"a {header['m']} of {len(raw)} + {len(blob)} bytes is too large to be sent")
    return _PREFIX.pack(len(raw), len(blob)) + raw + blob


PREFIX_SIZE = _PREFIX.size


def frame_lengths(prefix: bytes) -> Tuple[int, int]:
    """Header and blob length of the frame that begins with *prefix*; `ProtocolError` if out of bounds."""
    header, blob = _PREFIX.unpack(prefix)
    if header > MAX_HEADER or blob > MAX_BLOB:
        raise ProtocolError(f"the peer announces a frame of {header} + {blob} bytes, which is more than allowed")
    return header, blob


def parse(header: bytes, blob: bytes) -> Message:
    """The message of a frame's two parts; `ProtocolError` for anything that is none."""
    try:
        values = json.loads(header)
        cls = _MESSAGES[values.pop("m")]
        if any(field.name == "blob" for field in fields(cls)):
            values["blob"] = blob
        elif blob:
            raise ProtocolError(f"a {cls.__name__} carries no data")
        return cls(**values)
    except ProtocolError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"the peer sent something that is no message: {error!r:.100}") from error


class Decoder:
    """Bytes in, messages out; however the bytes are cut.  Used by tests and by whoever reads what is there."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take in *data* and yield every message that is now complete."""
        self._buffer += data
        while len(self._buffer) >= PREFIX_SIZE:
            header, blob = frame_lengths(bytes(self._buffer[:PREFIX_SIZE]))
            end = PREFIX_SIZE + header + blob
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[PREFIX_SIZE:end])
            del self._buffer[:end]
            yield parse(frame[:header], frame[header:])

    @property
    def pending(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._buffer)


def expect(message: Message, *classes: Type[M]) -> Any:
    """Return *message* if it is of one of the *classes*; raise what it reports if it is a Failure."""
    if isinstance(message, classes):
        return message
    if isinstance(message, Failure):
        raise message.error()
    raise ProtocolError(f"the peer sent {type(message).__name__} where {classes[0].__name__} was expected")


Buffer = Union[bytes, bytearray, memoryview]
