"""Publish, replace, discard: the order of what is done, and what a failure at each step leaves."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.support import CHUNK, RecordingFiles, content, make_file, manifest_of
from tm_fastcopy.core.errors import Refused, Superseded
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.publish import Staged, discard, is_staging, publish, replace, staging_name
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.core.staging import Staging

FINAL = "disk.0"
STAGING = staging_name(FINAL)


class Place:
    """A directory with a staged file "AB" and, at the final name, an old file "X"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = os.open(path, os.O_RDONLY)
        make_file(path / STAGING, "AB")
        make_file(path / FINAL, "X")
        self.fd = os.open(path / STAGING, os.O_RDWR)
        self.staged = Staged(self.directory, STAGING, self.fd, manifest_of("AB").id)

    def publish(self, files: Files) -> Receipt:
        return publish(files, self.staged, FINAL, str(self.path / FINAL), 0o640)

    def replace(self, files: Files) -> Receipt:
        return replace(files, self.staged, FINAL, str(self.path / FINAL), 0o640)

    def names(self) -> List[str]:
        return sorted(os.listdir(self.path))

    def final(self) -> str:
        """What the final name holds."""
        found = (self.path / FINAL).read_bytes()
        return {content("AB"): "new", content("X"): "old"}.get(found, "neither")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    os.close(made.fd)
    os.close(made.directory)


def test_publish_in_order(place: Place) -> None:
    files = RecordingFiles()
    place.publish(files)
    assert files.calls == ["chmod", "sync", "rename", "sync_directory"]
    assert files.details[1] == ("sync", place.fd)
    assert files.details[-1] == ("sync_directory", place.directory)
    assert (place.names(), place.final()) == ([FINAL], "new")
    assert (place.path / FINAL).stat().st_mode & 0o777 == 0o640


def test_replace_in_order(place: Place) -> None:
    files = RecordingFiles()
    place.replace(files)
    assert files.calls == ["chmod", "sync", "exchange", "sync_directory", "unlink"]
    assert (place.names(), place.final()) == ([FINAL], "new")


def test_replace_where_names_cannot_be_exchanged(place: Place) -> None:
    files = RecordingFiles(lacking=("exchange",))
    place.replace(files)
    assert files.calls == ["chmod", "sync", "exchange", "rename", "sync_directory", "unlink"]
    assert (place.names(), place.final()) == ([FINAL], "new")


def test_replace_where_nothing_has_the_name(place: Place) -> None:
    (place.path / FINAL).unlink()
    place.replace(Files())
    assert (place.names(), place.final()) == ([FINAL], "new")


@pytest.mark.parametrize(
    ("step", "final", "staged_stays"),
    [("chmod", "old", True), ("sync", "old", True), ("rename", "old", True), ("sync_directory", "new", False)],
)
def test_publish_that_fails_half_way(place: Place, step: str, final: str, staged_stays: bool) -> None:
    with pytest.raises(OSError):
        place.publish(RecordingFiles(failing={step: errno.EIO}))
    assert place.final() == final
    assert (STAGING in place.names()) == staged_stays


@pytest.mark.parametrize(
    ("step", "final"),
    [("chmod", "old"), ("sync", "old"), ("exchange", "old"), ("sync_directory", "new"), ("unlink", "new")],
)
def test_replace_that_fails_half_way_has_both_files(place: Place, step: str, final: str) -> None:
    with pytest.raises(OSError):
        place.replace(RecordingFiles(failing={step: errno.EIO}))
    assert place.final() == final
    other = (place.path / STAGING).read_bytes()
    assert other == content("X" if final == "new" else "AB")


def test_the_receipt_speaks_of_the_new_file(place: Place) -> None:
    receipt = place.publish(Files())
    status = (place.path / FINAL).stat()
    assert receipt == Receipt(
        str(place.path / FINAL), manifest_of("AB").id, 2 * CHUNK, status.st_dev, status.st_ino
    )
    receipt.confirm(place.directory)


