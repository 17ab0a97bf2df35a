"""Volatile disks on a host: made by the host's own programs, published like every other disk."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import RecordingFiles, qemu_img
from tests.unit.agent.conversation import Conversation
from tm_fastcopy.agent import session
from tm_fastcopy.agent import volatile as module
from tm_fastcopy.core import messages, wire
from tm_fastcopy.core.errors import NoSpace, ProtocolError, Refused
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.core.volatile_messages import MakeDisk

MIB = 1 << 20
Talk = Callable[..., Conversation]
Kind = namedtuple("Kind", "format fs")
KINDS = [Kind(format, fs) for format in ("raw", "qcow2") for fs in ("", "ext4", "swap")][:-1]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The system datastore 100, empty."""
    made = tmp_path / "datastores" / "100"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def talk(base: Path) -> Iterator[Talk]:
    begun: List[Conversation] = []

    def work(**arguments: Any) -> Conversation:
        while begun:  # it holds the guard
            begun.pop().end()
        begun.append(Conversation(base, **arguments))
        return begun[0]

    yield work
    while begun:
        begun.pop().end()


def wanted(size: int = 8 * MIB, format: str = "raw", fs: str = "", options: str = "", sparse: bool = True) -> MakeDisk:
    return MakeDisk(size, format, fs, options, 0o644, sparse)


def kind_of(path: Path) -> str:
    """What blkid finds in a file: "<type> <label>", or ""."""
    argv = ["/sbin/blkid", "-p", "-s", "TYPE", "-s", "LABEL", "-o", "value", path]
    return subprocess.run(argv, capture_output=True, timeout=60, text=True, check=False).stdout.replace("\n", " ")


def assert_made(path: Path, kind: Kind, size: int, sparse: bool, tmp_path: Path) -> None:
    assert os.listdir(path.parent) == ["disk.0"]
    assert path.is_file() and not path.is_symlink()
    assert oct(path.stat().st_mode & 0o7777) == oct(0o644)
    allocated = path.stat().st_blocks * 512
    assert allocated >= size if not sparse else allocated < size // 2
    raw = path
    if kind.format == "qcow2":
        qemu_img("check", "-q", "-f", "qcow2", path)
        raw = tmp_path / "raw"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    assert raw.stat().st_size == size
    assert kind_of(raw) == {"": "", "ext4": "ext4 ", "swap": "swap swap "}[kind.fs]
    if kind.fs == "ext4":
        subprocess.run(["/sbin/e2fsck", "-fn", raw], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "allocated"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_made_and_what_is_made_again(talk: Talk, tmp_path: Path, kind: Kind, sparse: bool) -> None:
    one = talk()
    made = one.ask(wanted(8 * MIB, *kind, sparse=sparse), messages.Published)
    receipt = Receipt.decode(made.receipt)
    assert (receipt.path, receipt.inode) == (str(one.disk), one.disk.stat().st_ino)
    assert_made(one.disk, kind, 8 * MIB, sparse, tmp_path)
    again = talk(action=2)
    again.ask(wanted(9 * MIB, *kind, sparse=sparse), messages.Published)
    assert again.disk.stat().st_ino != receipt.inode
    assert_made(one.disk, kind, 9 * MIB, sparse, tmp_path)


def test_options_reach_mkfs_as_words(talk: Talk) -> None:
    one = talk()
    one.ask(wanted(fs="ext4", options="-L\nmy label\n-b\n1024"), messages.Published)
    assert kind_of(one.disk) == "my label ext4 "


def test_what_an_earlier_action_left_is_of_no_use(talk: Talk, base: Path) -> None:
    (base / "42").mkdir()
    (base / "42" / ".disk.0.fastcopy.part").write_bytes(b"\x53\xef" * MIB)
    one = talk()
    one.ask(wanted(), messages.Published)
    assert one.disk.read_bytes() == bytes(8 * MIB)


def program(tmp_path: Path, text: str) -> Path:
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o700)
    return script


def test_a_program_that_is_missing_is_named_with_its_package(talk: Talk, base: Path) -> None:
    one = talk()
    answer = one.refused(wanted(fs="nosuchfs"))
    assert "mkfs.nosuchfs" in answer.text and "install" in answer.text and str(one.disk) in answer.text
    assert os.listdir(base / "42") == []


@pytest.mark.parametrize(("fs", "package"), [("ext4", "e2fsprogs"), ("xfs", "xfsprogs"), ("swap", "util-linux")])
def test_the_package_of_a_program(
    talk: Talk, base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fs: str, package: str
) -> None:
    monkeypatch.setattr(module, "by_fd", lambda fd: "x")
    monkeypatch.setattr("tm_fastcopy.agent.program.environment", lambda: {"PATH": str(tmp_path)})
    assert f"install {package} there" in talk().refused(wanted(fs=fs)).text
    assert os.listdir(base / "42") == []


