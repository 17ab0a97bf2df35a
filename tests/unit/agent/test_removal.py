"""Removal of a disk, and of a VM's directory."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Any, List

import pytest

from tests.support import content, manifest_of
from tests.unit.agent.conversation import Conversation
from tests.unit.agent.entries import KEY
from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.agent.session import Session
from tm_fastcopy.core import messages, wire
from tm_fastcopy.core.files import Files


def remove(base: Path, name: str = "", vm: int = 42, action: int = 2) -> Any:
    """Have the agent remove something."""
    door = LaneDoor()
    session = Session(Files(), lambda: True, door)
    try:
        return session.handle(messages.Remove(str(base), vm, name, 0, action))
    finally:
        session.end()
        door.remove()


@pytest.fixture
def vm(base: Path) -> Path:
    """A VM's directory with two disks, one with snapshots, links, and what cut-off actions leave."""
    directory = base / "42"
    (directory / "disk.0.snap" / "deeper").mkdir(parents=True)
    (directory / "disk.0.snap" / "0").write_text("snapshot")
    (directory / "disk.0").symlink_to("disk.0.snap/0")
    (directory / ".disk.0.fastcopy.part").write_text("half")
    (directory / "disk.1").write_text("other")
    (directory / "disk.10").write_text("ten")
    (directory / "outside").symlink_to(base.parent)
    (base.parent / "precious").write_text("precious")
    return directory


def test_a_disk_goes_with_all_that_is_its_own(base: Path, vm: Path) -> None:
    assert remove(base, "disk.0") == wire.Done()
    assert sorted(os.listdir(vm)) == ["disk.1", "disk.10", "outside"]


def test_a_directory_goes_with_everything_and_no_link_is_followed(base: Path, vm: Path) -> None:
    (vm / "tpm").mkdir()
    (vm / "tpm" / "elsewhere").symlink_to(base.parent)
    assert remove(base) == wire.Done()
    assert not vm.exists()
    assert (base.parent / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "disk.0", "disk.7"])
def test_what_is_not_there_is_removed_already(base: Path, name: str) -> None:
    assert remove(base, name) == wire.Done()
    (base / "42").mkdir()
    assert remove(base, name) == wire.Done()
    assert remove(base, name, action=3) == wire.Done()


@pytest.mark.parametrize("name", ["..", "disk.0/../../43", ".", "disk.x", "disk.0.snap"])
def test_nothing_else_can_be_named(base: Path, vm: Path, name: str) -> None:
    answer = remove(base, name)
    assert isinstance(answer, wire.Failure) and answer.kind == "refused"
    assert (vm / "disk.1").exists()


def test_a_planted_link_is_not_the_directory(base: Path) -> None:
    (base.parent / "victim").mkdir()
    (base.parent / "victim" / "disk.0").write_text("precious")
    (base / "42").symlink_to(base.parent / "victim")
    answer = remove(base)
    assert isinstance(answer, wire.Failure) and answer.kind == "refused"
    assert (base.parent / "victim" / "disk.0").exists()


def test_what_is_too_deep_is_refused_and_named(base: Path) -> None:
    deep = base / "42"
    for _ in range(20):
        deep = deep / "d"
    deep.mkdir(parents=True)
    answer = remove(base)
    assert isinstance(answer, wire.Failure) and "nested deeper" in answer.text


@pytest.mark.parametrize("name", ["", "disk.0"])
def test_an_older_removal_does_not_touch_a_newer_disk(base: Path, name: str) -> None:
    newer = Conversation(base, action=5)
    newer.end()
    answer = remove(base, name, action=4)
    assert isinstance(answer, wire.Failure) and answer.kind == "superseded"
    assert (base / "42").exists()


def test_an_older_clone_does_not_make_a_removed_directory_anew(base: Path) -> None:
    Conversation(base, action=1).end()
    assert remove(base, action=5) == wire.Done()
    late = Conversation(base, action=4)
    assert isinstance(late.opened, wire.Failure) and late.opened.kind == "superseded"
    late.end()
    assert not (base / "42").exists()
    newer = Conversation(base, action=6)
    assert isinstance(newer.opened, messages.Opened)
    newer.end()


def test_what_was_removed_is_remembered_within_bounds(base: Path) -> None:
    for vm in range(100, 180):
        Conversation(base, vm=vm, action=1).end()
        assert remove(base, vm=vm, action=2) == wire.Done()
    kept = [name for name in os.listxattr(base) if "gone" in name]
    assert 16 <= len(kept) <= 32 and "user.fastcopy.gone.179" in kept


@pytest.mark.parametrize("name", ["", "disk.0"])
def test_a_clone_that_still_runs_is_told_to_stop(base: Path, name: str) -> None:
    clone = Conversation(base, action=1)
    clone.begin("AB")
    # The removal claims the disk and then waits for the guard, which the clone holds.
    os.setxattr(base / "42", f"user.fastcopy.fence.{name or 'all'}", b"0 2")
    assert clone.refused(messages.Offer.make(0, bytes(64), [])).kind == "superseded"
    clone.end()
    assert remove(base, name) == wire.Done()


