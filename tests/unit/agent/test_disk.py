"""qcow2 disks on a host: by the messages that the agent is sent, and the trees that are there afterwards."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import CHUNK, NO_SHARING, RecordingFiles, content, make_file, manifest_of, qcow2_header
from tm_fastcopy.agent import disk as module
from tm_fastcopy.agent import program as runner
from tm_fastcopy.agent import qemu_img as program
from tm_fastcopy.core import messages, restore_messages, wire
from tm_fastcopy.core.errors import FastcopyError, NoSpace, Refused, Superseded
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.publish import staging_name
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.core.staging import Staging
from tm_fastcopy.core.tree import aside_name

from .conversation import Conversation
from .entries import KEY

Talk = Callable[..., Conversation]
MIB = 1 << 20
IMAGE = qcow2_header(size=3 * MIB)


@pytest.fixture
def talk(base: Path) -> Iterator[Talk]:
    """Begin a conversation about a qcow2 disk below *base*; all are ended."""
    begun: List[Conversation] = []

    def work(**arguments: Any) -> Conversation:
        begun.append(Conversation(base, **{"format": "qcow2", **arguments}))
        return begun[-1]

    yield work
    for one in begun:
        if not getattr(one, "ended", False):
            one.end()


def end(one: Conversation) -> None:
    one.end()
    one.ended = True  # type: ignore[attr-defined]


def assert_tree(one: Conversation, data: bytes) -> None:
    directory = one.disk.parent
    assert sorted(os.listdir(directory)) == [one.disk.name, f"{one.disk.name}.snap"]
    assert os.readlink(one.disk) == f"{one.disk.name}.snap/0"
    assert os.listdir(directory / f"{one.disk.name}.snap") == ["0"]
    status = one.disk.lstat(), (directory / f"{one.disk.name}.snap" / "0").lstat()
    assert stat.S_ISREG(status[1].st_mode) and stat.S_IMODE(status[1].st_mode) == 0o640
    assert one.disk.read_bytes() == data


@pytest.mark.parametrize("sharing", [True, False])
def test_a_clone_cold_and_warm(talk: Talk, sharing: bool) -> None:
    files = RecordingFiles(lacking=() if sharing else NO_SHARING)
    first = talk(files=files)
    published = first.push("QB-A", key=KEY)
    proof = Receipt.decode(published.receipt)
    assert proof.path == f"{first.disk}.snap/0" and proof.size == 4 * CHUNK
    assert_tree(first, content("QB-A"))
    end(first)
    second = talk(vm=43, action=2)
    assert second.clone("QB-A").how.startswith("cache")
    assert_tree(second, content("QB-A"))


@pytest.mark.parametrize("before", ["flat", "tree", "raw staging", "dangling"])
def test_what_stood_there_is_replaced(talk: Talk, base: Path, before: str) -> None:
    directory = base / "42"
    directory.mkdir()
    if before == "flat":
        make_file(directory / "disk.0", "X")
    elif before == "raw staging":
        make_file(directory / staging_name("disk.0"), "X")
    elif before == "dangling":
        (directory / "disk.0").symlink_to("disk.0.snap/0")
    else:
        (directory / "disk.0.snap").mkdir()
        for number in "01":
            make_file(directory / "disk.0.snap" / number, "X")
        (directory / "disk.0").symlink_to("disk.0.snap/1")
    one = talk()
    one.push("QB")
    assert_tree(one, content("QB"))


def test_a_raw_disk_takes_the_place_of_a_tree_on_its_receipt(talk: Talk, base: Path) -> None:
    directory = base / "42"
    for tree in ("disk.0.snap", aside_name("disk.0"), "disk.1.snap"):
        (directory / tree).mkdir(parents=True)
        make_file(directory / tree / "1", "X")
    (directory / "disk.0").symlink_to("disk.0.snap/1")
    one = talk(format="raw")
    receipt = one.push("AB").receipt
    wrong = receipt.replace("disk.0", "disk.1"), receipt.replace('"inode": ', '"inode": 1'), "{}"
    for text in wrong:
        assert one.refused(restore_messages.DropTree(text)).kind == Refused.kind
    assert len(os.listdir(directory)) == 4
    assert one.ask(restore_messages.DropTree(receipt)) == wire.Done()
    assert (directory / "disk.0").read_bytes() == content("AB") and not (directory / "disk.0").is_symlink()
    assert sorted(os.listdir(directory)) == ["disk.0", "disk.1.snap"]


def test_it_goes_on_where_it_was_cut_off(talk: Talk) -> None:
    first = talk(files=RecordingFiles(lacking=NO_SHARING))
    first.begin("QBC")
    first.offer("QBC")
    lane = first.lane()
    assert lane.put("QBC", 1) == messages.Stored(1)
    lane.close()
    end(first)
    second = talk(action=2)
    second.push("QBC")
    assert second.fetched == "QC"
    assert_tree(second, content("QBC"))


@pytest.mark.parametrize("wrong", ["not alive", "superseded"])
def test_an_action_that_may_not_publish_leaves_the_old_tree(talk: Talk, base: Path, wrong: str) -> None:
    (base / "42" / "disk.0.snap").mkdir(parents=True)
    make_file(base / "42" / "disk.0.snap" / "0", "X")
    (base / "42" / "disk.0").symlink_to("disk.0.snap/0")
    one = talk()
    one.begin("Q")
    one.offer("Q")
    lane = one.lane()
    lane.put("Q", 0)
    lane.close()
    if wrong == "not alive":
        one.alive = False
    else:
        os.setxattr(base / "42", "user.fastcopy.fence.disk.0", b"0 2")
    assert one.refused(messages.Commit(manifest_of("Q").id)).kind == Superseded.kind
    assert one.disk.read_bytes() == content("X")


def test_the_fence_is_looked_at_again_after_the_fsync(talk: Talk, base: Path) -> None:
    class Overtaken(Files):
        newer = False

        def sync(self, fd: int) -> None:
            super().sync(fd)
            if self.newer:
                os.setxattr(base / "42", "user.fastcopy.fence.disk.0", b"0 2")

    files = Overtaken()
    one = talk(files=files)
    files.newer = True
    failure = one.push("Q")
    assert isinstance(failure, wire.Failure) and failure.kind == Superseded.kind
    assert not os.path.lexists(one.disk) and not os.path.lexists(f"{one.disk}.snap")


# --- headers, on this side too -----------------------------------------------------------------------------------

BAD = {
    "no qcow2 image": b"x" * CHUNK,
    "outside its own directory": qcow2_header(backing=b"/etc/shadow"),
    "several files": qcow2_header(backing=b"base"),
    "external data file": qcow2_header(features=4, data_file=b"data"),
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("sharing", [True, False])
def test_a_bad_header_makes_no_disk(talk: Talk, base: Path, reason: str, sharing: bool) -> None:
    one = talk(files=RecordingFiles(lacking=() if sharing else NO_SHARING))
    answer = one.send(BAD[reason], KEY)
    assert isinstance(answer, wire.Failure) and answer.kind == Refused.kind and reason in answer.text
    assert os.listdir(base / "42") == []


def test_an_unknown_format_is_refused(talk: Talk, base: Path) -> None:
    one = talk(format="vmdk")
    assert one.begin("A").kind == Refused.kind
    assert one.clone("A").kind == Refused.kind
    assert os.listdir(base / "42") == []
    end(one)
    assert talk(create=False, action=2).refused(messages.OpenSource("vmdk")).kind == Refused.kind


# --- larger than the image ---------------------------------------------------------------------------------------


def test_a_disk_never_shrinks(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PROGRAM", "/is/not/called")
    one = talk(virtual=MIB)
    one.send(IMAGE)
    assert_tree(one, IMAGE)


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("program_", ["missing", "refuses", "hangs"])
def test_what_cannot_be_resized_is_one_sentence_and_leaves_nothing(
    talk: Talk, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program_: str, sharing: bool
) -> None:
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\n" + {"refuses": "echo no such >&2\nexit 1", "hangs": "sleep 60"}.get(program_, ""))
    script.chmod(0o700)
    monkeypatch.setattr(program, "PROGRAM", str(tmp_path / "no" if program_ == "missing" else script))
    monkeypatch.setattr(runner, "BOUND", 0.1 if program_ == "hangs" else 60.0)
    one = talk(virtual=4 * MIB, files=RecordingFiles(lacking=() if sharing else NO_SHARING))
    answer = one.send(IMAGE, KEY)
    assert isinstance(answer, wire.Failure)
    assert {"missing": "qemu-utils", "refuses": "no such", "hangs": "within"}[program_] in answer.text
    assert str(one.disk) in answer.text and "\n" not in answer.text and "/proc/" not in answer.text
    assert not os.path.lexists(one.disk) and not os.path.lexists(f"{one.disk}.snap")
    if program_ == "refuses":
        assert os.listdir(base / "42") == []


def test_resizing_ends_with_the_front_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o700)
    monkeypatch.setattr(program, "PROGRAM", str(script))
    with open(tmp_path / "file", "w+b") as file, pytest.raises(Superseded):
        program.resize(file.fileno(), MIB, False, "disk.0", lambda: False)


def test_a_file_that_qemu_img_still_writes_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent may be killed meanwhile: its own lock is gone then."""
    script = tmp_path / "qemu"
    script.write_text(f"#!/bin/sh\n: > {tmp_path}/runs\nsleep 60\n")
    script.chmod(0o700)
    monkeypatch.setattr(program, "PROGRAM", str(script))
    directory = os.open(tmp_path, os.O_RDONLY)
    staging = Staging.open(Files(), directory, "file", MIB)
    assert staging is not None
    taken: List[Any] = []

    def alive() -> bool:
        if not (tmp_path / "runs").exists():
            return True
        os.close(staging.fd)
        taken.append(Staging.open(Files(), directory, "file", MIB))
        return False

    with pytest.raises(Superseded):
        program.resize(staging.fd, MIB, False, "disk.0", alive)
    assert taken == [None]
    os.close(directory)


