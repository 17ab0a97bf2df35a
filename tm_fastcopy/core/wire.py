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
from typing import Any, Dict, Iterator, Tuple, Type, TypeVar

from .buffer import Buffer
from .errors import FastcopyError, ProtocolError, of_kind
from .manifest import KIB, MAX_CHUNK

PROTOCOL_VERSION = 1

MAX_HEADER = 32 * KIB  # the longest field is a path, and PATH_MAX is 4 KiB; JSON may write a byte as six
MAX_BLOB = MAX_CHUNK + 64 * KIB  # the largest chunk; what does not shrink is sent plain, so it never grows
MAX_TEXT = 2 * KIB  # characters of an error sentence, as many as oned keeps; JSON may write one as twelve bytes

_PREFIX = struct.Struct(">II")
_HEADER = json.JSONEncoder(separators=(",", ":"))

M = TypeVar("M", bound="Message")
_MESSAGES: Dict[str, Type[Message]] = {}


@dataclass(frozen=True)
class Message:
    """Base of all messages.  Fields are int (never negative), bool or str; the field `blob` is bytes.

    A received blob may be a view of a buffer; who keeps a part of it makes `bytes` of that.
    """

    def __init_subclass__(cls) -> None:
        _MESSAGES[cls.__name__] = cls

    def __post_init__(self) -> None:
        for name, wanted in _fields(type(self)):
            value = getattr(self, name)
            if type(value) not in wanted or (isinstance(value, int) and not 0 <= value < 1 << 63):
                raise ProtocolError(f"{type(self).__name__}.{name} cannot be {value!r:.60}")


_TYPES: Dict[str, Tuple[type, ...]] = {
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "bytes": (bytes, memoryview),
}


_FIELDS: Dict[Type[Message], Tuple[Tuple[str, Tuple[type, ...]], ...]] = {}


def _fields(cls: Type[Message]) -> Tuple[Tuple[str, Tuple[type, ...]], ...]:
    """Names and types of a message's fields.  Remembered: every chunk asks."""
    if cls not in _FIELDS:
        _FIELDS[cls] = tuple((field.name, _TYPES[str(field.type)]) for field in fields(cls))
    return _FIELDS[cls]


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


# --- bytes ---------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The frame of *message*."""
    return b"".join(frame(message))


def frame(message: Message) -> Tuple[bytes, Buffer]:
    """The frame of *message* in two pieces, the second of which is its blob: it may be large, and is not copied."""
    header: Dict[str, Any] = {"m": type(message).__name__}
    blob: Buffer = b""
    for name, _ in _fields(type(message)):
        if name == "blob":
            blob = getattr(message, "blob")  # noqa: B009 (the base class has no such field)
        else:
            header[name] = getattr(message, name)
    raw = _HEADER.encode(header).encode()
    if len(raw) > MAX_HEADER or len(blob) > MAX_BLOB:
        raise ProtocolError(f"a {header['m']} of {len(raw)} + {len(blob)} bytes is too large to be sent")
    return _PREFIX.pack(len(raw), len(blob)) + raw, blob


PREFIX_SIZE = _PREFIX.size


def frame_lengths(prefix: bytes) -> Tuple[int, int]:
    """Header and blob length of the frame that begins with *prefix*; `ProtocolError` if out of bounds."""
    header, blob = _PREFIX.unpack(prefix)
    if header > MAX_HEADER or blob > MAX_BLOB:
        raise ProtocolError(f"the peer announces a frame of {header} + {blob} bytes, which is more than allowed")
    return header, blob


def parse(header: bytes, blob: Buffer) -> Message:
    """The message of a frame's two parts; `ProtocolError` for anything that is none."""
    try:
        values = json.loads(header)
        cls = _MESSAGES[values.pop("m")]
        if any(name == "blob" for name, _ in _fields(cls)):
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
