"""qcow2: what the header of an image says, as far as it decides whether the image may be handled.

Only the header is looked at, and only of a file that oned calls qcow2; clusters, snapshots and encryption are bytes.
What matters is that a header can name other files: whoever opens the image then reads those too, with the rights of
oneadmin, so an image that names any is not carried.

Source: docs/interop/qcow2.txt of QEMU.  All numbers in the file are big endian.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import Container, Dict, Optional, Tuple

from .errors import Refused

MAGIC = b"QFI\xfb"
MAX_CLUSTER_BITS = 21  # QEMU opens no image with larger clusters
MAX_BACKING_NAME = 1023  # bytes; QEMU opens no image with a longer one
MAX_VIRTUAL = 1 << 60  # bytes; more than any file system holds, and far from where sums overflow

_FIRST = 64 * 1024  # bytes that hold the header of every image with clusters of the usual size
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_V3_LENGTH = _V2.size + _V3.size
_EXTENSION = struct.Struct(">II")
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_BACKING_FORMAT = 0xE2792ACA

_DATA_FILE = 1 << 2
# Dirty, corrupt, data file, compression type, extended L2 entries: what is known to change only how bytes are read.
_KNOWN_INCOMPATIBLE = 0b11111

_SHOWN = 200  # characters of a name from a header that a sentence repeats


@dataclass(frozen=True)
class Header:
    """What a header says: *size* is what a guest sees, in bytes; *backing* and *data_file* are names, or None.

    *encryption* is 0 (none), 1 (AES) or 2 (LUKS); *snapshots* is the number of internal ones.  *backing_format* is what
    the header says that the backing file is; *l1_at* and *l1_size* are where the L1 table lies, and its entries.
    """

    version: int
    size: int
    backing: Optional[str]
    data_file: Optional[str]
    encryption: int
    snapshots: int
    backing_format: Optional[str] = None
    l1_at: int = field(default=0, compare=False)
    l1_size: int = field(default=0, compare=False)


def read(fd: int, shown: str) -> Header:
    """The header of an open file, which errors call *shown*; `Refused` if it is not that of a qcow2 image."""
    raw = os.pread(fd, _FIRST, 0)
    cluster = 1 << min(int.from_bytes(raw[20:24], "big"), MAX_CLUSTER_BITS)
    while _FIRST <= len(raw) < cluster:
        more = os.pread(fd, cluster - len(raw), len(raw))
        if not more:
            break
        raw += more
    return parse(raw, os.fstat(fd).st_size, shown)


def parse(raw: bytes, length: int, shown: str) -> Header:
    """Read a header from the first cluster of a file of *length* bytes; `Refused` if there is none, or a bad one."""
    if len(raw) < _V2.size or raw[:4] != MAGIC:
        raise Refused(f"{shown} is no qcow2 image, though oned says so: correct the image's format, or its file")
    values = _V2.unpack_from(raw)
    _, version, backing_at, backing_length, cluster_bits, size, encryption, l1_size, l1_at, _, _, snapshots, _ = values
    if version not in (2, 3):
        raise Refused(f"{shown} is a qcow2 image of version {version}, and this driver knows versions 2 and 3")
    cluster = 1 << cluster_bits if 9 <= cluster_bits <= MAX_CLUSTER_BITS else 0
    features, end = 0, _V2.size
    if version == 3 and len(raw) >= _V3_LENGTH:
        features, _, _, _, end = _V3.unpack_from(raw, _V2.size)
    if not cluster or size > MAX_VIRTUAL or encryption > 2 or not (_V2.size if version == 2 else _V3_LENGTH) <= end:
        raise _damaged(shown)
    if features & ~_KNOWN_INCOMPATIBLE:
        raise Refused(f"{shown} uses features of qcow2 that this driver does not know, so it cannot be judged")
    if l1_size * 8 + l1_at > length:
        raise Refused(f"{shown} is shorter than its qcow2 header says, so it is damaged")
    backing = _name(raw, backing_at, backing_length, cluster, shown) if backing_at else None
    extensions = _extensions(raw, end, backing_at or cluster, shown)
    data_file = extensions.get(_EXTENSION_DATA_FILE)
    if data_file is None and features & _DATA_FILE:
        data_file = ""
    format = extensions.get(_EXTENSION_BACKING_FORMAT)
    return Header(version, size, backing, data_file, encryption, snapshots, format, l1_at, l1_size)


def holds_nothing(fd: int, header: Header) -> bool:
    """Whether no cluster was ever written into an image: what `qemu-img create` leaves, until a guest writes."""
    at, end = header.l1_at, header.l1_at + header.l1_size * 8
    while at < end:
        entries = os.pread(fd, min(_FIRST, end - at), at)
        if not entries or any(entries):
            return False
        at += len(entries)
    return header.snapshots == 0


def _name(raw: bytes, at: int, length: int, cluster: int, shown: str) -> Optional[str]:
    if length > MAX_BACKING_NAME or at + length > min(cluster, len(raw)):
        raise _damaged(shown)
    return _text(raw[at : at + length]) or None


def _extensions(raw: bytes, at: int, end: int, shown: str) -> Dict[int, str]:
    """The header's extensions, up to *end*; of each kind the last counts."""
    found: Dict[int, str] = {}
    while at + _EXTENSION.size <= min(end, len(raw)):
        kind, length = _EXTENSION.unpack_from(raw, at)
        at += _EXTENSION.size
        if kind == 0:
            break
        if length > min(end, len(raw)) - at:
            raise _damaged(shown)
        found[kind] = _text(raw[at : at + length])
        at += -(-length // 8) * 8
    return found


def _text(raw: bytes) -> str:
    """A name as QEMU reads it: up to the first zero byte."""
    return raw.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _damaged(shown: str) -> Refused:
    return Refused(f"the qcow2 header of {shown} is damaged: look at it with `qemu-img check`")


def is_outside(name: str) -> bool:
    """Whether a name in a header leads out of the directory of the image that it stands in.

    QEMU takes a colon before any slash for the end of a protocol's name (json:, nbd:, https:).
    """
    return name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]


def check_stand_alone(header: Header, shown: str) -> None:
    """Raise `Refused`, with the reason, if the image names another file."""
    for what, name in _named(header):
        _check_inside(what, name, shown)
        raise Refused(
            f"{shown} has the {what} {_printable(name)!r}: disks that consist of several files are not carried by this "
            "driver yet; make it one file with `qemu-img convert`"
        )


def check_in_tree(header: Header, names: Container[str], shown: str) -> None:
    """Raise `Refused`, with the reason, if a file of a tree names a file other than the tree's *names*."""
    for what, name in _named(header):
        _check_inside(what, name, shown)
        if name not in names or name == header.data_file:
            raise Refused(f"{shown} has the {what} {_printable(name)!r}, which is not in its own tree: it is refused")
    if header.backing is not None and header.backing_format not in (None, "qcow2"):
        raise Refused(f"{shown} says that its backing file is of another format than qcow2: it is refused")


def _check_inside(what: str, name: str, shown: str) -> None:
    if is_outside(name):
        raise Refused(
            f"{shown} names the {what} {_printable(name)!r} outside its own directory: it is refused, because it would "
            "let whoever uses it read that file"
        )


def _printable(name: str) -> str:
    return name[:_SHOWN].encode("ascii", "backslashreplace").decode()


def _named(header: Header) -> Tuple[Tuple[str, str], ...]:
    named = (("backing file", header.backing), ("external data file", header.data_file))
    return tuple((what, name) for what, name in named if name is not None)
