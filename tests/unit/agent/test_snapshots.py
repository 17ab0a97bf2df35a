"""Snapshots of a disk that does not run: copies beside a flat one, overlays in a tree, made by the real qemu-img.

What the stock `local` driver leaves is written down here as `Shown`: each file of the tree, on what it rests, and what
its guest sees; tests/e2e/test_snapshots.py holds both drivers side by side.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

from tests.support import NO_SHARING, RecordingFiles, make_encrypted, qemu_img
from tm_fastcopy.agent import copies, overlays
from tm_fastcopy.agent import program as runner
from tm_fastcopy.agent import qemu_img as program
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.agent.session import Session
from tm_fastcopy.core import chain, messages, wire
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.snapshot_messages import SnapCreate, SnapDelete, Snapped, SnapRevert

MIB = 1024 * 1024
SIZE = 4 * MIB
_numbers = iter(range(1, 10_000))

Shown = Dict[str, Tuple[Optional[str], str]]
"""By name, of the files in a tree: the file below (None: it rests on nothing), and `seen`."""


@pytest.fixture(params=["shared", "copied"])
def files(request: pytest.FixtureRequest) -> RecordingFiles:
    """The file system as it is, and as one that cannot share blocks."""
    return RecordingFiles(lacking=() if request.param == "shared" else NO_SHARING)


@pytest.fixture
def vm(base: Path) -> Path:
    """A VM's directory."""
    directory = base / "42"
    directory.mkdir()
    return directory


@pytest.fixture
def tree(vm: Path) -> Path:
    """A qcow2 disk in a tree, in which a guest has written "a"."""
    made = vm / "disk.0.snap"
    made.mkdir()
    qemu_img("create", "-q", "-f", "qcow2", made / "0", str(SIZE))
    (made / "0").chmod(0o640)
    (vm / "disk.0").symlink_to("disk.0.snap/0")
    put(vm, "a")
    return made


def active(vm: Path) -> Path:
    """The file that the disk's link leads to: a name in it is one beside that file, not beside the link."""
    return vm / os.readlink(vm / "disk.0")


def put(vm: Path, letter: str) -> None:
    """Write a letter at its own place, as the guest of disk 0 would; and at a place that all share."""
    for at in (ord(letter) - ord("a"), 15):
        command = f"write -q -P {ord(letter)} {at * 128}k 64k"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, active(vm)], check=True, timeout=60)


def seen(file: Path) -> str:
    """The letters that a guest finds at their own places, and then the one at the common place."""
    raw = file.parent.parent / ".seen"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", file, raw)
    data = raw.read_bytes()
    raw.unlink()
    return "".join(chr(data[at * 128 * 1024]) for at in range(16)).replace("\0", "")


def shown(tree: Path) -> Shown:
    """See `Shown`."""
    found: Shown = {}
    for path in sorted(tree.iterdir()):
        if path.name.isdigit():
            qemu_img("check", "-q", "-f", "qcow2", path)
            about = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", path))
            assert about.get("backing-filename-format", "qcow2") == "qcow2"
            found[path.name] = about.get("backing-filename"), seen(path)
        else:
            found[path.name] = None, path.read_text().split("/")[-1].strip()
    return found


def ask(base: Path, wish: wire.Message, files: Optional[Files] = None, alive: Callable[[], bool] = lambda: True) -> Any:
    """One conversation about disk 0 of VM 42."""
    door = LaneDoor()
    session = Session(files or Files(), alive, door)
    try:
        opened = session.handle(messages.Open(str(base), 42, "disk.0", 0, next(_numbers), False, "fastcopy"))
        assert isinstance(opened, messages.Opened), opened
        return session.handle(wish)
    finally:
        session.end()
        door.remove()


def create(base: Path, number: int, files: Optional[Files] = None, format: str = "qcow2", share: bool = True) -> Any:
    return ask(base, SnapCreate(number, format, share), files)


def revert(
    base: Path, number: int, files: Optional[Files] = None, format: str = "qcow2", sparse: bool = True
) -> Any:
    return ask(base, SnapRevert(number, format, True, sparse), files)


def delete(base: Path, number: int, files: Optional[Files] = None, format: str = "qcow2") -> Any:
    return ask(base, SnapDelete(number, format, True, "", ""), files)


