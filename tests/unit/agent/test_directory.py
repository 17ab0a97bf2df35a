"""A VM's directory: lock, fence, `.monitor`, and links that are not followed."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from tests.support import make_file
from tm_fastcopy.agent.directory import VmDirectory
from tm_fastcopy.core.errors import FastcopyError, Refused, Superseded
from tm_fastcopy.core.files import Files, lock

Enter = Callable[..., VmDirectory]


@pytest.fixture
def enter(base: Path) -> Iterator[Enter]:
    """Enter directory 42 of the datastore with a fence; all are left at the end."""
    made: List[VmDirectory] = []

    def work(seq: int, action: int, name: str = "disk.0", create: bool = True, wait: float = 0.0) -> VmDirectory:
        directory = VmDirectory(Files(), str(base), 42, name, (seq, action))
        made.append(directory)
        directory.enter(create, "fastcopy", wait)
        return directory

    yield work
    for directory in made:
        directory.leave() if directory.fd >= 0 else os.close(directory.base_fd)


def leave(directory: VmDirectory) -> None:
    """Release the guard, as the end of the process would."""
    os.close(directory.fd)
    directory.fd = -1


def yes() -> bool:
    return True


def test_it_is_made_with_the_monitor_file(base: Path, enter: Enter) -> None:
    directory = enter(0, 1)
    assert directory.disk == f"{base}/42/disk.0"
    assert (base / "42").stat().st_mode & 0o777 == 0o755
    assert (base / ".monitor").read_text() == "fastcopy\n"
    assert sorted(os.listdir(base)) == [".monitor", "42"]


@pytest.mark.parametrize("above", [0, 1])
def test_a_datastore_that_is_not_on_this_host_yet_is_made(base: Path, above: int) -> None:
    """oned makes system datastores on no host."""
    base.rmdir()
    if above:
        base.parent.rmdir()
    with pytest.raises(FastcopyError, match="No such file"):
        VmDirectory(Files(), str(base), 42, "disk.0", (0, 1))
    assert not base.exists()  # nobody makes it who does not bring something
    directory = VmDirectory(Files(), f"{base}/", 42, "disk.0", (0, 1), create=True)
    directory.enter(True, "fastcopy", 0.0)
    assert sorted(os.listdir(base)) == [".monitor", "42"]
    assert base.stat().st_mode & 0o777 == base.parent.stat().st_mode & 0o777 == 0o755
    directory.leave()


def test_a_datastore_whose_path_is_wrong_is_not_made(base: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "var/lib/datastores/0", tmp_path / "nowhere/0", tmp_path / "datastores/link/0"):
        (tmp_path / "datastores/link").unlink(missing_ok=True)
        (tmp_path / "datastores/link").symlink_to("elsewhere")
        (tmp_path / "nowhere").unlink(missing_ok=True)
        (tmp_path / "nowhere").symlink_to("elsewhere")
        with pytest.raises(FastcopyError, match="No such file"):
            VmDirectory(Files(), str(wrong), 42, "disk.0", (0, 1), create=True)
    assert sorted(os.listdir(tmp_path)) == ["datastores", "nowhere"]


def test_another_drivers_monitor_file_is_replaced(base: Path, enter: Enter) -> None:
    (base / ".monitor").write_text("ssh\n")
    enter(0, 1)
    assert (base / ".monitor").read_text() == "fastcopy\n"


def test_ours_is_left_as_it_is(base: Path, enter: Enter) -> None:
    leave(enter(0, 1))
    before = (base / ".monitor").stat().st_ino
    enter(0, 2)
    assert (base / ".monitor").stat().st_ino == before


def test_nothing_is_made_for_reading(base: Path, enter: Enter) -> None:
    with pytest.raises(FastcopyError, match="42"):
        enter(0, 1, create=False)
    assert os.listdir(base) == []


@pytest.mark.parametrize("name", ["", "..", "disk.0/../../x", "deployment.0"])
def test_a_name_that_is_none_is_refused(enter: Enter, name: str) -> None:
    with pytest.raises(Refused):
        VmDirectory(Files(), "/", 42, name, (0, 1))


def test_a_planted_link_is_not_followed(base: Path, enter: Enter, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (base / "42").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="not followed"):
        enter(0, 1)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_planted_monitor_link_is_not_followed(base: Path, enter: Enter, tmp_path: Path) -> None:
    victim = make_file(tmp_path / "victim", "A")
    (base / ".monitor").symlink_to(victim)
    with pytest.raises(Refused, match="symbolic link"):
        enter(0, 1)
    assert victim.stat().st_size > 0


# --- lock and fence ----------------------------------------------------------------------------------------------


def test_only_one_action_at_a_time(base: Path, enter: Enter) -> None:
    enter(0, 1)
    with pytest.raises(FastcopyError, match="another action has been at work"):
        enter(0, 2)


def test_the_guard_ends_with_the_process(enter: Enter) -> None:
    leave(enter(0, 1))
    enter(0, 2)


def test_another_vms_directory_is_free(base: Path, enter: Enter) -> None:
    enter(0, 1)
    other = VmDirectory(Files(), str(base), 43, "disk.0", (0, 1))
    other.enter(True, "fastcopy", 0.0)
    other.leave()


@pytest.mark.parametrize(("seq", "action"), [(3, 10), (2, 99), (0, 0)])
def test_an_older_action_is_refused(enter: Enter, seq: int, action: int) -> None:
    leave(enter(3, 11))
    with pytest.raises(Superseded, match="a newer action has taken over"):
        enter(seq, action)


@pytest.mark.parametrize(("seq", "action"), [(3, 11), (3, 12), (4, 0)])
def test_the_same_or_a_newer_action_goes_on(enter: Enter, seq: int, action: int) -> None:
    leave(enter(3, 11))
    enter(seq, action)


def test_a_newer_action_that_waits_keeps_the_older_from_publishing(enter: Enter) -> None:
    """It writes its fence down before it waits for the lock."""
    older = enter(0, 1)
    older.publishable(yes)
    with pytest.raises(FastcopyError, match="at work"):
        enter(0, 2)
    with pytest.raises(Superseded):
        older.publishable(yes)


def test_a_fence_from_a_clock_that_was_wrong_keeps_nobody_out(enter: Enter) -> None:
    hour = 3600 * 1_000_000
    now = time.time_ns() // 1000
    leave(enter(3, now + hour))
    leave(enter(3, now))
    leave(enter(4, now + hour))
    with pytest.raises(Superseded):
        enter(3, now)  # an older history record stays older, whatever the clock says


def test_a_datastore_that_somebody_keeps_locked_is_not_waited_for_for_ever(base: Path, enter: Enter) -> None:
    held = os.open(base, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    enter(0, 1)
    os.close(held)


def test_waiting_ends_with_the_front_end(enter: Enter, base: Path) -> None:
    enter(0, 1)
    other = VmDirectory(Files(), str(base), 42, "disk.1", (0, 2))
    with pytest.raises(Superseded, match="went away"):
        other.enter(True, "fastcopy", 60.0, lambda: False)
    other.leave()


def test_the_fence_is_one_disks(enter: Enter) -> None:
    leave(enter(0, 5, "disk.0"))
    enter(0, 4, "disk.1")


def test_a_fence_that_cannot_be_read_stands_for_none(base: Path, enter: Enter) -> None:
    directory = enter(0, 5)
    os.setxattr(base / "42", "user.fastcopy.fence.disk.0", b"nonsense")
    directory.publishable(yes)


def test_without_attributes_the_lock_stands_guard_alone(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", cannot)
    monkeypatch.setattr(os, "getxattr", cannot)
    enter(0, 5).publishable(yes)
    with pytest.raises(FastcopyError, match="at work"):
        enter(0, 4)


def test_a_directory_that_is_deleted_while_it_is_waited_for_is_made_anew(
    base: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = enter(0, 1)

    def deleted(_: float) -> None:
        if older.fd >= 0:
            (base / "42").rmdir()
            leave(older)

    monkeypatch.setattr("time.sleep", deleted)
    directory = enter(0, 2, wait=60.0)
    assert os.fstat(directory.fd).st_ino == (base / "42").stat().st_ino


def test_a_directory_that_another_takes_the_place_of_is_not_entered(
    base: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is moved away, or exchanged, still exists, under a name that is nobody's.  Here: right before our lock."""
    older = enter(0, 1)
    inode = os.fstat(older.fd).st_ino

    def late(fd: int, wait: bool = False) -> bool:
        if older.fd >= 0 and os.fstat(fd).st_ino == inode:
            (base / "42").rename(base / ".42.fastcopy.moved")
            (base / "42").mkdir()
            leave(older)
        return lock(fd, wait)

    monkeypatch.setattr("tm_fastcopy.agent.directory.lock", late)
    directory = enter(0, 2, wait=60.0)
    assert os.fstat(directory.fd).st_ino == (base / "42").stat().st_ino


def test_only_an_empty_directory_is_dropped(base: Path, enter: Enter) -> None:
    directory = enter(0, 1)
    (base / "42" / "disk.0").touch()
    directory.drop_empty()
    assert (base / "42" / "disk.0").exists()
    (base / "42" / "disk.0").unlink()
    directory.drop_empty()
    assert not (base / "42").exists()


def test_nothing_is_published_when_the_front_end_is_gone(enter: Enter) -> None:
    with pytest.raises(Superseded, match="front-end went away"):
        enter(0, 1).publishable(lambda: False)


def test_a_directory_in_the_disks_place_is_refused(base: Path, enter: Enter) -> None:
    directory = enter(0, 1)
    (base / "42" / "disk.0").mkdir()
    with pytest.raises(Refused, match="is a directory"):
        directory.publishable(yes)