def test_discard_deletes_what_the_receipt_supersedes(place: Place) -> None:
    receipt = place.publish(Files())
    make_file(place.path / "copy", "AB")
    discard(Files(), place.directory, "copy", receipt)
    assert place.names() == [FINAL]
    discard(Files(), place.directory, "copy", receipt)  # and can be repeated


def test_a_file_is_not_deleted_on_its_own_receipt(place: Place) -> None:
    receipt = place.publish(Files())
    with pytest.raises(Refused, match="its own receipt"):
        discard(Files(), place.directory, FINAL, receipt)
    assert place.names() == [FINAL]


@pytest.mark.parametrize("what", ["gone", "another file", "shorter", "a link to it"])
def test_nothing_is_deleted_for_a_receipt_that_no_longer_holds(place: Place, what: str) -> None:
    receipt = place.publish(Files())
    make_file(place.path / "copy", "AB")
    final = place.path / FINAL
    if what == "gone":
        final.unlink()
    elif what == "another file":
        final.rename(place.path / "aside")
        make_file(final, "AB")
    elif what == "shorter":
        os.truncate(final, CHUNK)
    else:
        final.rename(place.path / "aside")
        final.symlink_to("aside")
    with pytest.raises(Refused, match="so nothing is deleted for it"):
        discard(Files(), place.directory, "copy", receipt)
    assert "copy" in place.names()


def test_a_file_that_grew_is_still_the_receipts(place: Place) -> None:
    """A VM's disk is written after it was published."""
    receipt = place.publish(Files())
    os.truncate(place.path / FINAL, 3 * CHUNK)
    receipt.confirm(place.directory)


def test_staging_names() -> None:
    assert staging_name("disk.0") == ".disk.0.fastcopy.part"
    assert is_staging(staging_name("disk.0"))
    for name in ("disk.0", ".disk.0.part", "disk.0.fastcopy.part", ".monitor", ""):
        assert not is_staging(name)


def test_the_file_system_here_can_exchange_names_or_says_so(tmp_path: Path) -> None:
    make_file(tmp_path / "one", "A")
    make_file(tmp_path / "other", "B")
    directory = os.open(tmp_path, os.O_RDONLY)
    exchanged = Files().exchange(directory, "one", "other")
    os.close(directory)
    assert (tmp_path / "one").read_bytes() == content("B" if exchanged else "A")


def test_the_last_look_comes_between_fsync_and_rename(place: Place) -> None:
    """An fsync may take minutes, in which a newer action may have taken over."""
    files = RecordingFiles()

    def superseded() -> None:
        files.calls.append("look")
        raise Superseded("a newer action")

    with pytest.raises(Superseded):
        publish(files, place.staged, FINAL, str(place.path / FINAL), 0o640, superseded)
    assert files.calls == ["chmod", "sync", "look"]
    assert place.final() == "old"


@pytest.mark.parametrize("way", [Place.publish, Place.replace])
def test_a_staging_name_that_now_is_another_file_gets_no_final_name(
    place: Place, way: Callable[[Place, Files], Receipt]
) -> None:
    make_file(place.path / "half", "C")
    os.rename(place.path / "half", place.path / STAGING)
    with pytest.raises(Superseded):
        way(place, Files())
    assert place.final() == "old"


def test_the_old_image_is_locked_while_it_has_the_staging_name(place: Place) -> None:
    """Otherwise the next action would take it for a staging file, and write into what is about to be deleted."""
    seen: List[object] = []

    class Looking(Files):
        def sync_directory(self, directory: int) -> None:
            seen.append(Staging.open(Files(), directory, STAGING, 0))

    place.replace(Looking())
    assert seen == [None] and place.final() == "new"


def test_an_image_that_another_action_holds_is_not_replaced(place: Place) -> None:
    with open(place.path / FINAL, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Superseded):
            place.replace(Files())
    assert place.final() == "old"
