"""Extracts: disks and snapshots as one file, of chains that the real qemu-img has made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Tuple

import pytest

from tests.support import make_file, qcow2_header, qemu_img
from tm_fastcopy.agent import extract
from tm_fastcopy.agent import qemu_img as program
from tm_fastcopy.agent.directory import VmDirectory
from tm_fastcopy.core.errors import FastcopyError, NoSpace, ProtocolError, Refused, SourceChanged
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.image_messages import OpenExtract

KIB = 1024


@pytest.fixture
def tree(base: Path) -> Path:
    """A disk of 2 MiB with snapshots 0 and 1: in each of its files the guest wrote that file's number, and over all."""
    made = base / "42" / "disk.0.snap"
    made.mkdir(parents=True)
    for number in range(3):
        rests = ["-F", "qcow2", "-b", str(number - 1)] if number else []
        make = ["qemu-img", "create", "-q", "-f", "qcow2", *rests, str(number), *([] if number else ["2M"])]
        writes = [f"write -q -P {number + 1} {at * 128}k 64k" for at in (number, 15)]
        words = [word for write in writes for word in ("-c", write)]
        for argv in (make, ["qemu-io", "-f", "qcow2", *words, str(number)]):
            subprocess.run(argv, cwd=made, check=True, timeout=60)
    (base / "42" / "disk.0").symlink_to("disk.0.snap/2")
    return made


def opened(base: Path, format: str, snapshot: str = "") -> bytes:
    """All bytes of an extract of disk 0 of VM 42."""
    directory = VmDirectory(Files(), str(base), 42, "disk.0", (0, 1))
    try:
        directory.enter(create=False, driver="", alive=lambda: True)
        fd = extract.open_extract(Files(), directory, OpenExtract(format, snapshot), lambda: True)
        with open(fd, "rb") as file:
            return file.read()
    finally:
        directory.leave()


def guest(data: bytes, scratch: Path) -> Tuple[int, ...]:
    """What a guest finds at the places of an image that must rest on nothing."""
    scratch.mkdir()
    (scratch / "one").write_bytes(data)
    qemu_img("check", "-q", "-f", "qcow2", scratch / "one")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", scratch / "one", scratch / "raw")
    raw = (scratch / "raw").read_bytes()
    assert len(raw) == 2048 * KIB
    return tuple(raw[at * 128 * KIB] for at in (0, 1, 2, 15))


def test_a_disk_that_rests_on_snapshots_and_they_are_one_file_each(base: Path, tree: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (*tree.iterdir(), *tree.parent.iterdir()))
    assert guest(opened(base, "qcow2"), tmp_path / "disk") == (1, 2, 3, 3)
    assert guest(opened(base, "qcow2", "1"), tmp_path / "1") == (1, 2, 0, 2)
    assert opened(base, "qcow2", "0") == (tree / "0").read_bytes()  # which stands for itself: nothing is made
    (tree / "7.current").write_text(f"{tree}/0\n")
    assert opened(base, "qcow2", "7") == (tree / "0").read_bytes()
    (tree / "7.current").unlink()
    found = sorted(path.name for path in (*tree.iterdir(), *tree.parent.iterdir()))
    assert [name for name in found if not name.startswith(".")] == [n for n in names if not n.startswith(".")]
    assert [name for name in found if name.endswith(".part")] == []


def test_a_disk_of_one_file_and_its_copies_are_read_where_they_are(base: Path) -> None:
    vm = base / "42"
    (vm / "disk.0.snap").mkdir(parents=True)
    make_file(vm / "disk.0", "AB")
    make_file(vm / "disk.0.snap" / "3", "QC")
    assert opened(base, "raw") == (vm / "disk.0").read_bytes()
    assert opened(base, "raw", "3") == opened(base, "qcow2", "3") == (vm / "disk.0.snap" / "3").read_bytes()
    with pytest.raises(Refused, match="no snapshot 4"):
        opened(base, "raw", "4")
    shutil.rmtree(vm / "disk.0.snap")
    with pytest.raises(Refused, match="no snapshot 3"):
        opened(base, "raw", "3")
    (vm / "disk.0").write_bytes(qcow2_header(backing=b"/etc/passwd"))
    with pytest.raises(Refused, match="outside"):
        opened(base, "qcow2")


def test_what_is_not_there_or_leads_elsewhere_is_refused(base: Path, tree: Path) -> None:
    for snapshot in ("2", "5"):  # the disk itself is no snapshot of it
        with pytest.raises(Refused, match=f"no snapshot {snapshot}"):
            opened(base, "qcow2", snapshot)
    with pytest.raises(Refused, match="raw disk"):
        opened(base, "raw")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", tree / "1")
    with pytest.raises(Refused, match="outside its own"):
        opened(base, "qcow2")
    (tree.parent / "disk.0").unlink()
    with pytest.raises(Refused, match=r"there is no .*disk\.0"):
        opened(base, "qcow2")
    with pytest.raises(ProtocolError):
        OpenExtract("qcow2", "../0")


def test_one_that_is_written_meanwhile_or_cannot_be_made_is_none(
    base: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flatten = program.flatten

    def while_the_vm_starts(directory: int, *rest: object) -> None:
        flatten(directory, *rest)  # type: ignore[arg-type]
        os.utime("0", dir_fd=directory)

    monkeypatch.setattr(program, "flatten", while_the_vm_starts)
    with pytest.raises(SourceChanged, match="written while"):
        opened(base, "qcow2")
    monkeypatch.setattr(program, "flatten", flatten)
    monkeypatch.setattr(extract, "room", lambda *_: 0)
    with pytest.raises(NoSpace):
        opened(base, "qcow2")
    monkeypatch.undo()
    with (tree / "1").open("r+b") as file:  # its L1 table leads nowhere
        file.seek(40)
        file.write(b"\xff" * 8)
    with pytest.raises(FastcopyError, match=r"disk\.0"):
        opened(base, "qcow2")