def test_what_mkfs_refuses_is_one_sentence_and_leaves_nothing(talk: Talk, base: Path) -> None:
    one = talk()
    before = one.ask(wanted(fs="ext4"), messages.Published)
    again = talk(action=2)
    answer = again.refused(wanted(fs="ext4", options="-b\n17"))
    assert "mkfs.ext4 cannot make a file system in" in answer.text and "17" in answer.text
    assert "\n" not in answer.text and "/proc/" not in answer.text
    assert os.listdir(base / "42") == ["disk.0"]
    assert one.disk.stat().st_ino == Receipt.decode(before.receipt).inode


@pytest.mark.parametrize("kind", [Kind("raw", ""), Kind("qcow2", "ext4")], ids=str)
def test_a_program_ends_with_the_front_end_and_nothing_is_published(talk: Talk, base: Path, kind: Kind) -> None:
    one = talk()
    one.alive = False
    assert "front-end went away" in one.refused(wanted(fs=kind.fs, format=kind.format)).text
    assert os.listdir(base / "42") == []


@pytest.mark.parametrize(
    ("kind", "sparse", "least"),
    [
        (Kind("raw", ""), False, 1024 * MIB),
        (Kind("qcow2", ""), False, 1024 * MIB),
        (Kind("raw", "ext4"), True, 33 * MIB),  # measured
        (Kind("qcow2", "ext4"), True, 66 * MIB),
        (Kind("qcow2", "ext4"), False, 1057 * MIB),
    ],
    ids=str,
)
def test_room_is_looked_for_first(
    talk: Talk, base: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, sparse: bool, least: int
) -> None:
    asked: List[int] = []

    def full(files: Any, fd: int, base: str, needed: int) -> int:
        asked.append(needed)
        return 3 * MIB

    monkeypatch.setattr(session, "room_for", full)
    files = RecordingFiles()
    one = talk(files=files)
    files.calls.clear()
    answer = one.refused(wanted(1024 * MIB, kind.format, kind.fs, sparse=sparse))
    assert answer.kind == NoSpace.kind
    assert f"needs {-(-asked[0] // MIB)} MiB" in answer.text and "3 MiB free" in answer.text
    assert least <= asked[0] <= 2 * least + 200 * MIB
    assert files.calls == [] and os.listdir(base / "42") == []


def test_nothing_but_zeros_that_are_not_allocated_needs_no_room(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "room_for", lambda files, fd, base, needed: needed)
    one = talk()
    one.ask(wanted(4 << 40), messages.Published)
    assert one.disk.stat().st_size == 4 << 40


def test_cached_images_make_room(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    talk().push("AB", key="c" * 32)
    one = talk(vm=43)

    def images() -> int:
        return len(list(one.disk.parents[2].glob(".fastcopy/cache/*.img")))

    assert images() == 1
    monkeypatch.setattr("tm_fastcopy.core.files.free_bytes", lambda fd: 5 * MIB)
    monkeypatch.setattr("tm_fastcopy.agent.room.free_bytes", lambda fd: 100 * MIB - 65536 if images() else 900 * MIB)
    one.ask(wanted(100 * MIB, sparse=False), messages.Published)
    assert images() == 0


def test_a_full_disk_in_the_middle_leaves_nothing(talk: Talk, base: Path) -> None:
    one = talk(files=RecordingFiles(failing={"fill": errno.ENOSPC}))
    assert one.refused(wanted(sparse=False)).kind == NoSpace.kind
    assert os.listdir(base / "42") == []


def test_a_newer_action_stops_it(talk: Talk, base: Path) -> None:
    one = talk()
    os.setxattr(base / "42", "user.fastcopy.fence.disk.0", b"0 2")
    assert "newer action" in one.refused(wanted()).text
    assert os.listdir(base / "42") == []


@pytest.mark.parametrize("format", ["vmdk", "", "raw,x"])
def test_other_formats_are_refused(talk: Talk, format: str) -> None:
    assert talk().refused(wanted(format=format)).kind == Refused.kind


def test_a_conversation_for_reading_makes_nothing(talk: Talk, base: Path) -> None:
    (base / "42").mkdir()
    assert isinstance(talk(create=False).ask(wanted()), wire.Failure)


@pytest.mark.parametrize(
    "values",
    [{"size": 0}, {"size": 1 << 61}, {"fs": "../sh"}, {"fs": "Ext4"}, {"fs": "a" * 17}, {"options": "x\n" * 65}],
    ids=str,
)
def test_what_cannot_be_a_disk_is_no_message(values: Any) -> None:
    with pytest.raises(ProtocolError):
        wanted(**values)


def test_a_file_without_a_name_where_the_file_system_has_none(
    talk: Talk, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.open

    def without(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return plain(path, flags, *arguments, **named)

    one = talk()
    monkeypatch.setattr(os, "open", without)
    one.ask(wanted(fs="ext4", format="qcow2"), messages.Published)
    assert os.listdir(base / "42") == ["disk.0"]
