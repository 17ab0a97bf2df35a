"""Files: what each operation does on the file system here, and what it does where something is missing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support import CHUNK, content, make_file, shape
from tm_fastcopy.core import files as module
from tm_fastcopy.core.files import Files, can_share, free_bytes, lock


def test_create_never_takes_what_is_there(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    os.close(Files().create(directory, "new", 0o600))
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("new", "link"):
        with pytest.raises(FileExistsError):
            Files().create(directory, name)
    os.close(directory)
    assert not (tmp_path / "elsewhere").exists()


def test_write_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:1000], offset))
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    Files().write(fd, content("A"), 10)
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == bytes(10) + content("A")


def test_punch(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "ABC")
    fd = os.open(path, os.O_RDWR)
    Files().punch(fd, CHUNK, CHUNK)
    os.close(fd)
    assert path.read_bytes() == content("A-C")
    assert shape(path) == "#-#"


def test_punch_writes_zeros_where_the_file_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(result: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "cannot")

    monkeypatch.setattr(module, "_check", cannot)
    path = make_file(tmp_path / "file", "ABC")
    fd = os.open(path, os.O_RDWR)
    Files().punch(fd, CHUNK, CHUNK)
    Files().allocate(fd, 0, CHUNK)
    os.close(fd)
    assert path.read_bytes() == content("A-C")


def test_allocate_keeps_size_and_content(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "A-")
    fd = os.open(path, os.O_RDWR)
    Files().allocate(fd, CHUNK, 4 * CHUNK)
    os.close(fd)
    assert path.read_bytes() == content("A-")


def test_fill_leaves_no_hole(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "-A--")
    fd = os.open(path, os.O_RDWR)
    Files().fill(fd, 4 * CHUNK)
    Files().fill(fd, 0)
    os.close(fd)
    assert path.read_bytes() == content("-A--")
    assert path.stat().st_blocks * 512 >= 4 * CHUNK


def test_a_copy_without_copy_file_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: int) -> int:
        raise OSError(errno.ENOSYS, "cannot")

    monkeypatch.setattr(os, "copy_file_range", cannot)
    source, target = (os.open(make_file(tmp_path / n, t), os.O_RDWR) for n, t in (("a", "ABC"), ("b", "---")))
    Files().copy_range(target, source, CHUNK, 2 * CHUNK, 0)
    os.close(source)
    os.close(target)
    assert (tmp_path / "b").read_bytes() == content("BC-")


def test_sharing_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    assert can_share(Files(), directory, ".probe") in (True, False)
    os.close(directory)
    assert os.listdir(tmp_path) == []


def test_errors_of_the_disk_are_not_taken_for_a_missing_feature(tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "A"), os.O_RDONLY)
    for operation in (Files().punch, Files().allocate):
        with pytest.raises(OSError, match="Bad file descriptor"):
            operation(fd, 0, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Files().clone(fd, fd)
    os.close(fd)


def test_unlink_of_nothing_is_done(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    Files().unlink(directory, "nothing")
    os.close(directory)


def test_locks_exclude_each_other(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "")
    one, other = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    assert lock(one)
    assert lock(one)
    assert not lock(other)
    os.close(one)
    assert lock(other)
    os.close(other)


def test_free_bytes(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert 0 < free_bytes(fd) <= os.fstatvfs(fd).f_blocks * os.fstatvfs(fd).f_frsize
    os.close(fd)
