"""The tree of a qcow2 disk: which link is followed, and how a tree gets its name, step by step."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest

from tests.support import RecordingFiles, content, keep, make_file, manifest_of
from tm_fastcopy.core.errors import Refused, Superseded
from tm_fastcopy.core.files import Files, lock
from tm_fastcopy.core.publish import Staged, staging_name
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.core.tree import (
    aside_name,
    check_alone,
    discard_staged,
    discard_tree,
    find_active,
    open_staging_tree,
    publish_tree,
    settle,
)

FINAL, SNAP = "disk.0", "disk.0.snap"
TREE, ASIDE, LINK = staging_name(SNAP), aside_name(FINAL), staging_name(FINAL)


class Place:
    """A VM's directory with a file "AB" staged for its disk; what stood there before is a tree, a flat file, or
    nothing.
    """

    def __init__(self, path: Path, before: str = "nothing") -> None:
        self.path = path
        self.parent = keep(os.open(path, os.O_RDONLY))
        lay_out(path, before)
        self.stage(Files())

    def stage(self, files: Files) -> None:
        self.tree = keep(open_staging_tree(files, self.parent, FINAL))
        file = self.path / TREE / staging_name("0")
        if not file.exists():
            make_file(file, "AB")
        self.fd = keep(os.open(file, os.O_RDWR))
        self.staged = Staged(self.tree, file.name, self.fd, manifest_of("AB").id)

    def publish(self, files: Files, look: Callable[[], None] = lambda: None) -> Receipt:
        return publish_tree(files, self.parent, self.staged, FINAL, str(self.path / FINAL), 0o640, look)

    def names(self) -> List[str]:
        return sorted(os.listdir(self.path))

    def content(self) -> str:
        """What a reader finds who goes through the layout as mvds does."""
        try:
            place, name, _ = find_active(self.parent, FINAL, FINAL)
        except FileNotFoundError:
            return "none"
        try:
            with open(name, "rb", opener=lambda n, flags: os.open(n, flags | os.O_NOFOLLOW, dir_fd=place)) as file:
                found = file.read()
        except FileNotFoundError:
            return "none"
        finally:
            os.close(place)
        return {content("AB"): "new", content("X"): "old"}.get(found, "neither")

    def assert_published(self) -> None:
        assert self.names() == [FINAL, SNAP]
        assert os.readlink(self.path / FINAL) == f"{SNAP}/0"
        assert os.listdir(self.path / SNAP) == ["0"]
        assert self.content() == "new"


def lay_out(path: Path, before: str) -> None:
    """"nothing", "flat", or a tree "N" or "N+" whose active file is N, with others beside it."""
    if before == "nothing":
        return
    if before == "flat":
        make_file(path / FINAL, "X")
        return
    (path / SNAP).mkdir()
    make_file(path / SNAP / before.rstrip("+"), "X")
    if before.endswith("+"):
        for number in "01234":
            if number != before[0]:
                make_file(path / SNAP / number, "C")
    (path / FINAL).symlink_to(f"{SNAP}/{before.rstrip('+')}")


BEFORE = ["nothing", "flat", "0", "2", "0+", "2+"]


@pytest.fixture(params=BEFORE)
def place(request: Any, tmp_path: Path) -> Place:
    return Place(tmp_path, request.param)


@pytest.mark.parametrize("lacking", [(), ("exchange",)])
def test_published_in_the_layout(place: Place, lacking: Any) -> None:
    receipt = place.publish(RecordingFiles(lacking=lacking))
    place.assert_published()
    status = (place.path / SNAP / "0").stat()
    assert status.st_mode & 0o777 == 0o640
    assert (receipt.path, receipt.inode) == (str(place.path / SNAP / "0"), status.st_ino)
    receipt.confirm(place.tree)


def test_write_order_of_a_first_tree(tmp_path: Path) -> None:
    files = RecordingFiles()
    Place(tmp_path).publish(files)
    assert [(call[0], *call[2:]) for call in files.details] == [
        ("chmod", 0o640),
        ("sync",),
        ("rename", staging_name("0"), "0"),
        ("sync_directory",),
        ("unlink", LINK),
        ("make_link", LINK, f"{SNAP}/0"),
        ("sync_directory",),
        ("rename", TREE, SNAP),
        ("rename", LINK, FINAL),
        ("sync_directory",),
    ]


def test_write_order_over_an_old_tree(tmp_path: Path) -> None:
    files = RecordingFiles()
    Place(tmp_path, "2").publish(files)
    calls = [call[0] for call in files.details]
    after = calls[calls.index("exchange") :]
    assert after == ["exchange", "sync_directory", "rename", "sync_directory", "unlink", "remove_directory"]


def test_write_order_where_names_cannot_be_exchanged(tmp_path: Path) -> None:
    files = RecordingFiles(lacking=("exchange",))
    Place(tmp_path, "0").publish(files)
    details = [(call[0], *call[2:]) for call in files.details]
    at = details.index(("exchange", TREE, SNAP))
    assert details[at + 1 : at + 7] == [
        ("rename", SNAP, ASIDE),
        ("sync_directory",),
        ("rename", TREE, SNAP),
        ("sync_directory",),
        ("rename", LINK, FINAL),
        ("sync_directory",),
    ]


class Stopping(Files):
    """Every change up to the one with this number is made; the machine stops there."""

    class Stopped(BaseException):
        """The end."""

    def __init__(self, after: Optional[int] = None, lacking: str = "") -> None:
        self.after, self.made, self.lacking = after, 0, lacking

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name not in vars(Files):
            return found

        def change(*arguments: Any, **named: Any) -> Any:
            if self.made == self.after:
                raise Stopping.Stopped
            self.made += 1
            return False if name == self.lacking else found(*arguments, **named)

        return change


def stops(before: str, lacking: str, tmp_path: Path) -> int:
    files = Stopping(lacking=lacking)
    directory = tmp_path / "count"
    directory.mkdir()
    Place(directory, before).publish(files)
    return files.made


@pytest.mark.parametrize("lacking", ["", "exchange"])
@pytest.mark.parametrize("before", BEFORE)
def test_stopped_at_every_step_and_repeated(tmp_path: Path, before: str, lacking: str) -> None:
    allowed: Dict[str, set[str]] = {"nothing": {"none", "new"}, "flat": {"old", "new"}}
    for step in range(stops(before, lacking, tmp_path)):
        directory = tmp_path / str(step)
        directory.mkdir()
        place = Place(directory, before)
        with pytest.raises(Stopping.Stopped):
            place.publish(Stopping(step, lacking))
        # An old tree with another active number has no file for its old link once the new tree has the name.
        assert place.content() in allowed.get(before, {"old", "new", "none"}), step
        if before[0] == "0" and not lacking:
            assert place.content() != "none", step
        for twice in (1, 2):  # the settling itself may be cut off as well
            for inner in range(20):
                try:
                    settle(Stopping(inner, lacking), place.parent, FINAL)
                    break
                except Stopping.Stopped:
                    assert place.content() in {"old", "new", "none"}, (step, twice, inner)
        assert not (directory / ASIDE).exists()
        assert place.content() in allowed.get(before, {"old", "new", "none"}), step
        if before[0] == "0":
            assert place.content() != "none", step
        place.stage(Stopping(lacking=lacking))
        place.publish(Stopping(lacking=lacking))
        place.assert_published()


def test_an_exchange_that_was_cut_off_at_its_end_does_not_stop_the_next(tmp_path: Path) -> None:
    """Two old trees would need the name aside at once."""
    lay_out(tmp_path, "0")
    (tmp_path / ASIDE).mkdir()
    make_file(tmp_path / ASIDE / "0", "C")
    place = Place(tmp_path)
    place.publish(RecordingFiles(lacking=("exchange",)))
    place.assert_published()


def test_a_snapshot_that_was_made_since_stays_active_when_an_exchange_is_finished(tmp_path: Path) -> None:
    """Only the old tree's removal was missing, and the VM has run."""
    place = Place(tmp_path)
    place.publish(Files())
    (tmp_path / ASIDE).mkdir()
    make_file(tmp_path / ASIDE / "0", "C")
    make_file(tmp_path / SNAP / "1", "X")
    (tmp_path / FINAL).unlink()
    (tmp_path / FINAL).symlink_to(f"{SNAP}/1")
    settle(Files(), place.parent, FINAL)
    assert place.content() == "old" and place.names() == [FINAL, SNAP]
    assert sorted(os.listdir(tmp_path / SNAP)) == ["0", "1"]


