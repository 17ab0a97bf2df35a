"""The map of a file: real ones, and answers of the kernel that the machine's own file system would not give."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List, Tuple

import pytest

from tests.support import CHUNK, make_file
from tm_fastcopy.core import fiemap
from tm_fastcopy.core.fiemap import FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_SHARED, mapped_extents, usage

SHARED, LAST = FIEMAP_EXTENT_SHARED, FIEMAP_EXTENT_LAST
Extents = List[Tuple[int, int, int, int]]


def answering(monkeypatch: pytest.MonkeyPatch, extents: Extents) -> List[int]:
    """Have the kernel tell these extents (logical, physical, length, flags); return the starts it is asked for."""
    asked: List[int] = []

    def ioctl(fd: int, request: int, buffer: bytearray, mutate: bool) -> int:
        start, _, flags, _, most, _ = struct.unpack_from("=QQLLLL", buffer)
        assert (request, mutate, flags) == (0xC020660B, True, 1)
        asked.append(start)
        found = [extent for extent in extents if extent[0] >= start][:most]
        struct.pack_into("=L", buffer, 20, len(found))
        for index, (logical, physical, length, marks) in enumerate(found):
            struct.pack_into("=QQQ16xL", buffer, 32 + 56 * index, logical, physical, length, marks)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    blocks = sum(length for _, _, length, _ in extents) // 512
    monkeypatch.setattr(fiemap, "os", SimpleNamespace(fstat=lambda fd: SimpleNamespace(st_blocks=blocks)))
    return asked


def test_a_real_file(tmp_path: Path) -> None:
    with open(make_file(tmp_path / "file", "AB--C"), "rb") as file:
        found = usage(file.fileno())
        blocks = os.fstat(file.fileno()).st_blocks * 512
        mapped = list(mapped_extents(file.fileno()))
    assert sum(extent.length for extent in mapped) == 3 * CHUNK
    assert mapped[0].logical == 0 and mapped[-1].logical + mapped[-1].length == 5 * CHUNK
    assert (found.allocated, found.exclusive, found.shared) == (blocks, blocks, ())
    assert found.extents >= 2


def test_an_empty_file(tmp_path: Path) -> None:
    with open(make_file(tmp_path / "file", ""), "rb") as file:
        assert usage(file.fileno()) == (0, 0, 0, ())


def test_what_is_shared_is_not_exclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, [(0, 1 << 30, 4096, 0), (8192, 2 << 30, 12288, SHARED), (40960, 3 << 30, 4096, LAST)])
    assert usage(-1) == (20480, 8192, 3, ((2 << 30, 12288),))


def test_a_piece_of_which_a_part_is_shared_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, [(0, 81920, 4096, 0), (4096, 86016, 4096, SHARED), (8192, 4096, 4096, LAST)])
    assert usage(-1).extents == 2


@pytest.mark.parametrize("count", [511, 512, 513, 1500])
@pytest.mark.parametrize("marked", [True, False])
def test_a_file_in_many_pieces_is_mapped_in_several_calls(
    monkeypatch: pytest.MonkeyPatch, count: int, marked: bool
) -> None:
    extents = [(8192 * i, 1 << 40 - i % 7, 4096, 0) for i in range(count)]
    if marked:
        extents[-1] = (*extents[-1][:3], LAST)
    asked = answering(monkeypatch, extents)
    assert len(list(mapped_extents(-1))) == count
    assert asked == sorted(set(asked)) and len(asked) == -(-count // 512) + (0 if marked else 1)


def test_a_kernel_that_never_ends_is_not_listened_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fiemap, "_MOST", 2048)
    answering(monkeypatch, [(8192 * i, 8192 * i, 4096, 0) for i in range(5000)])
    assert len(list(mapped_extents(-1))) == 2048


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY])
def test_without_a_map_all_counts_as_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def ioctl(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with open(make_file(tmp_path / "file", "AB"), "rb") as file:
        assert usage(file.fileno()) == (2 * CHUNK, 2 * CHUNK, 0, ())


def test_another_error_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(*_: Any) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with open(make_file(tmp_path / "file", "A"), "rb") as file, pytest.raises(OSError):
        usage(file.fileno())