def refused(answer: Any, *words: str) -> None:
    """Assert that it is one sentence with these words in it."""
    assert isinstance(answer, wire.Failure), answer
    assert "\n" not in answer.text
    for word in words:
        assert word in answer.text, answer.text


def state(vm: Path) -> Dict[str, Any]:
    """All names below the VM's directory, and what makes a file another one."""
    return {
        str(path.relative_to(vm)): (path.lstat().st_ino, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(vm.rglob("*"))
        if not path.is_dir() or path.is_symlink()
    }


# --- overlays ----------------------------------------------------------------------------------------------------


def test_a_life_with_snapshots(base: Path, vm: Path, tree: Path, files: RecordingFiles) -> None:
    assert isinstance(create(base, 0, files), Snapped)
    assert os.readlink(vm / "disk.0") == "disk.0.snap/1"
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "aa")}
    assert oct((tree / "1").stat().st_mode & 0o777) == oct(0o640)
    put(vm, "b")
    assert isinstance(create(base, 1, files), Snapped)
    put(vm, "c")
    assert os.readlink(vm / "disk.0") == "disk.0.snap/2"
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2": ("1", "abcc")}

    assert isinstance(revert(base, 0, files), Snapped)
    assert os.readlink(vm / "disk.0") == "disk.0.snap/2"
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2": ("0", "aa")}
    put(vm, "d")
    assert isinstance(create(base, 2, files), Snapped)
    put(vm, "e")
    branched: Shown = {"0": (None, "aa"), "1": ("0", "abb"), "2": ("0", "add"), "3": ("2", "adee")}
    assert shown(tree) == branched

    assert isinstance(delete(base, 1, files), Snapped)  # nothing rests on it
    del branched["1"]
    assert shown(tree) == branched
    assert isinstance(delete(base, 2, files), Snapped)  # the disk rests on it
    assert shown(tree) == {"0": (None, "aa"), "3": ("0", "adee")}
    assert isinstance(delete(base, 0, files), Snapped)  # the first
    assert shown(tree) == {"3": (None, "adee")}
    assert os.readlink(vm / "disk.0") == "disk.0.snap/3"
    assert sorted(os.listdir(vm)) == ["disk.0", "disk.0.snap"]


def test_deleting_one_on_which_several_rest(base: Path, vm: Path, tree: Path, files: RecordingFiles) -> None:
    create(base, 0, files)
    put(vm, "b")
    create(base, 1, files)
    revert(base, 0, files)
    put(vm, "c")
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2": ("0", "acc")}
    assert isinstance(delete(base, 0, files), Snapped)
    assert shown(tree) == {"1": (None, "abb"), "2": (None, "acc")}


def test_every_action_can_be_repeated(base: Path, vm: Path, tree: Path) -> None:
    for _ in range(2):
        assert isinstance(create(base, 0), Snapped)
        assert shown(tree) == {"0": (None, "aa"), "1": ("0", "aa")}
    put(vm, "b")
    create(base, 1)
    put(vm, "c")
    for _ in range(2):
        assert isinstance(revert(base, 0), Snapped)
        assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2": ("0", "aa")}
    for _ in range(2):
        assert isinstance(delete(base, 1), Snapped)
        assert shown(tree) == {"0": (None, "aa"), "2": ("0", "aa")}


def test_what_was_written_is_never_taken_for_an_earlier_attempt(base: Path, vm: Path, tree: Path) -> None:
    create(base, 0)
    put(vm, "b")
    before = state(vm)
    refused(create(base, 0), "disk.0.snap/", "in use already")
    assert state(vm) == before


def test_what_an_attempt_left_without_a_link_is_replaced(base: Path, vm: Path, tree: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "0", "1"], cwd=tree, check=True)
    (tree / ".1.fastcopy.part").write_text("half")
    (tree / ".7.fastcopy.part").write_text("half")
    assert isinstance(create(base, 0), Snapped)
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "aa")}


def test_a_number_that_was_passed_over(base: Path, vm: Path, tree: Path) -> None:
    """oned counts on when a snapshot has failed: the file has another number than the snapshot then."""
    create(base, 0)
    put(vm, "b")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "1", "2"], cwd=tree, check=True)
    assert isinstance(create(base, 2), Snapped)
    put(vm, "c")
    assert os.readlink(vm / "disk.0") == "disk.0.snap/3"
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2.current": (None, "1"), "3": ("1", "abcc")}
    assert isinstance(revert(base, 2), Snapped)
    assert shown(tree)["3"] == ("1", "abb")
    put(vm, "d")
    assert isinstance(delete(base, 2), Snapped)
    assert shown(tree) == {"0": (None, "aa"), "3": ("0", "abdd")}


