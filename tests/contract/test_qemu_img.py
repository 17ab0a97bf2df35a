"""qemu-img and this driver agree on what a header says, and on how a disk is made larger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import NO_SHARING, RecordingFiles, make_encrypted, qemu_img
from tests.unit.agent.conversation import Conversation
from tests.unit.agent.entries import KEY
from tm_fastcopy.agent import program
from tm_fastcopy.core import messages, qcow2
from tm_fastcopy.core.qcow2 import Header
from tm_fastcopy.core.receipt import Receipt

MIB = 1 << 20
Talk = Callable[..., Conversation]


def read(path: Path) -> Header:
    fd = os.open(path, os.O_RDONLY)
    try:
        return qcow2.read(fd, str(path))
    finally:
        os.close(fd)


MADE = ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "extended_l2=on"]


@pytest.mark.parametrize("options", MADE)
def test_what_qemu_img_makes_is_read(tmp_path: Path, options: str) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-o", options, path, "37M")
    header = read(path)
    assert header == Header(2 if "0.10" in options else 3, 37 << 20, None, None, 0, 0)
    qemu_img("snapshot", "-c", "one", path)
    assert read(path).snapshots == 1


@pytest.mark.parametrize("options", ["compat=0.10", "cluster_size=2M"])
def test_backing_and_data_files_that_qemu_img_makes(tmp_path: Path, options: str) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-f", "qcow2", base, "1M")
    qemu_img("create", "-f", "qcow2", "-o", options, "-b", base, "-F", "qcow2", top)
    assert read(top).backing == str(base)
    data = tmp_path / "data"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={data}", tmp_path / "meta", "1M")
    assert read(tmp_path / "meta").data_file == str(data)


def test_an_encrypted_image(tmp_path: Path) -> None:
    make_encrypted(tmp_path / "luks", "1M")
    header = read(tmp_path / "luks")
    assert header.encryption == 2
    qcow2.check_stand_alone(header, "x")


# --- larger disks ------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    """Begin a conversation about a qcow2 disk, which ends the one before."""
    base = tmp_path / "datastores" / "100"
    base.mkdir(parents=True)
    begun: List[Conversation] = []

    def work(**arguments: Any) -> Conversation:
        for one in begun[-1:]:
            one.end()
        begun.append(Conversation(base, format="qcow2", **arguments))
        return begun[-1]

    yield work
    for one in begun[-1:]:
        one.end()


def made(tmp_path: Path) -> bytes:
    path = tmp_path / "made"
    qemu_img("create", "-q", "-f", "qcow2", path, "3M")
    return path.read_bytes()


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("warm", [True, False])
def test_a_disk_that_is_larger_for_its_guest(
    talk: Talk, tmp_path: Path, sharing: bool, sparse: bool, warm: bool
) -> None:
    image = made(tmp_path)
    files = RecordingFiles(lacking=() if sharing else NO_SHARING)
    one = talk(virtual=7 * MIB + 512, files=files)
    published = one.send(image, KEY, sparse)
    if warm:
        one = talk(vm=43, virtual=7 * MIB + 512, files=files, action=2)
        entry = Receipt.decode(published.receipt).manifest
        published = one.ask(messages.CloneEntry(entry, len(image), 0o640, sparse, "qcow2", one.virtual))
    Receipt.decode(published.receipt)
    qemu_img("check", "-q", "-f", "qcow2", one.disk)
    assert read(one.disk).size == 7 * MIB + 512
    allocated = (one.disk.stat().st_blocks * 512) >= 4 * MIB
    assert allocated is not sparse


def test_resizing_names_the_format_and_no_path(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: List[Any] = []
    real = program.subprocess.Popen

    def noting(argv: List[str], **named: Any) -> Any:
        if "resize" in argv:
            seen.append(argv)
        return real(argv, **named)

    image = made(tmp_path)
    monkeypatch.setattr(program.subprocess, "Popen", noting)
    talk(virtual=4 * MIB).send(image)
    assert seen[0][1:5] == ["resize", "-q", "-f", "qcow2"] and seen[0][5].startswith("/proc/self/fd/")