# --- what was only staged ----------------------------------------------------------------------------------------


def discard(base: Path, name: str = "disk.0", action: int = 2, key: str = "") -> Any:
    """Have the agent remove what an action has staged."""
    door = LaneDoor()
    session = Session(Files(), lambda: True, door)
    try:
        return session.handle(messages.Discard(str(base), 42, name, 0, action, key))
    finally:
        session.end()
        door.remove()


def half(base: Path, **more: Any) -> Conversation:
    """A clone of which half has arrived, and which is then ended."""
    clone = Conversation(base, action=1, **more)
    clone.begin("AB", key=KEY)
    clone.offer("AB")
    lane = clone.lane()
    assert lane.put("AB", 0) == messages.Stored(0)
    lane.close()
    clone.end()
    return clone


def staged(top: Path) -> List[str]:
    """Staging files, at any depth."""
    return sorted(path.name for path in top.rglob(".*.fastcopy.part"))


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_was_staged_goes_from_directory_and_cache(base: Path, cache: Cache, format: str) -> None:
    half(base, format=format)
    assert staged(base.parent) != []
    assert discard(base, action=1, key=KEY) == wire.Done()
    assert staged(base.parent) == []
    assert not (base / "42").exists()
    assert discard(base, action=1, key=KEY) == wire.Done()  # there is nothing more


def test_what_has_its_name_stays(base: Path, vm: Path) -> None:
    assert discard(base) == wire.Done()
    assert sorted(os.listdir(vm)) == ["disk.0", "disk.0.snap", "disk.1", "disk.10", "outside"]
    assert (vm / "disk.0").read_text() == "snapshot"
    assert (base.parent / "precious").read_text() == "precious"


def test_what_another_disk_has_staged_stays(base: Path, vm: Path) -> None:
    (vm / ".disk.1.fastcopy.part").write_text("half")
    assert discard(base) == wire.Done()
    assert (vm / ".disk.1.fastcopy.part").exists()


def test_an_image_that_another_fetches_stays(base: Path, cache: Cache) -> None:
    """Both bring it to the same host: the one that was ended must not take it from the other."""
    half(base)
    other = Conversation(base, vm=43, action=1)
    other.begin("AB", key=KEY)
    before = staged(base.parent)
    assert discard(base, action=1, key=KEY) == messages.Missing()
    assert staged(base.parent / ".fastcopy") == [name for name in before if KEY in name] != []
    wanted = other.offer("AB")
    lane = other.lane()
    assert [lane.put("AB", index) for index in wanted] == [messages.Stored(index) for index in wanted]
    lane.close()
    assert isinstance(other.ask(messages.Commit(manifest_of("AB").id)), messages.Published)
    other.end()
    assert other.disk.read_bytes() == content("AB")
    assert discard(base, action=1, key=KEY) == wire.Done()
    assert cache.ready(KEY) == manifest_of("AB").id


@pytest.mark.parametrize("name", ["..", "disk.x", "disk.0/../../43"])
def test_nothing_else_can_be_named_to_be_discarded(base: Path, vm: Path, name: str) -> None:
    assert getattr(discard(base, name), "kind", "") == "refused"
    assert (vm / "disk.1").exists()


def test_an_older_action_discards_nothing_of_a_newer_one(base: Path) -> None:
    newer = Conversation(base, action=5)
    newer.begin("AB", key=KEY)
    newer.end()
    before = staged(base.parent)
    assert before != []
    assert discard(base, action=4, key=KEY) == wire.Done()  # nothing that is there is its own
    assert staged(base.parent) == before


def test_what_a_move_has_staged_goes(base: Path) -> None:
    for there in (False, True):
        (base / ".42.fastcopy.part" / "tpm").mkdir(parents=True)
        (base / ".42.fastcopy.part" / "disk.0").write_text("half")
        if there:
            (base / "42").mkdir()
            (base / "42" / "disk.0").write_text("whole")
        assert discard(base, name="") == wire.Done()
        assert not (base / ".42.fastcopy.part").exists()
    assert (base / "42" / "disk.0").read_text() == "whole"


def test_what_a_move_put_aside_stays_while_it_is_used(base: Path) -> None:
    aside = base / ".42.fastcopy.part"
    aside.mkdir()
    (aside / "disk.0").write_text("in use")
    with (aside / "disk.0").open("rb") as used:  # as QEMU holds it: shared locks on some bytes far behind
        fcntl.fcntl(used, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0))  # F_OFD_SETLK
        answer = discard(base, name="")
    assert isinstance(answer, wire.Failure) and "uses disk.0" in answer.text
    assert (aside / "disk.0").read_text() == "in use"