@pytest.mark.parametrize("step", ["chmod", "sync", "rename", "sync_directory", "make_link", "exchange"])
def test_a_step_that_fails_leaves_the_old_disk(tmp_path: Path, step: str) -> None:
    place = Place(tmp_path, "2+")
    with pytest.raises(OSError):
        place.publish(RecordingFiles(failing={step: errno.EIO}))
    assert place.content() == "old"
    assert sorted(os.listdir(tmp_path / SNAP)) == list("01234")


def test_the_old_tree_stays_until_the_receipt_is_there(tmp_path: Path) -> None:
    place = Place(tmp_path, "2+")

    class Failing(Files):
        synced = 0

        def sync_directory(self, directory: int) -> None:
            self.synced += 1
            if self.synced == 4:
                raise OSError(errno.EIO, "broken")
            super().sync_directory(directory)

    with pytest.raises(OSError):
        place.publish(Failing())
    assert sorted(os.listdir(tmp_path / TREE)) == list("01234")


@pytest.mark.parametrize("at", [1, 2])
def test_both_looks_stop_it_before_anything_has_a_name(place: Place, at: int) -> None:
    before, looks = place.content(), []

    def look() -> None:
        looks.append(1)
        if len(looks) == at:
            raise Superseded("a newer action")

    files = RecordingFiles()
    with pytest.raises(Superseded):
        place.publish(files, look)
    assert place.content() == before
    assert "exchange" not in files.calls and not (place.path / ASIDE).exists()


