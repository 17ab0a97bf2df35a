"""Manifest: the table of a file's chunks.

A file of `size` bytes is cut into aligned chunks of `chunk_size` bytes (a power of two, 64 KiB to 4 MiB; the last
may be
short).  Each has a BLAKE3 digest of 32 bytes; a chunk that is a hole or all zero has none, written as 32 zero bytes.
(No input is known whose BLAKE3 digest is zero, and finding one is as hard as breaking BLAKE3.)

Format, version 1, little endian:

    "FCMF"  u16 version  u8 log2(chunk_size)  u8 zero  u64 size   then 32 bytes a chunk   then XXH3-128 of all before

The manifest's id is the BLAKE3 digest of everything but the trailer, in hexadecimal: equal ids mean equal content.  The
trailer finds a manifest file that has rotted on disk; it is no protection against malice, and is not used as such.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Iterator

import blake3
import xxhash

from .errors import Refused

KIB = 1024
MIB = 1024 * KIB

DIGEST_SIZE = 32
ZERO_DIGEST = bytes(DIGEST_SIZE)

MIN_CHUNK = 64 * KIB  # below, the digests and acknowledgements cost more than the data
MAX_CHUNK = 4 * MIB  # above, a lane's buffers no longer fit the memory that an agent may use
DEFAULT_CHUNK = 256 * KIB

# 64 TiB: four times the largest file of ext4.  At the smallest chunk its manifest would be 32 GiB, so the number of
# chunks is bounded as well: 2**24 chunks are 4 TiB at 256 KiB and 64 TiB at 4 MiB, and their digests are 512 MiB.
MAX_SIZE = 64 * 1024 * 1024 * MIB
MAX_CHUNKS = 1 << 24

_HEADER = struct.Struct("<4sHBBQ")
_MAGIC = b"FCMF"
_VERSION = 1
_TRAILER = 16


def chunk_count(size: int, chunk_size: int) -> int:
    """How many chunks a file of *size* bytes has."""
    return -(-size // chunk_size)


def chunk_size_for(size: int) -> int:
    """The chunk size, in bytes, for a new manifest: the default, doubled until the number of chunks is in bounds."""
    chunk_size = DEFAULT_CHUNK
    while chunk_count(size, chunk_size) > MAX_CHUNKS // 16 and chunk_size < MAX_CHUNK:
        chunk_size *= 2
    return chunk_size


def check_geometry(size: int, chunk_size: int) -> None:
    """Raise `Refused` unless a file of *size* bytes in chunks of *chunk_size* is something we handle."""
    if chunk_size & (chunk_size - 1) or not MIN_CHUNK <= chunk_size <= MAX_CHUNK:
        raise Refused(f"a chunk size of {chunk_size} bytes is not a power of two from {MIN_CHUNK} to {MAX_CHUNK}")
    if not 0 <= size <= MAX_SIZE or chunk_count(size, chunk_size) > MAX_CHUNKS:
        raise Refused(f"a file of {size} bytes in chunks of {chunk_size} is larger than this driver handles")


@dataclass(frozen=True)
class Manifest:
    """The chunks of a file.  `digests` is all of them, 32 bytes each, zero for a chunk without data."""

    size: int
    chunk_size: int
    digests: bytes

    def __post_init__(self) -> None:
        check_geometry(self.size, self.chunk_size)
        if len(self.digests) != DIGEST_SIZE * self.count:
            raise Refused(f"a manifest of {self.count} chunks has {len(self.digests)} bytes of digests")

    @property
    def count(self) -> int:
        """Number of chunks."""
        return chunk_count(self.size, self.chunk_size)

    def digest(self, index: int) -> bytes:
        """The digest of chunk *index*; `ZERO_DIGEST` where it holds no data."""
        return self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    def __iter__(self) -> Iterator[bytes]:
        return (self.digest(i) for i in range(self.count))

    @cached_property
    def id(self) -> str:
        """64 hexadecimal digits that name this content."""
        hasher = blake3.blake3(self._header())
        hasher.update(self.digests)
        return hasher.hexdigest()

    def _header(self) -> bytes:
        return _HEADER.pack(_MAGIC, _VERSION, self.chunk_size.bit_length() - 1, 0, self.size)

    def encode(self) -> bytes:
        """The manifest as it is stored."""
        body = self._header() + self.digests
        return body + xxhash.xxh3_128_digest(body)

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Read a stored manifest; `Refused` if it is damaged, or of a version that this program does not know."""
        if len(raw) < _HEADER.size + _TRAILER or raw[:4] != _MAGIC:
            raise Refused("this is not a manifest")
        _, version, log2_chunk, _, size = _HEADER.unpack_from(raw)
        if version != _VERSION:
            raise Refused(f"this manifest is of version {version}, and version {_VERSION} is the newest known here")
        # A view, because a copy of five megabytes (40 GiB of image) costs more than their sum.
        view = memoryview(raw)
        if xxhash.xxh3_128_digest(view[:-_TRAILER]) != view[-_TRAILER:]:
            raise Refused("this manifest is damaged")
        return cls(size, 1 << min(log2_chunk, 62), bytes(view[_HEADER.size : -_TRAILER]))
