"""Digests, zero blocks, and pages of digests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import CHUNK, content, make_file, manifest_of
from tm_fastcopy.core import hashing
from tm_fastcopy.core.errors import SourceChanged
from tm_fastcopy.core.hashing import BLOCK, digest, hash_page, is_zero, nonzero_runs, read_exactly, read_into
from tm_fastcopy.core.manifest import MAX_CHUNK, ZERO_DIGEST


def test_it_is_blake3() -> None:
    assert digest(b"abc").hex() == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, CHUNK, MAX_CHUNK])
def test_zeros_have_no_digest(length: int) -> None:
    assert digest(bytes(length)) == ZERO_DIGEST


@pytest.mark.parametrize("place", [0, 1, CHUNK // 2, CHUNK - 1])
def test_one_bit_makes_data(place: int) -> None:
    data = bytearray(CHUNK)
    data[place] = 1
    assert not is_zero(bytes(data))
    assert digest(bytes(data)) != ZERO_DIGEST


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("", []),
        ("00", []),
        ("1", [(0, 1)]),
        ("0110", [(1, 2)]),
        ("1001", [(0, 1), (3, 1)]),
        ("111", [(0, 3)]),
    ],
)
def test_runs_of_blocks_that_hold_something(blocks: str, expected: List[Tuple[int, int]]) -> None:
    data = b"".join(bytes(BLOCK - 1) + bytes([int(block)]) for block in blocks)
    assert nonzero_runs(data) == [(at * BLOCK, length * BLOCK) for at, length in expected]


@pytest.mark.parametrize(("tail", "expected"), [(b"\0" * 10, []), (b"\0" * 9 + b"x", [(BLOCK, 10)])])
def test_a_short_last_block(tail: bytes, expected: List[Tuple[int, int]]) -> None:
    assert nonzero_runs(bytes(BLOCK) + tail) == expected


@given(st.text("01", max_size=20), st.integers(1, BLOCK))
def test_nothing_but_zeros_lies_outside_the_runs(blocks: str, last: int) -> None:
    data = b"".join(bytes([int(block)]) * BLOCK for block in blocks) + bytes(last)
    rebuilt = bytearray(len(data))
    for at, length in nonzero_runs(data):
        rebuilt[at : at + length] = data[at : at + length]
    assert bytes(rebuilt) == data


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "A"), os.O_RDONLY)
    assert read_exactly(fd, 10, CHUNK - 10) == content("A")[10:]
    with pytest.raises(SourceChanged, match="shorter"):
        read_exactly(fd, 10, CHUNK)
    room = memoryview(bytearray(CHUNK))
    assert read_into(fd, 10, room[: CHUNK - 10]) == content("A")[10:]
    with pytest.raises(SourceChanged, match="shorter"):
        read_into(fd, 10, room)
    os.close(fd)


@pytest.mark.parametrize(("letters", "size"), [("A", 5), ("AB-A", 4 * CHUNK), ("--A-", 3 * CHUNK + 1), ("---", -1)])
@pytest.mark.parametrize("page", [1, 2, 100])
def test_pages_make_the_manifest(tmp_path: Path, letters: str, size: int, page: int) -> None:
    path = make_file(tmp_path / "file", letters, size)
    wanted = manifest_of(letters, size)
    fd = os.open(path, os.O_RDONLY)
    pages = [hash_page(fd, wanted.size, CHUNK, first, page) for first in range(0, wanted.count, page)]
    os.close(fd)
    assert b"".join(one.digests for one in pages) == wanted.digests
    assert [one.first for one in pages] == list(range(0, wanted.count, page))


def test_a_page_names_the_runs_of_data_in_it(tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "-AB-C"), os.O_RDONLY)
    assert hash_page(fd, 5 * CHUNK, CHUNK, 2, 3).runs == [(2 * CHUNK, CHUNK), (4 * CHUNK, CHUNK)]
    os.close(fd)


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: List[int] = []

    def noted(fd: int, offset: int, view: memoryview) -> memoryview:
        places.append(offset // CHUNK)
        return read_into(fd, offset, view)

    monkeypatch.setattr(hashing, "read_into", noted)
    fd = os.open(make_file(tmp_path / "file", "A--B-"), os.O_RDONLY)
    hash_page(fd, 5 * CHUNK, CHUNK, 0, 5)
    os.close(fd)
    assert places == [0, 3]


def test_a_chunk_of_several_small_runs_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(CHUNK)
        for at in (0, 16384, 49152):
            os.pwrite(file.fileno(), b"x" * 4096, at)
    fd = os.open(path, os.O_RDONLY)
    page = hash_page(fd, CHUNK, CHUNK, 0, 1)
    os.close(fd)
    assert page.digests == digest(path.read_bytes())