def test_what_stock_has_merged_under_another_name(base: Path, vm: Path, tree: Path) -> None:
    create(base, 0)
    put(vm, "b")
    create(base, 1)
    put(vm, "c")
    (tree / "5.current").write_text("/some/where/disk.0.snap/1\n")  # two names for one file
    assert isinstance(delete(base, 5), Snapped)
    assert shown(tree) == {"0": (None, "aa"), "2": ("0", "abcc")}


def test_nothing_is_removed_that_another_snapshot_is(base: Path, vm: Path, tree: Path) -> None:
    create(base, 0)
    create(base, 1)
    for number in (5, 6):
        (tree / f"{number}.current").write_text("/some/where/disk.0.snap/1\n")
    assert isinstance(delete(base, 5), Snapped)
    assert sorted(os.listdir(tree)) == ["0", "1", "2", "6.current"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("gone", "no snapshot 7"),
        ("outside", "outside its own directory"),
        ("missing", "not in its own tree"),
        ("raw", "of another format"),
        ("link", "link"),
        ("loop", "rests on itself"),
        ("junk", "no qcow2 image"),
        ("current", "does not name a file"),
    ],
)
def test_what_is_refused_changes_nothing(base: Path, vm: Path, tree: Path, spoil: str, words: str) -> None:
    create(base, 0)
    put(vm, "b")
    create(base, 1)
    rebase = ["rebase", "-u", "-f", "qcow2", "-F", "raw" if spoil == "raw" else "qcow2", "-b"]
    if spoil in ("outside", "missing", "raw", "loop"):
        qemu_img(*rebase, {"outside": "../x", "missing": "9", "raw": "0", "loop": "2"}[spoil], tree / "1")
    elif spoil == "link":
        (tree / "1").unlink()
        (tree / "1").symlink_to("/etc/passwd")
    elif spoil == "junk":
        (tree / "1").write_bytes(b"no image" * 100)
    elif spoil == "current":
        (tree / "1.current").write_text("/etc/passwd")
    before = state(vm)
    number = 7 if spoil == "gone" else 1
    refused(revert(base, number), words, "disk.0")
    if spoil != "gone":
        refused(delete(base, number), words)
        refused(create(base, 2), words)
    assert state(vm) == before


def test_the_disk_itself_is_not_removed(base: Path, vm: Path, tree: Path) -> None:
    create(base, 0)
    before = state(vm)
    refused(delete(base, 1), "is the disk itself")
    refused(revert(base, 1), "no snapshot 1")
    assert state(vm) == before


def test_no_plain_overlay_on_an_encrypted_disk(base: Path, vm: Path, tree: Path) -> None:
    (tree / "0").unlink()
    make_encrypted(tree / "0", str(SIZE))
    before = state(vm)
    refused(create(base, 0), "encrypted", "disk-saveas")
    assert state(vm) == before


def test_too_many_files(base: Path, vm: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chain, overlays):
        monkeypatch.setattr(module, "MAX_FILES", 3)
    create(base, 0)
    create(base, 1)
    before = state(vm)
    refused(create(base, 2), "has 3 files")
    assert state(vm) == before
    (tree / "9").write_bytes((tree / "0").read_bytes())
    refused(create(base, 2), "holds 4 files")


@pytest.mark.parametrize("action", [lambda base: create(base, 1), lambda base: revert(base, 0), lambda base: delete(
    base, 0)], ids=["create", "revert", "delete"])