def test_the_last_look_comes_right_before_the_exchange(tmp_path: Path) -> None:
    files = RecordingFiles()
    Place(tmp_path, "0").publish(files, lambda: files.calls.append("look"))
    assert files.calls[files.calls.index("sync") + 1] == "look"
    assert files.calls[files.calls.index("exchange") - 1] == "look"


def test_a_staging_tree_that_is_another_by_now_gets_no_name(tmp_path: Path) -> None:
    place = Place(tmp_path, "0")

    def steal() -> None:
        if (tmp_path / LINK).is_symlink():
            os.rename(tmp_path / TREE, tmp_path / "stolen")
            (tmp_path / TREE).mkdir()

    with pytest.raises(Superseded):
        place.publish(Files(), steal)
    assert place.content() == "old"


def test_the_old_active_file_is_never_resumed_as_a_staging_file(tmp_path: Path) -> None:
    """Something may still have it open, and would write into the new disk."""
    place = Place(tmp_path, "0")
    os.unlink(tmp_path / TREE / staging_name("0"))
    os.rmdir(tmp_path / TREE)
    os.rename(tmp_path / SNAP, tmp_path / TREE)
    tree = open_staging_tree(Files(), place.parent, FINAL)
    assert os.listdir(tree) == []
    os.close(tree)


def test_a_staging_file_is_kept(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert os.listdir(open_staging_tree(Files(), place.parent, FINAL)) == [staging_name("0")]


@pytest.mark.parametrize("planted", ["file", "link", "deep", "link inside"])
def test_what_is_planted_where_the_tree_is_staged_is_removed_and_not_followed(tmp_path: Path, planted: str) -> None:
    victim, directory = tmp_path / "victim", tmp_path / "vm"
    victim.mkdir()
    (victim / "precious").write_text("x")
    directory.mkdir()
    if planted == "file":
        (directory / TREE).write_text("")
    elif planted == "link":
        (directory / TREE).symlink_to(victim)
    elif planted == "deep":
        (directory / TREE / "a" / "b").mkdir(parents=True)
        (directory / TREE / "a" / "b" / "c").write_text("x")
    else:
        (directory / TREE).mkdir()
        (directory / TREE / "away").symlink_to(victim)
    place = Place(directory)
    place.publish(Files())
    place.assert_published()
    assert (victim / "precious").exists()


def test_a_tree_is_not_deleted_without_a_receipt_that_holds(tmp_path: Path) -> None:
    place = Place(tmp_path)
    receipt = place.publish(Files())
    (tmp_path / TREE).mkdir()
    with pytest.raises(Refused, match="own receipt"):
        discard_tree(Files(), place.parent, SNAP, receipt, place.tree)
    (tmp_path / SNAP / "0").unlink()
    with pytest.raises(Refused, match="no longer the file"):
        discard_tree(Files(), place.parent, TREE, receipt, place.tree)
    assert (tmp_path / TREE).is_dir()


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "disk.1.snap/0",
        "disk.0.snap/../0",
        "disk.0.snap//0",
        "./disk.0.snap/0",
        "disk.0.snap/x",
        "disk.0.snap/0/1",
        "disk.0.snap/",
        "disk.0.snap",
        "diskx0.snap/0",
        "disk.0.snap/1234567890",
        "other",
        "disk.0.snap/0\n",
    ],
)
def test_only_the_layouts_own_link_is_followed(tmp_path: Path, target: str) -> None:
    lay_out(tmp_path, "0")
    (tmp_path / FINAL).unlink()
    os.symlink(target, tmp_path / FINAL)
    with pytest.raises(Refused, match="not followed"):
        find_active(keep(os.open(tmp_path, os.O_RDONLY)), FINAL, "the disk")