def test_reserving_what_there_is_no_room_for_is_refused(
    talk: Talk, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = talk(virtual=4 * MIB)
    monkeypatch.setattr(module, "room", lambda *_: MIB - 1)
    answer = one.send(IMAGE, sparse=False)
    assert isinstance(answer, wire.Failure) and answer.kind == NoSpace.kind and "needs 1 MiB" in answer.text
    assert os.listdir(base / "42") == []


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(base: Path) -> Path:
    """The VM's directory, with the tree of a disk "QB"."""
    made_ = base / "42"
    (made_ / "disk.0.snap").mkdir(parents=True)
    make_file(made_ / "disk.0.snap" / "2", "QB").chmod(0o640)
    (made_ / "disk.0").symlink_to("disk.0.snap/2")
    return made_


def test_a_tree_is_read_through_its_link(talk: Talk, directory: Path) -> None:
    one = talk(create=False)
    assert one.ask(messages.OpenSource("qcow2")) == messages.Source(2 * CHUNK, 2 * CHUNK, 0o640)
    page = one.ask(messages.Scan(0, 2, CHUNK), messages.Offer)
    assert page.digests == manifest_of("QB").digests
    assert one.ask(messages.CloseSource()) == wire.Done()
    assert sorted(os.listdir(directory)) == ["disk.0", "disk.0.snap"]


def test_a_flat_disk_as_ssh_leaves_it_is_read(talk: Talk, directory: Path) -> None:
    os.rename(directory / "disk.0.snap" / "2", directory / "disk.0")
    os.rmdir(directory / "disk.0.snap")
    talk(create=False).ask(messages.OpenSource("qcow2"), messages.Source)


def test_a_tree_is_no_raw_disk(talk: Talk, directory: Path) -> None:
    assert talk(create=False).refused(messages.OpenSource("raw")).kind == Refused.kind


NOT_READ = {
    "snapshots": "has snapshots",
    "backing": "several files",
    "outside": "outside its own directory",
    "link": "not followed",
    "dangling": "there is no",
    "no tree": "there is no",
    "no qcow2": "no qcow2 image",
    "fifo": "not a regular file",
}


@pytest.mark.parametrize("reason", NOT_READ)
def test_what_is_not_read(talk: Talk, directory: Path, reason: str) -> None:
    active = directory / "disk.0.snap" / "2"
    if reason == "snapshots":
        make_file(directory / "disk.0.snap" / "0", "C")
    elif reason in ("backing", "outside"):
        active.write_bytes(qcow2_header(backing=b"0" if reason == "backing" else b"../../43/disk.0"))
    elif reason == "link":
        (directory / "disk.0").unlink()
        (directory / "disk.0").symlink_to("../43/disk.0")
    elif reason == "dangling":
        active.unlink()
    elif reason == "no tree":
        active.unlink()
        (directory / "disk.0.snap").rmdir()
    elif reason == "no qcow2":
        active.write_bytes(b"#!/bin/sh")
    else:
        active.unlink()
        os.mkfifo(active)
    failure = talk(create=False).refused(messages.OpenSource("qcow2"))
    assert failure.kind == Refused.kind and NOT_READ[reason] in failure.text


def test_what_was_cut_off_between_two_renames_is_undone_before_it_is_read(talk: Talk, directory: Path) -> None:
    os.rename(directory / "disk.0.snap", directory / aside_name("disk.0"))
    one = talk(create=False)
    assert one.ask(messages.OpenSource("qcow2"), messages.Source).size == 2 * CHUNK
    assert sorted(os.listdir(directory)) == ["disk.0", "disk.0.snap"]


def test_a_full_disk_leaves_nothing(talk: Talk, base: Path) -> None:
    files = RecordingFiles(lacking=NO_SHARING)
    one = talk(files=files)
    one.begin("Q")
    files.failing["allocate"] = errno.ENOSPC
    failure = one.refused(messages.Offer.make(0, manifest_of("Q").digests, [(0, CHUNK)]))
    assert failure.kind == NoSpace.kind
    assert os.listdir(base / "42") == []


def test_an_error_has_its_sentence() -> None:
    with pytest.raises(FastcopyError, match="use raw or qcow2"):
        module.check_format("vmdk\n" * 100)