def test_a_full_file_system_leaves_everything(
    base: Path, vm: Path, tree: Path, action: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    create(base, 0)
    put(vm, "b")
    before, content = state(vm), shown(tree)
    for module in (copies, overlays):
        monkeypatch.setattr(module, "room", lambda *_: 4096)
    answer = action(base)
    assert isinstance(answer, wire.Failure) and answer.kind == "no-space", answer
    assert state(vm) == before and shown(tree) == content


@pytest.mark.parametrize("failing", ["sync", "rename", "sync_directory", "make_link"])
@pytest.mark.parametrize("action", ["create", "revert", "delete"])
def test_a_call_that_fails(base: Path, vm: Path, tree: Path, action: str, failing: str) -> None:
    """Old or new, and never less; then the same action succeeds."""
    create(base, 0)
    put(vm, "b")
    create(base, 1)
    put(vm, "c")
    act: Dict[str, Callable[[Optional[Files]], Any]] = {
        "create": lambda files: create(base, 2, files),
        "revert": lambda files: revert(base, 0, files),
        "delete": lambda files: delete(base, 1, files),
    }
    answer = act[action](RecordingFiles(failing={failing: errno.EIO}))
    assert isinstance(answer, wire.Failure if action == "create" or failing != "make_link" else Snapped), answer
    assert seen(active(vm)) in ({"abcc", "aa"} if action == "revert" else {"abcc"})
    assert seen(tree / "0") == "aa"
    assert isinstance(act[action](None), Snapped)
    assert not [name for name in os.listdir(tree) if name.startswith(".")]
    assert seen(active(vm)) == ("aa" if action == "revert" else "abcc")


@pytest.mark.parametrize("script", ["exit 1", "sleep 60", None], ids=["fails", "hangs", "missing"])
@pytest.mark.parametrize("action", ["create", "revert", "delete"])
def test_a_qemu_img_that_does_not_help(
    base: Path, vm: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str,
    script: Optional[str],
) -> None:
    create(base, 0)
    put(vm, "b")
    before = state(vm)
    if script:
        (tmp_path / "qemu").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "qemu").chmod(0o700)
    monkeypatch.setattr(program, "PROGRAM", str(tmp_path / "qemu"))
    monkeypatch.setattr(runner, "BOUND", 0.2)
    monkeypatch.setattr(program, "LONG", 0.2)
    act = {"create": (create, 1), "revert": (revert, 0), "delete": (delete, 0)}[action]
    refused(act[0](base, act[1]), "disk.0.snap/")
    assert state(vm) == before


