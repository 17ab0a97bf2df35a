"""The manifest: geometry, identity, and what is not taken for one."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tests.support import CHUNK, manifest_of
from tm_fastcopy.core.errors import Refused
from tm_fastcopy.core.manifest import (
    DEFAULT_CHUNK,
    KIB,
    MAX_CHUNK,
    MAX_CHUNKS,
    MAX_SIZE,
    MIB,
    MIN_CHUNK,
    ZERO_DIGEST,
    Manifest,
    check_geometry,
    chunk_count,
    chunk_size_for,
)


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (1, 1), (CHUNK - 1, 1), (CHUNK, 1), (CHUNK + 1, 2), (10 * CHUNK, 10)]
)
def test_the_last_chunk_may_be_short(size: int, count: int) -> None:
    assert chunk_count(size, CHUNK) == count
    assert Manifest(size, CHUNK, ZERO_DIGEST * count).count == count


@pytest.mark.parametrize("chunk", [0, -1, 1, MIN_CHUNK // 2, MIN_CHUNK + 1, 3 * MIN_CHUNK, MAX_CHUNK * 2])
def test_chunk_sizes_that_are_refused(chunk: int) -> None:
    with pytest.raises(Refused, match="power of two"):
        check_geometry(1, chunk)


@pytest.mark.parametrize(("size", "chunk"), [(-1, CHUNK), (MAX_SIZE + 1, MAX_CHUNK), (MAX_CHUNKS * CHUNK + 1, CHUNK)])
def test_files_that_are_too_large(size: int, chunk: int) -> None:
    with pytest.raises(Refused, match="larger than"):
        check_geometry(size, chunk)


@pytest.mark.parametrize(("size", "chunk"), [(0, MIN_CHUNK), (MAX_SIZE, MAX_CHUNK), (MAX_CHUNKS * CHUNK, CHUNK)])
def test_the_bounds_are_allowed(size: int, chunk: int) -> None:
    check_geometry(size, chunk)


@given(st.integers(0, MAX_SIZE))
def test_every_size_has_a_chunk_size(size: int) -> None:
    check_geometry(size, chunk_size_for(size))


def test_chunks_grow_only_with_very_large_files() -> None:
    assert chunk_size_for(0) == chunk_size_for(100 << 30) == DEFAULT_CHUNK == 256 * KIB
    assert chunk_size_for(1 << 40) == MIB
    assert chunk_size_for(MAX_SIZE) == MAX_CHUNK


def test_digests_must_be_as_many_as_chunks() -> None:
    with pytest.raises(Refused, match="3 chunks has 64 bytes"):
        Manifest(3 * CHUNK, CHUNK, bytes(64))


def test_chunks_have_their_digests() -> None:
    manifest = manifest_of("AB-A")
    assert list(manifest) == [manifest.digest(i) for i in range(4)]
    assert manifest.digest(0) == manifest.digest(3) != manifest.digest(1)
    assert manifest.digest(2) == ZERO_DIGEST


def test_equal_content_has_an_equal_id() -> None:
    assert manifest_of("AB-").id == manifest_of("AB-").id
    assert len(manifest_of("AB-").id) == 64


def test_whatever_differs_makes_another_id() -> None:
    digests = manifest_of("AB").digests
    several = [
        Manifest(2 * CHUNK, CHUNK, digests),
        Manifest(2 * CHUNK - 1, CHUNK, digests),
        Manifest(4 * CHUNK, 2 * CHUNK, digests),
        Manifest(2 * CHUNK, CHUNK, digests[32:] + digests[:32]),
        Manifest(2 * CHUNK, CHUNK, digests[:32] + ZERO_DIGEST),
    ]
    assert len({manifest.id for manifest in several}) == len(several)


@pytest.mark.parametrize("letters", ["", "-", "A", "AB-A", "----"])
def test_it_is_stored_and_read(letters: str) -> None:
    manifest = manifest_of(letters)
    assert Manifest.decode(manifest.encode()) == manifest


def test_every_damaged_byte_is_found() -> None:
    raw = manifest_of("AB").encode()
    for i in range(len(raw)):
        with pytest.raises(Refused):
            Manifest.decode(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])


def test_every_missing_end_is_found() -> None:
    raw = manifest_of("A").encode()
    for end in range(len(raw)):
        with pytest.raises(Refused):
            Manifest.decode(raw[:end])
    with pytest.raises(Refused):
        Manifest.decode(raw + b"\0")


def sealed(body: bytes) -> bytes:
    return body + xxhash.xxh3_128_digest(body)


def test_another_version_is_named() -> None:
    body = struct.pack("<4sHBBQ", b"FCMF", 2, 16, 0, 0)
    with pytest.raises(Refused, match="version 2, and version 1 is the newest"):
        Manifest.decode(sealed(body))


@pytest.mark.parametrize(("log2_chunk", "size"), [(0, 0), (15, 0), (23, 0), (255, 0), (16, 1 << 63), (16, CHUNK)])
def test_a_sound_trailer_does_not_make_the_geometry_right(log2_chunk: int, size: int) -> None:
    with pytest.raises(Refused):
        Manifest.decode(sealed(struct.pack("<4sHBBQ", b"FCMF", 1, log2_chunk, 0, size)))


@given(st.binary(max_size=100))
def test_random_bytes_are_no_manifest(raw: bytes) -> None:
    with pytest.raises(Refused):
        Manifest.decode(raw)
