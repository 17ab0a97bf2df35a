"""What tests are written with: contents made of letters, files made of contents, and Files that take notes.

A letter is a chunk: "A" always has the same bytes, "-" is a hole.  So `content("AB-A")` is a file of four chunks.
"Q" begins with the header of a qcow2 image that stands alone: all that is ever looked at in one.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import struct
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Tuple

from tm_fastcopy.core.extents import data_runs
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.hashing import digest
from tm_fastcopy.core.manifest import Manifest

CHUNK = 64 * 1024

_CHANGES = {name for name in vars(Files) if not name.startswith("_")}


_kept: List[int] = []


def keep(fd: int) -> int:
    """*fd*, which is closed when the test is over."""
    _kept.append(fd)
    return fd


def close_kept() -> None:
    """What tests/unit/core/conftest.py does after each test."""
    while _kept:
        os.close(_kept.pop())


@functools.lru_cache(maxsize=64)
def piece(letter: str, size: int = CHUNK) -> bytes:
    """The bytes of one chunk: nothing that compresses, the same on every run."""
    data = bytes(size) if letter == "-" else hashlib.shake_128(letter.encode()).digest(size)
    return qcow2_header() + data[HEADER_SIZE:] if letter == "Q" else data


HEADER_SIZE = 512


def qcow2_header(
    version: int = 3,
    size: int = 1024 * 1024,
    backing: bytes = b"",
    data_file: bytes | None = None,
    features: int = 0,
    encryption: int = 0,
    snapshots: int = 0,
    cluster_bits: int = 16,
    l1: Tuple[int, int] = (0, 0),
) -> bytes:
    """The first `HEADER_SIZE` bytes of a qcow2 image (longer names: more), after docs/interop/qcow2.txt of QEMU.

    *data_file* is the name in the extension for external data files, *l1* number of entries and offset of the L1 table.
    """
    length = 72 if version == 2 else 104
    extensions = b""
    if data_file is not None:
        extensions += struct.pack(">II", 0x44415441, len(data_file)) + data_file + bytes(-len(data_file) % 8)
    extensions += bytes(8)
    at = length + len(extensions) if backing else 0
    first = (b"QFI\xfb", version, at, len(backing), cluster_bits, size, encryption)
    raw = struct.pack(">4sIQIIQIIQQIIQ", *first, *l1, 0, 0, snapshots, 0)
    if version == 3:
        raw += struct.pack(">QQQII", features, 0, 0, 4, 104)
    return (raw + extensions + backing).ljust(HEADER_SIZE, b"\0")


def content(letters: str, size: int = -1) -> bytes:
    """The bytes of a file, cut to *size* if that is given."""
    whole = b"".join(map(piece, letters))
    return whole if size < 0 else whole[:size]


def manifest_of(letters: str, size: int = -1) -> Manifest:
    """The manifest of `content(letters, size)`, by the simplest way there is."""
    raw = content(letters, size)
    pieces = [raw[i : i + CHUNK] for i in range(0, len(raw), CHUNK)]
    return Manifest(len(raw), CHUNK, b"".join(map(digest, pieces)))


def make_file(path: Path, letters: str, size: int = -1) -> Path:
    """Write `content(letters, size)` with its holes as holes."""
    raw = content(letters, size)
    with open(path, "wb") as file:
        file.truncate(len(raw))
        for index, letter in enumerate(letters):
            if letter != "-":
                os.pwrite(file.fileno(), raw[index * CHUNK : (index + 1) * CHUNK], index * CHUNK)
    return path


def shape(path: Path) -> str:
    """Which chunks of a file hold data ("#") and which are holes ("-")."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        places = range(0, size, CHUNK)
        return "".join("#" if any(data_runs(fd, at, min(at + CHUNK, size))) else "-" for at in places)
    finally:
        os.close(fd)


class RecordingFiles(Files):
    """The real file system; every change is noted in *calls*, with its arguments in *details*.

    *failing* maps the name of an operation to the error number that it fails with; *lacking* are operations that this
    file system says it does not have.
    """

    def __init__(self, failing: Dict[str, int] | None = None, lacking: Tuple[str, ...] = ()) -> None:
        self.calls: List[str] = []
        self.details: List[Tuple[Any, ...]] = []
        self.failing = failing or {}
        self.lacking = lacking

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in _CHANGES:
            return found

        def noted(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            self.details.append((name, *arguments))
            if name in self.failing:
                raise OSError(self.failing[name], os.strerror(self.failing[name]))
            return False if name in self.lacking else found(*arguments, **named)

        return noted


NO_SHARING = ("clone", "clone_range")
FULL = errno.ENOSPC


def qemu_img(*arguments: object) -> str:
    """Run qemu-img; return what it prints."""
    argv = ["qemu-img", *map(str, arguments)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=60, text=True).stdout


def make_encrypted(path: Path, size: str) -> None:
    """Make an empty qcow2 image that is encrypted with LUKS.

    qemu-img measures how fast this CPU is and gives up when another process is in its way: then it is asked again.
    """
    secret = ["--object", "secret,id=s,data=geheim", "-f", "qcow2"]
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    for _ in range(20):
        try:
            qemu_img("create", "-q", *secret, "-o", options, path, size)
            return
        except subprocess.CalledProcessError:
            continue
    raise AssertionError("qemu-img does not make an encrypted image here")