def test_a_copy_that_is_not_the_same_is_not_taken(
    base: Path, vm: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A qemu-img that says it has rebased, and has only changed the name: the data would be lost with the snapshot."""
    create(base, 0)
    put(vm, "b")
    (tmp_path / "qemu").write_text('#!/bin/sh\ncase $1 in rebase) shift; exec qemu-img rebase -u "$@";; esac\n'
                                   'exec qemu-img "$@"\n')
    (tmp_path / "qemu").chmod(0o700)
    before = state(vm)
    monkeypatch.setattr(program, "PROGRAM", str(tmp_path / "qemu"))
    refused(delete(base, 0), "so the snapshot is kept")
    assert state(vm) == before


def test_a_front_end_that_is_gone_is_not_worked_for(base: Path, vm: Path, tree: Path) -> None:
    create(base, 0)
    before = state(vm)
    for wish in (SnapCreate(1, "qcow2", True), SnapRevert(0, "qcow2", True, True),
                 SnapDelete(0, "qcow2", True, "", "")):
        refused(ask(base, wish, alive=lambda: False), "front-end went away")
        assert state(vm) == before


# --- copies ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["raw", "qcow2"])
def flat(request: pytest.FixtureRequest, vm: Path) -> Iterator[str]:
    """A disk that is one file; as raw, or as the stock `ssh` driver leaves a qcow2 disk."""
    write_flat(vm, b"one")
    yield request.param


def write_flat(vm: Path, text: bytes) -> None:
    with open(vm / "disk.0", "wb") as file:
        file.truncate(SIZE)
        os.pwrite(file.fileno(), text * 1000, MIB)
    (vm / "disk.0").chmod(0o644)


def texts(vm: Path) -> Dict[str, bytes]:
    """What each file holds where something was written, by name."""
    found = [vm / "disk.0", *sorted((vm / "disk.0.snap").iterdir())]
    assert all(path.stat().st_size == SIZE for path in found)
    return {path.name: path.read_bytes()[MIB : MIB + 3] for path in found}


def test_a_life_with_copies(base: Path, vm: Path, flat: str, files: RecordingFiles) -> None:
    assert isinstance(create(base, 0, files, flat), Snapped)
    write_flat(vm, b"two")
    assert isinstance(create(base, 1, files, flat), Snapped)
    write_flat(vm, b"now")
    assert texts(vm) == {"disk.0": b"now", "0": b"one", "1": b"two"}
    assert (vm / "disk.0.snap/0").stat().st_blocks * 512 < MIB  # holes stay holes
    assert oct((vm / "disk.0.snap").stat().st_mode & 0o777) == oct(0o755)
    for _ in range(2):
        assert isinstance(revert(base, 0, files, flat), Snapped)
        assert texts(vm) == {"disk.0": b"one", "0": b"one", "1": b"two"}
    assert oct((vm / "disk.0").stat().st_mode & 0o777) == oct(0o644)
    for _ in range(2):
        assert isinstance(delete(base, 0, files, flat), Snapped)
        assert texts(vm) == {"disk.0": b"one", "1": b"two"}
    assert sorted(os.listdir(vm)) == ["disk.0", "disk.0.snap"]
    assert not os.path.islink(vm / "disk.0")


def test_a_disk_that_may_not_be_sparse_is_allocated_again(base: Path, vm: Path) -> None:
    write_flat(vm, b"one")
    create(base, 0, format="raw", share=False)
    revert(base, 0, format="raw", sparse=False)
    assert (vm / "disk.0").stat().st_blocks * 512 >= SIZE
    assert texts(vm) == {"disk.0": b"one", "0": b"one"}


def test_going_back_on_a_full_file_system_leaves_the_disk(
    base: Path, vm: Path, flat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect B7 of the stock drivers."""
    create(base, 0, format=flat)
    write_flat(vm, b"now")
    before = state(vm)
    monkeypatch.setattr(copies, "room", lambda *_: 0)
    answer = revert(base, 0, RecordingFiles(lacking=NO_SHARING), flat)
    assert isinstance(answer, wire.Failure) and answer.kind == "no-space"
    assert state(vm) == before and texts(vm) == {"disk.0": b"now", "0": b"one"}
    answer = revert(base, 0, RecordingFiles(failing={"clone": errno.ENOSPC, "copy_range": errno.ENOSPC}), flat)
    assert isinstance(answer, wire.Failure) and answer.kind == "no-space"
    assert state(vm) == before


def test_a_copy_is_read_again(base: Path, vm: Path) -> None:
    """What the device made of it is not what was written."""

    class Rotten(Files):
        def clone(self, target: int, source: int) -> bool:
            return False

        def copy_range(self, target: int, source: int, at: int, length: int, to: int, share: bool = True) -> None:
            super().copy_range(target, source, at, length, to, share)
            os.pwrite(target, b"\xff", to)

    write_flat(vm, b"one")
    refused(create(base, 0, Rotten(), "raw"), "disk.0.snap/0 is not what it was copied from")
    assert os.listdir(vm / "disk.0.snap") == []


def test_a_disk_that_is_written_meanwhile_is_not_kept(base: Path, vm: Path) -> None:
    class Busy(Files):
        def clone(self, target: int, source: int) -> bool:
            os.utime(vm / "disk.0", (1, 1))  # not now: before Linux 6.13 that is 4 ms long
            return super().clone(target, source)

    write_flat(vm, b"one")
    refused(create(base, 0, Busy(), "raw"), "written meanwhile")
    assert os.listdir(vm / "disk.0.snap") == []


def test_what_is_no_snapshot(base: Path, vm: Path, flat: str) -> None:
    refused(revert(base, 0, format=flat), "disk.0.snap")
    assert isinstance(delete(base, 0, format=flat), Snapped)
    create(base, 0, format=flat)
    refused(revert(base, 1, format=flat), "there is no", "disk.0.snap/1")
    (vm / "disk.0.snap/1").symlink_to("/etc/passwd")
    (vm / "disk.0.snap/2").mkdir()
    for number in (1, 2):
        before: List[str] = sorted(os.listdir(vm / "disk.0.snap"))
        assert isinstance(revert(base, number, format=flat), wire.Failure)
        assert isinstance(delete(base, number, format=flat), wire.Failure)
        assert sorted(os.listdir(vm / "disk.0.snap")) == before


def test_a_tree_is_no_raw_disk(base: Path, vm: Path, tree: Path) -> None:
    before = state(vm)
    refused(create(base, 0, format="raw"), "though oned says that it is a raw disk")
    refused(create(base, 0, format="vmdk"), "vmdk")
    assert state(vm) == before


def test_no_disk(base: Path, vm: Path) -> None:
    refused(create(base, 0), "there is no")
    (vm / "disk.0").symlink_to("disk.0.snap/0")
    refused(create(base, 0), "there is no")
    (vm / "disk.0.snap").mkdir()
    refused(create(base, 0), "there is no")