def test_no_link_behind_the_layouts_own_is_followed(tmp_path: Path) -> None:
    lay_out(tmp_path, "0")
    os.rename(tmp_path / SNAP, tmp_path / "elsewhere")
    os.symlink("elsewhere", tmp_path / SNAP)
    with pytest.raises(Refused):
        find_active(keep(os.open(tmp_path, os.O_RDONLY)), FINAL, "the disk")


def check(path: Path, name: str = FINAL) -> None:
    parent = keep(os.open(path, os.O_RDONLY))
    active = find_active(parent, name, "the disk")
    keep(active[0])
    check_alone(parent, name, active, "the disk")


def test_an_image_whose_name_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "0.snap").mkdir()
    make_file(tmp_path / "0.snap" / "0", "X")
    (tmp_path / "0").symlink_to("0.snap/0")
    check(tmp_path, "0")
    (tmp_path / "0").unlink()
    make_file(tmp_path / "0", "C")
    with pytest.raises(Refused, match="has snapshots"):
        check(tmp_path, "0")


@pytest.mark.parametrize("before", ["2+", "0+"])
def test_what_lies_beside_the_active_file_is_snapshots(tmp_path: Path, before: str) -> None:
    lay_out(tmp_path, before)
    with pytest.raises(Refused, match="has snapshots"):
        check(tmp_path)


def test_a_flat_disk_with_a_tree_beside_it_has_snapshots(tmp_path: Path) -> None:
    lay_out(tmp_path, "flat")
    (tmp_path / SNAP).mkdir()
    check(tmp_path)
    make_file(tmp_path / SNAP / "0", "C")
    with pytest.raises(Refused, match="has snapshots"):
        check(tmp_path)


def test_the_stock_drivers_link_of_a_tree_to_itself_is_no_snapshot(tmp_path: Path) -> None:
    lay_out(tmp_path, "0")
    os.symlink(".", tmp_path / SNAP / SNAP)
    check(tmp_path)


def test_what_an_mvds_that_was_cut_off_left_in_a_tree_is_no_snapshot(tmp_path: Path) -> None:
    lay_out(tmp_path, "0")
    make_file(tmp_path / SNAP / staging_name("0"), "C")
    check(tmp_path)


# --- discarding what is staged -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["", "exchange"])
@pytest.mark.parametrize("before", BEFORE)
def test_after_a_stop_at_any_step_what_is_staged_goes_unless_it_is_still_needed(
    tmp_path: Path, before: str, lacking: str
) -> None:
    refused = 0
    for step in range(stops(before, lacking, tmp_path)):
        directory = tmp_path / str(step)
        directory.mkdir()
        place = Place(directory, before)
        with pytest.raises(Stopping.Stopped):
            place.publish(Stopping(step, lacking))
        seen, names = place.content(), place.names()
        try:
            discard_staged(Files(), place.parent, FINAL)
            assert [name for name in place.names() if name.startswith(".")] == [], step
            assert seen in ("new", "old" if before != "nothing" else "none"), step
        except Refused as error:
            refused += 1
            assert "repeat it" in str(error)
            assert place.names() == names, step
        assert place.content() == seen, step
        place.stage(Files())
        place.publish(Files())
        place.assert_published()
    assert 0 < refused < stops(before, lacking, tmp_path / "0")


def test_where_no_guard_is_held_what_another_is_at_stays(place: Place) -> None:
    held = keep(os.open(place.path / TREE, os.O_RDONLY))
    assert lock(held)
    assert not discard_staged(Files(), place.parent, FINAL, alone=True)
    assert TREE in place.names()
    assert discard_staged(Files(), place.parent, FINAL)  # under a guard that is nobody else's
    assert [name for name in place.names() if name.startswith(".")] == []
