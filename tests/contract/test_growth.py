"""Disks that are made larger in place, and never smaller."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import RecordingFiles, qcow2_header, qemu_img
from tests.unit.agent.conversation import Conversation
from tm_fastcopy.agent import qemu_img as program
from tm_fastcopy.agent import session
from tm_fastcopy.core.errors import NoSpace, ProtocolError, Refused
from tm_fastcopy.core.volatile_messages import GrowDisk, Grown

MIB = 1 << 20
OLD = b"disk" * (MIB // 4)
Talk = Callable[..., Conversation]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The system datastore 100, empty."""
    made = tmp_path / "datastores" / "100"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def vm(base: Path) -> Path:
    """The directory of VM 42, with a raw disk of one MiB."""
    (base / "42").mkdir()
    (base / "42" / "disk.0").write_bytes(OLD)
    return base / "42"


@pytest.fixture
def talk(base: Path) -> Iterator[Talk]:
    begun: List[Conversation] = []

    def work(**arguments: Any) -> Conversation:
        while begun:  # it holds the guard
            begun.pop().end()
        begun.append(Conversation(base, create=False, **arguments))
        return begun[0]

    yield work
    while begun:
        begun.pop().end()


def tree(vm: Path, *numbers: int) -> Path:
    """Make the disk a tree of qcow2 files of 4 MiB, each on top of the one before; the last is the active one."""
    (vm / "disk.0").unlink()
    directory = vm / "disk.0.snap"
    directory.mkdir()
    below: List[str] = []
    for number in numbers:
        qemu_img("create", "-q", "-f", "qcow2", *below, directory / str(number), *([] if below else ["4M"]))
        below = ["-F", "qcow2", "-b", str(number)]
    (vm / "disk.0").symlink_to(f"disk.0.snap/{numbers[-1]}")
    return directory / str(numbers[-1])


def virtual(path: Path) -> int:
    return int(json.loads(qemu_img("info", "--output=json", "-f", "qcow2", path))["virtual-size"])


