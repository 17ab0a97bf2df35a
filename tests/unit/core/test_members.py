"""A tree of several files gets its name: what a cut between two steps leaves, and who finishes it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Dict

import pytest

from tests.support import RecordingFiles, keep, make_file, qcow2_header
from tm_fastcopy.core.chain import check_whole, list_members, read_chain
from tm_fastcopy.core.errors import Refused, Superseded
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.tree import INTENT, open_staging_tree, publish_members, settle

NEW = {"0": "A", "1": "B", "2": "C"}


def lay_out(path: Path, files: Dict[str, str], active: str) -> None:
    (path / "disk.0.snap").mkdir()
    for name, letters in files.items():
        make_file(path / "disk.0.snap" / name, letters)
    (path / "disk.0").symlink_to(f"disk.0.snap/{active}")


def stage(path: Path, files: Files) -> tuple[int, int]:
    parent = keep(os.open(path, os.O_RDONLY))
    tree = keep(open_staging_tree(files, parent, "disk.0", list(NEW)))
    for name, letters in NEW.items():
        make_file(path / ".disk.0.snap.fastcopy.part" / name, letters)
    return parent, tree


def found(path: Path) -> Dict[str, str]:
    """The files of the tree, and what the link says."""
    tree = path / "disk.0.snap"
    there = {name: (tree / name).stat().st_size for name in os.listdir(tree)}
    return {**{name: str(size) for name, size in there.items()}, "->": os.readlink(path / "disk.0")}


@pytest.mark.parametrize("lacking", [(), ("exchange",)], ids=["exchange", "none"])
@pytest.mark.parametrize("before", ["tree", "flat", "nothing"])
def test_a_tree_takes_its_place(tmp_path: Path, before: str, lacking: tuple[str, ...]) -> None:
    if before == "tree":
        lay_out(tmp_path, {"0": "XX", "5": "YY"}, "0")
    elif before == "flat":
        make_file(tmp_path / "disk.0", "XX")
    files = RecordingFiles(lacking=lacking)
    publish_members(files, *stage(tmp_path, files), "disk.0", str(tmp_path / "disk.0"), "2")
    assert found(tmp_path) == {"0": "65536", "1": "65536", "2": "65536", "->": "disk.0.snap/2"}
    assert sorted(os.listdir(tmp_path)) == ["disk.0", "disk.0.snap"]


@pytest.mark.parametrize("lacking", [(), ("exchange",)], ids=["exchange", "none"])
def test_a_link_that_was_not_renamed_follows(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    """Its old number is there in the new tree, as one of the snapshots."""
    lay_out(tmp_path, {"0": "XX"}, "0")

    class Cut(RecordingFiles):
        def rename(self, directory: int, old: str, new: str) -> None:
            if new == "disk.0":
                raise OSError(errno.EIO, "cut")
            super().rename(directory, old, new)

    files = Cut(lacking=lacking)
    parent, tree = stage(tmp_path, files)
    with pytest.raises(OSError, match="cut"):
        publish_members(files, parent, tree, "disk.0", str(tmp_path / "disk.0"), "2")
    assert os.readlink(tmp_path / "disk.0") == "disk.0.snap/0"
    settle(Files(), parent, "disk.0")
    assert found(tmp_path)["->"] == "disk.0.snap/2"
    assert INTENT not in os.listdir(tmp_path / "disk.0.snap")


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("lacking", [(), ("exchange",)], ids=["exchange", "none"])
def test_a_raw_disk_stays_itself_when_its_snapshots_are_replaced(
    tmp_path: Path, lacking: tuple[str, ...], stale: bool
) -> None:
    """Cut off at any step, and settled: the disk is a file, and never a link to one of its snapshots.  *stale*: a link
    is still staged from before, when it was a qcow2 disk."""

    class Cut(RecordingFiles):
        left = 100

        def _step(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, "cut")

        def rename(self, directory: int, old: str, new: str) -> None:
            self._step()
            super().rename(directory, old, new)

        def exchange(self, directory: int, one: str, other: str) -> bool:
            self._step()
            return super().exchange(directory, one, other)

        def unlink(self, directory: int, name: str) -> None:
            self._step()
            super().unlink(directory, name)

        def sync_directory(self, directory: int) -> None:
            self._step()
            super().sync_directory(directory)

    cut = 0
    for steps in range(100):
        place = tmp_path / str(steps)
        (place / "disk.0.snap").mkdir(parents=True)
        make_file(place / "disk.0.snap" / "0", "XX")
        make_file(place / "disk.0", "RAW")
        files = Cut(lacking=lacking)
        parent, tree = stage(place, files)
        if stale:
            (place / ".disk.0.fastcopy.part").symlink_to("disk.0.snap/0")
        files.left = steps
        try:
            publish_members(files, parent, tree, "disk.0", str(place / "disk.0"), "")
        except OSError:
            cut += 1
        settle(Files(), parent, "disk.0")
        assert not (place / "disk.0").is_symlink(), steps
        assert (place / "disk.0").stat().st_size == 3 * 65536
        assert (place / "disk.0.snap" / "0").stat().st_size in (65536, 2 * 65536)
        if cut == steps:  # none was left to cut
            break
    else:
        raise AssertionError("it never came to its end")


def test_an_intent_from_before_is_not_followed(tmp_path: Path) -> None:
    """Left by a cut after the link was renamed; a snapshot has been made since, and the next exchange is cut before."""
    lay_out(tmp_path, {"0": "XX", "2": "YY", "3": "ZZ"}, "3")
    (tmp_path / "disk.0.snap" / INTENT).write_text("2")

    class Cut(RecordingFiles):
        def exchange(self, directory: int, one: str, other: str) -> bool:
            raise OSError(errno.EIO, "cut")

    files = Cut()
    parent, tree = stage(tmp_path, files)
    with pytest.raises(OSError, match="cut"):
        publish_members(files, parent, tree, "disk.0", str(tmp_path / "disk.0"), "2")
    assert os.path.lexists(tmp_path / ".disk.0.fastcopy.part")
    settle(Files(), parent, "disk.0")
    assert found(tmp_path) == {"0": "131072", "2": "131072", "3": "131072", "->": "disk.0.snap/3"}


def test_a_tree_that_was_taken_away_is_not_published(tmp_path: Path) -> None:
    files = Files()
    parent, tree = stage(tmp_path, files)
    os.rename(tmp_path / ".disk.0.snap.fastcopy.part", tmp_path / "elsewhere")
    with pytest.raises(Superseded):
        publish_members(files, parent, tree, "disk.0", str(tmp_path / "disk.0"), "2")


def test_only_what_is_still_staged_is_resumed(tmp_path: Path) -> None:
    parent, _ = stage(tmp_path, Files())
    staging = tmp_path / ".disk.0.snap.fastcopy.part"
    for name in (".1.fastcopy.part", ".9.fastcopy.part", INTENT):
        (staging / name).write_text("x")
    keep(open_staging_tree(Files(), parent, "disk.0", list(NEW)))
    assert os.listdir(staging) == [".1.fastcopy.part"]


def test_a_chain_is_read_from_its_headers(tmp_path: Path) -> None:
    for name, backing in (("0", b""), ("1", b"0"), ("2", b"1"), ("3", b"0")):
        (tmp_path / name).write_bytes(qcow2_header(backing=backing))
    (tmp_path / "7.current").write_text("/some/where/disk.0.snap/1\n")
    (tmp_path / "disk.0.snap").symlink_to(".")
    tree = keep(os.open(tmp_path, os.O_RDONLY))
    chain = read_chain(tree, "x")
    assert (chain.children("0"), chain.children("2")) == (["1", "3"], [])
    assert (chain.file_of(7), chain.file_of(2), chain.file_of(9)) == ("1", "2", "9")
    assert list_members(tree, "x") == ["0", "1", "2", "3", "7.current"]
    check_whole(tree, "2", "x")
    with pytest.raises(Refused, match="does not hold 4"):
        check_whole(tree, "4", "x")
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(Refused, match=r"lost\+found"):
        list_members(tree, "x")


@pytest.mark.parametrize("backing", [b"/etc/passwd", b"../0", b"disk.0.snap/0", b"json:{}", b"9", b"01x"])
def test_a_name_that_leads_out_of_the_tree(tmp_path: Path, backing: bytes) -> None:
    for name, below in (("0", b""), ("1", backing)):
        (tmp_path / name).write_bytes(qcow2_header(backing=below))
    with pytest.raises(Refused, match="refused"):
        read_chain(keep(os.open(tmp_path, os.O_RDONLY)), "x")
