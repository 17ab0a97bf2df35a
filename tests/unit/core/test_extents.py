"""Extents of real sparse files.  A letter or "#" is a chunk of data, "-" a hole (see `tests.support`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import CHUNK, make_file, shape
from tm_fastcopy.core.extents import Extent, data_runs, extents, merge_runs


def runs(path: Path, start: int, end: int) -> List[Tuple[float, float]]:
    """Runs of data in a window, all in chunks."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return [(at / CHUNK, length / CHUNK) for at, length in data_runs(fd, start * CHUNK, end * CHUNK)]
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("", []),
        ("-", []),
        ("----", []),
        ("A", [(0, 1)]),
        ("ABA", [(0, 3)]),
        ("-A-", [(1, 1)]),
        ("A-B", [(0, 1), (2, 1)]),
        ("--AB--C-", [(2, 2), (6, 1)]),
    ],
)
def test_runs_of_data(tmp_path: Path, letters: str, expected: List[Tuple[int, int]]) -> None:
    path = make_file(tmp_path / "file", letters)
    assert runs(path, 0, len(letters)) == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 3, [(2, 1)]), (3, 7, [(3, 1), (6, 1)]), (4, 6, []), (3, 4, [(3, 1)]), (5, 5, []), (7, 100, [])],
)
def test_runs_are_clipped_to_the_window(tmp_path: Path, start: int, end: int, expected: List[Tuple[int, int]]) -> None:
    path = make_file(tmp_path / "file", "--AB--C-")
    assert runs(path, start, end) == expected


def test_a_short_last_chunk(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "-A", size=CHUNK + 100)
    fd = os.open(path, os.O_RDONLY)
    assert list(data_runs(fd, 0, CHUNK + 100)) == [(CHUNK, 100)]
    os.close(fd)


def test_extents_have_no_gaps(tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "-AB-C--"), os.O_RDONLY)
    found = list(extents(fd, 7 * CHUNK))
    os.close(fd)
    assert found == [
        Extent(0, CHUNK, False),
        Extent(CHUNK, 2 * CHUNK, True),
        Extent(3 * CHUNK, CHUNK, False),
        Extent(4 * CHUNK, CHUNK, True),
        Extent(5 * CHUNK, 2 * CHUNK, False),
    ]
    assert [before.end for before in found[:-1]] == [after.offset for after in found[1:]]


def test_zeros_that_were_written_are_data(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * CHUNK))
    assert shape(path) == "##"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5))))
def test_runs_that_touch_are_joined(gaps: List[Tuple[int, int]]) -> None:
    apart, at = [], 0
    for gap, length in gaps:
        apart.append((at + gap, length))
        at += gap + length
    joined = merge_runs(apart)
    covered = [i for offset, length in apart for i in range(offset, offset + length)]
    assert [i for offset, length in joined for i in range(offset, offset + length)] == covered
    assert all(a[0] + a[1] < b[0] for a, b in zip(joined, joined[1:]))