@pytest.mark.parametrize("sparse", [True, False])
def test_a_raw_disk_grows_and_keeps_what_is_in_it(talk: Talk, vm: Path, sparse: bool) -> None:
    inode = (vm / "disk.0").stat().st_ino
    for action in (1, 2):  # again, because it succeeded and nobody heard of it
        before = MIB if action == 1 else 5 * MIB
        assert talk(action=action).ask(GrowDisk(5 * MIB, "raw", sparse)) == Grown(before, 5 * MIB)
        found = (vm / "disk.0").stat()
        assert (found.st_ino, found.st_size) == (inode, 5 * MIB)
        assert (found.st_blocks * 512 >= 5 * MIB) is not sparse
    assert (vm / "disk.0").read_bytes() == OLD + bytes(4 * MIB)
    assert os.listdir(vm) == ["disk.0"]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_disk_never_shrinks(talk: Talk, vm: Path, format: str, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree(vm, 0) if format == "qcow2" else vm / "disk.0"
    before = path.read_bytes()
    monkeypatch.setattr(program, "PROGRAM", "/is/not/called")
    size = 4 * MIB if format == "qcow2" else MIB
    for action, wanted in enumerate((size, size - 1, 1)):
        assert talk(action=action).ask(GrowDisk(wanted, format, sparse)) == Grown(size, size)
    assert path.read_bytes() == before


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("numbers", [(0,), (0, 1), (0, 1, 2)], ids=str)
def test_a_qcow2_disk_grows_and_the_files_below_it_stay(talk: Talk, vm: Path, numbers: Any, sparse: bool) -> None:
    active = tree(vm, *numbers)
    below = {path: path.read_bytes() for path in active.parent.iterdir() if path != active}
    for action, before in ((1, 4 * MIB), (2, 9 * MIB)):
        assert talk(action=action).ask(GrowDisk(9 * MIB, "qcow2", sparse)) == Grown(before, 9 * MIB)
        assert virtual(active) == 9 * MIB
        qemu_img("check", "-q", "-f", "qcow2", active)
    assert (active.stat().st_blocks * 512 >= 5 * MIB) is not sparse
    assert {path: path.read_bytes() for path in below} == below
    assert sorted(os.listdir(active.parent)) == sorted(map(str, numbers))


def test_a_flat_qcow2_disk_grows(talk: Talk, vm: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", vm / "disk.0", "4M")
    assert talk().ask(GrowDisk(5 * MIB, "qcow2", True)) == Grown(4 * MIB, 5 * MIB)
    assert virtual(vm / "disk.0") == 5 * MIB


def test_the_order_is_room_size_durable(talk: Talk, vm: Path) -> None:
    for sparse, calls in ((False, ["allocate", "truncate", "sync"]), (True, ["truncate", "sync"])):
        (vm / "disk.0").write_bytes(OLD)
        files = RecordingFiles()
        one = talk(files=files, action=2)
        files.calls.clear()
        one.ask(GrowDisk(5 * MIB, "raw", sparse), Grown)
        assert files.calls == calls


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_room_is_looked_for_first(talk: Talk, vm: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree(vm, 0) if format == "qcow2" else vm / "disk.0"
    before = path.read_bytes()
    monkeypatch.setattr(session, "room_for", lambda files, fd, base, needed: 3 * MIB)
    answer = talk().refused(GrowDisk(40 * MIB, format, False))
    assert answer.kind == NoSpace.kind
    assert f"needs {36 if format == 'qcow2' else 39} MiB" in answer.text and "3 MiB free" in answer.text
    assert path.read_bytes() == before
    assert talk(action=2).ask(GrowDisk(40 * MIB, format, True), Grown)  # which needs none


def test_what_was_reserved_is_given_back_when_there_is_too_little(talk: Talk, vm: Path) -> None:
    files = RecordingFiles(failing={"allocate": errno.ENOSPC})
    assert talk(files=files).refused(GrowDisk(5 * MIB, "raw", False)).kind == NoSpace.kind
    assert (vm / "disk.0").read_bytes() == OLD
    assert files.details[-1][0] == "truncate" and files.details[-1][2] == MIB


def test_a_newer_action_or_a_lost_front_end_stops_it(talk: Talk, vm: Path) -> None:
    one = talk()
    one.alive = False
    assert "front-end went away" in one.refused(GrowDisk(5 * MIB, "raw", True)).text
    one.alive = True
    os.setxattr(vm, "user.fastcopy.fence.disk.0", b"0 2")
    assert "newer action" in one.refused(GrowDisk(5 * MIB, "raw", True)).text
    assert (vm / "disk.0").read_bytes() == OLD


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_disk_that_is_not_there(talk: Talk, vm: Path, format: str) -> None:
    (vm / "disk.0").unlink()
    answer = talk().refused(GrowDisk(5 * MIB, format, True))
    assert answer.kind == Refused.kind and "there is no" in answer.text and "front-end" in answer.text
    assert os.listdir(vm) == []


def test_links_and_pipes_are_not_written_through(talk: Talk, vm: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(OLD)
    (vm / "disk.0").unlink()
    (vm / "disk.0").symlink_to(tmp_path / "precious")
    for action, format in enumerate(("raw", "qcow2")):
        assert talk(action=action).refused(GrowDisk(5 * MIB, format, True)).kind == Refused.kind
    (vm / "disk.0").unlink()
    os.mkfifo(vm / "disk.0")
    assert "not a regular file" in talk(action=3).refused(GrowDisk(5 * MIB, "raw", True)).text
    assert (tmp_path / "precious").read_bytes() == OLD
    assert stat.S_ISFIFO((vm / "disk.0").lstat().st_mode)


@pytest.mark.parametrize(
    "header",
    [qcow2_header(backing=b"/etc/passwd"), qcow2_header(backing=b"json:{}"), qcow2_header(data_file=b"data")],
    ids=["absolute", "json", "data file"],
)
def test_a_disk_that_names_other_files_is_refused(
    talk: Talk, vm: Path, header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PROGRAM", "/is/not/called")
    (vm / "disk.0").write_bytes(header)
    assert talk().refused(GrowDisk(5 * MIB, "qcow2", True)).kind == Refused.kind
    assert (vm / "disk.0").read_bytes() == header


def test_what_qemu_img_says_is_one_sentence(
    talk: Talk, vm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    script.chmod(0o700)
    active = tree(vm, 0, 1)
    before = active.read_bytes()
    monkeypatch.setattr(program, "PROGRAM", str(script))
    answer = talk().refused(GrowDisk(5 * MIB, "qcow2", True))
    assert "cannot be made larger: no such luck" in answer.text
    assert active.read_bytes() == before


@pytest.mark.parametrize("size", [0, 1 << 61])
def test_what_cannot_be_a_size_is_no_message(size: int) -> None:
    with pytest.raises(ProtocolError):
        GrowDisk(size, "raw", True)
