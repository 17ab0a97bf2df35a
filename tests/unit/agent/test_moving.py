"""One side of a move, and both: what an agent answers, and what it does not do."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator, List, Tuple, Type

import pytest

from tests.support import CHUNK, RecordingFiles, content, make_file, shape
from tests.unit.agent.entries import add
from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.agent.session import Session
from tm_fastcopy.core import listing
from tm_fastcopy.core import move_messages as said
from tm_fastcopy.core.errors import NoSpace
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.listing import RECEIPT, TOKEN, Entry, encode
from tm_fastcopy.core.manifest import Manifest, chunk_count
from tm_fastcopy.core.messages import (
    CloseSource,
    Commit,
    Get,
    Missing,
    Offer,
    Opened,
    Published,
    Put,
    Scan,
    Source,
    Stored,
    Wants,
)
from tm_fastcopy.core.publish import staging_name
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.core.tree import INTENT
from tm_fastcopy.core.wire import Done, Failure, Message

from .conversation import Lane

ORIGIN = "host1:/source/42"


class Side:
    """A conversation about a move, with the agent's session in this process."""

    def __init__(self, base: Path, files: Files, action: int = 5, seq: int = 1) -> None:
        self.base, self.directory, self.alive, self.ended = base, base / "42", True, False
        self.door = LaneDoor()
        self.session = Session(files, lambda: self.alive, self.door)
        self.ask(said.OpenMove(str(base), 42, seq, action, "fastcopy", False), Opened)

    def ask(self, message: Message, expected: Type[Message] = Done) -> Any:
        answer = self.session.handle(message)
        assert isinstance(answer, expected), answer
        return answer

    def failed(self, message: Message) -> Failure:
        found: Failure = self.ask(message, Failure)
        return found

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.session.end()
            self.door.remove()


@pytest.fixture
def sides(base: Path, tmp_path: Path) -> Iterator[Tuple[Side, Side]]:
    """Both sides of a move, in datastores of their own."""
    other = tmp_path / "elsewhere" / "101"
    other.mkdir(parents=True)
    made = Side(base, Files()), Side(other, Files())
    yield made
    for side in made:
        side.end()


def furnish(directory: Path) -> None:
    """A VM's directory."""
    (directory / "tpm").mkdir(parents=True)
    make_file(directory / "disk.0", "AB-C")
    os.utime(directory / "disk.0", (1, 1))  # a write right after this changes its times, whatever the kernel's tick
    (directory / "tpm" / "state").write_bytes(b"tpm")
    (directory / "empty").touch()


def carry(source: Side, target: Side, full: bool = False) -> List[int]:
    """Bring all files over; the chunks that travelled."""
    listed = source.ask(said.BeginLeaving(), said.Listing)
    target.ask(said.BeginArriving(ORIGIN, listed.blob))
    travelled: List[int] = []
    for number, entry in enumerate(listed.entries):
        if entry.kind == "f":
            found = source.ask(said.ReadFile(number), Source)
            target.ask(said.WriteFile(number, CHUNK, full))
            page = source.ask(Scan(0, chunk_count(found.size, CHUNK), CHUNK), Offer)
            wants = target.ask(page, Wants)
            for index in [i for i, flag in enumerate(wants.blob) if flag]:
                put = source.ask(Get(index, CHUNK, min(CHUNK, found.size - index * CHUNK), True), Put)
                assert target.ask(put, Stored) == Stored(index)
                travelled.append(index)
            source.ask(CloseSource())
            target.ask(Commit(Manifest(found.size, CHUNK, page.digests).id))
    return travelled


def guard(source: Side, target: Side) -> None:
    source.ask(said.TakeGuard(False))
    target.ask(said.TakeGuard(True))


def test_everything_arrives_and_the_source_goes(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    assert carry(source, target) == [0, 1, 3, 0]
    assert list(target.directory.iterdir()) == []  # nothing is seen of it before it is whole
    published = target.ask(said.Arrive(), Published)
    assert (target.directory / "disk.0").read_bytes() == content("AB-C")
    assert shape(target.directory / "disk.0") == "##-#"
    assert source.directory.exists()
    source.ask(said.Depart(published.receipt))
    assert not source.directory.exists()
    assert os.listdir(source.base) == []
    assert sorted(os.listdir(target.base)) == [".monitor", "42"]


def test_what_was_moved_before_is_known_by_source_and_sequence(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    target.ask(said.HasArrived(ORIGIN), Missing)
    furnish(source.directory)
    guard(*sides)
    carry(source, target)
    source.ask(said.Depart(target.ask(said.Arrive(), Published).receipt))
    source.ask(said.TakeGuard(False), Missing)
    target.ask(said.HasArrived(ORIGIN))
    target.ask(said.HasArrived("host2:/source/42"), Missing)
    later = Side(target.base, Files(), seq=2)
    later.ask(said.HasArrived(ORIGIN), Missing)
    later.end()


@pytest.mark.parametrize("change", ["write", "add", "remove", "touch"])
def test_a_source_that_is_written_meanwhile_stays(sides: Tuple[Side, Side], change: str) -> None:
    """Defect B9 of the stock drivers."""
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    carry(source, target)
    published = target.ask(said.Arrive(), Published)
    if change == "write":
        with open(source.directory / "disk.0", "r+b") as file:
            file.write(b"changed")
    elif change == "add":
        (source.directory / "new").touch()
    elif change == "remove":
        (source.directory / "empty").unlink()
    else:
        os.utime(source.directory / "empty", (1, 1))
    assert source.failed(said.Depart(published.receipt)).kind == "source-changed"
    assert (source.directory / "disk.0").exists()


def test_a_directory_without_a_file_replaces_none_that_has_some(sides: Tuple[Side, Side]) -> None:
    """The directory was moved, somebody made an empty one where it was, and oned replays the move."""
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    carry(source, target)
    source.ask(said.Depart(target.ask(said.Arrive(), Published).receipt))
    for side in sides:
        side.end()
    (source.directory / "backup").mkdir(parents=True)
    again = Side(source.base, Files(), action=6), Side(target.base, Files(), action=6)
    guard(*again)
    listed = again[0].ask(said.BeginLeaving(), said.Listing)
    assert "has no file in it" in again[1].failed(said.BeginArriving(ORIGIN, listed.blob)).text
    for side in again:
        side.end()
    side = Side(source.base, Files(), action=7)
    assert "has no file in it" in side.failed(said.Relocate(str(target.base), ORIGIN, "")).text
    side.end()
    assert (target.directory / "disk.0").read_bytes() == content("AB-C")


def test_a_disk_that_a_process_uses_is_neither_replaced_nor_removed(base: Path, tmp_path: Path) -> None:
    """oned was told that a live migration had failed, say, and it had not: the VM runs at the target."""
    other = tmp_path / "datastores" / "101"
    furnish(base / "42")
    (other / "42" / "disk.1.snap").mkdir(parents=True)
    make_file(other / "42" / "disk.1.snap" / "3", "AB")
    (other / "42" / "disk.1").symlink_to("disk.1.snap/3")
    with open(other / "42" / "disk.1", "rb") as used:  # QEMU holds shared locks on some bytes far behind
        fcntl.fcntl(used, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0))  # F_OFD_SETLK
        side = Side(other, Files())
        assert "a VM runs here" in side.failed(said.Clear(True)).text
        side.end()
        side = Side(base, Files())
        assert "a VM runs here" in side.failed(said.Relocate(str(other), ORIGIN, "")).text
        side.end()
        sides = Side(base, Files(), action=6), Side(other, Files(), action=6)
        guard(*sides)
        listed = sides[0].ask(said.BeginLeaving(), said.Listing)
        assert "a VM runs here" in sides[1].failed(said.BeginArriving(ORIGIN, listed.blob)).text
        for side in sides:
            side.end()
        side = Side(other, Files(), action=7)
        side.ask(said.TakeGuard(False))
        assert "a VM runs here" in side.failed(said.BeginLeaving()).text
        side.end()
        assert (other / "42" / "disk.1").read_bytes() == content("AB")
    side = Side(base, Files(), action=8)
    assert relocate(side, other) == said.RENAMED
    side.end()


def test_what_a_move_that_was_cut_off_put_aside_is_not_written_to_while_it_is_used(sides: Tuple[Side, Side]) -> None:
    """After the exchange it lies where the next move stages its files."""
    source, target = sides
    furnish(source.directory)
    aside = target.base / staging_name("42")
    aside.mkdir()
    make_file(aside / "disk.0", "XY-Z")
    guard(*sides)
    listed = source.ask(said.BeginLeaving(), said.Listing)
    with open(aside / "disk.0", "rb") as used:
        fcntl.fcntl(used, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0))  # F_OFD_SETLK
        assert "a VM runs here" in target.failed(said.BeginArriving(ORIGIN, listed.blob)).text
    assert (aside / "disk.0").read_bytes() == content("XY-Z")


def test_an_exchange_of_trees_that_was_cut_off_is_finished_first(sides: Tuple[Side, Side]) -> None:
    """What is staged stays behind: here that is the link to the disk, and the intent that says so."""
    source, target = sides
    furnish(source.directory)
    tree = source.directory / "disk.1.snap"
    tree.mkdir()
    make_file(tree / "2", "AB")
    (tree / INTENT).write_text("2")
    (source.directory / "disk.1").symlink_to("disk.1.snap/7")  # that of the old tree
    (source.directory / staging_name("disk.1")).symlink_to("disk.1.snap/2")
    guard(*sides)
    carry(source, target)
    source.ask(said.Depart(target.ask(said.Arrive(), Published).receipt))
    assert (target.directory / "disk.1").read_bytes() == content("AB")


def test_a_source_that_is_only_written_out_meanwhile_goes(
    sides: Tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are counted anew when the kernel allocates them: a checkpoint that was written a second ago, say."""
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    carry(source, target)
    receipt = target.ask(said.Arrive(), Published).receipt
    counted = listing.listing
    more = lambda *a: [entry._replace(data=entry.data + 4096) for entry in counted(*a)]  # noqa: E731
    monkeypatch.setattr("tm_fastcopy.agent.departure.listing", more)
    source.ask(said.Depart(receipt))
    assert not source.directory.exists()


def test_a_file_that_is_written_while_it_is_read_is_not_taken(sides: Tuple[Side, Side]) -> None:
    source, _ = sides
    furnish(source.directory)
    guard(*sides)
    source.ask(said.BeginLeaving(), said.Listing)
    source.ask(said.ReadFile(1), Source)
    source.ask(Scan(0, 4, CHUNK), Offer)
    with open(source.directory / "disk.0", "r+b") as file:
        file.write(b"changed")
    assert source.failed(CloseSource()).kind == "source-changed"


def test_the_source_goes_on_no_other_receipt(sides: Tuple[Side, Side]) -> None:
    """Defect B9 of the stock drivers."""
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    carry(source, target)
    receipt = Receipt.decode(target.ask(said.Arrive(), Published).receipt)
    other = Receipt(receipt.path, "ab" * 32, receipt.size, receipt.device, receipt.inode)
    assert "something else" in source.failed(said.Depart(other.encode())).text
    assert source.failed(said.Depart("{}")).kind == "refused"
    source.alive = False
    assert source.failed(said.Depart(receipt.encode())).kind == "superseded"
    assert (source.directory / "disk.0").exists()


def test_nothing_is_published_that_is_not_complete(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    listed = source.ask(said.BeginLeaving(), said.Listing)
    target.ask(said.BeginArriving(ORIGIN, listed.blob))
    assert "3 files" in target.failed(said.Arrive()).text
    target.ask(said.WriteFile(1, CHUNK, False))
    source.ask(said.ReadFile(1), Source)
    target.ask(source.ask(Scan(0, 4, CHUNK), Offer), Wants)
    assert target.failed(Commit("ab" * 32)).kind == "refetch"  # no chunk has come
    assert target.failed(said.Arrive()).kind == "protocol"
    assert os.listdir(target.directory) == []


def test_an_older_move_publishes_and_removes_nothing(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    carry(source, target)
    for side in sides:
        os.setxattr(side.directory, "user.fastcopy.fence.all", b"1 6")
    assert target.failed(said.Arrive()).kind == "superseded"
    assert source.failed(said.Depart(Receipt("/x", "m", 1, 1, 1).encode())).kind == "superseded"
    assert (source.directory / "disk.0").exists() and os.listdir(target.directory) == []


def test_a_front_end_that_went_away_has_nothing_published(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    carry(source, target)
    target.alive = False
    assert target.failed(said.Arrive()).kind == "superseded"
    target.end()
    assert not target.directory.exists()  # it was only made to be guarded


def test_what_was_staged_before_does_not_travel_again(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    assert carry(source, target)
    target.end()
    (target.base / ".42.fastcopy.part" / "stranger").mkdir()
    make_file(source.directory / "disk.0", "AX-C")
    again = Side(source.base, Files(), action=6), Side(target.base, Files(), action=6)
    source.end()
    guard(*again)
    assert carry(*again) == [1]
    again[0].ask(said.Depart(again[1].ask(said.Arrive(), Published).receipt))
    assert (target.directory / "disk.0").read_bytes() == content("AX-C")
    assert not (target.directory / "stranger").exists()
    for side in again:
        side.end()


def test_what_the_cache_has_does_not_travel(
    sides: Tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = sides
    furnish(source.directory)
    monkeypatch.setattr("tm_fastcopy.agent.arrival._WORTH_SEEDS", 1)
    fd = os.open(target.base, os.O_RDONLY)
    cache, _ = Cache.open(Files(), fd, str(target.base))
    os.close(fd)
    assert cache is not None
    add(cache, "BCD")
    cache.close()
    guard(*sides)
    assert carry(source, target) == [0, 0]


def test_a_disk_that_may_have_no_holes_gets_its_room(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    carry(source, target, full=True)
    target.ask(said.Arrive(), Published)
    assert (target.directory / "disk.0").stat().st_blocks * 512 >= 4 * CHUNK


def test_a_full_target_keeps_nothing(sides: Tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    listed = source.ask(said.BeginLeaving(), said.Listing)

    def full(*_: object) -> None:
        raise NoSpace("42 needs 1 MiB and the file system has 0 MiB free: make room there and repeat the action")

    monkeypatch.setattr("tm_fastcopy.agent.arrival.need_room", full)
    assert target.failed(said.BeginArriving(ORIGIN, listed.blob)).kind == "no-space"
    assert sorted(os.listdir(target.base)) == [".monitor", "42"]
    assert (source.directory / "disk.0").exists()


def test_a_full_target_that_only_a_lane_has_met_keeps_nothing(sides: Tuple[Side, Side]) -> None:
    source, target = sides
    furnish(source.directory)
    guard(*sides)
    listed = source.ask(said.BeginLeaving(), said.Listing)
    target.ask(said.BeginArriving(ORIGIN, listed.blob))
    (number,) = [at for at, entry in enumerate(listed.entries) if entry.path == "disk.0"]
    source.ask(said.ReadFile(number), Source)
    target.ask(said.WriteFile(number, CHUNK, False))
    target.ask(source.ask(Scan(0, 4, CHUNK), Offer), Wants)
    lane = Lane(target.door.path, target.door.token, limit=CHUNK)
    assert lane.put("AB-C", 0) == Stored(0)
    assert getattr(lane.put("AB-C", 1), "kind", "") == NoSpace.kind
    lane.close()
    target.end()
    assert os.listdir(target.base) == [".monitor"]
    assert (source.directory / "disk.0").exists()


# --- where the two sides are ---------------------------------------------------------------------------------------


def test_a_token_is_found_where_it_lies(sides: Tuple[Side, Side], base: Path) -> None:
    source, target = sides
    furnish(source.directory)
    token = target.ask(said.WriteToken(), said.Token).name
    assert source.ask(said.FindToken(token, "/nowhere/101"), said.Seen) == said.Seen(False, False, True)
    assert source.ask(said.FindToken(token, str(target.base)), said.Seen) == said.Seen(False, True, True)
    alias = Side(target.base, Files())
    assert alias.ask(said.FindToken(token, "/nowhere/101"), said.Seen) == said.Seen(True, True, False)
    alias.end()
    target.ask(said.DropToken())
    assert source.ask(said.FindToken(token, str(target.base)), said.Seen) == said.Seen(False, False, True)
    assert source.failed(said.FindToken("../42/disk.0", str(target.base))).kind == "protocol"


def test_one_directory_in_two_datastores_is_seen_by_its_own_token(sides: Tuple[Side, Side]) -> None:
    """As where only the VM's directory is mounted in both."""
    source, target = sides
    furnish(target.directory)
    token = target.ask(said.WriteToken(), said.Token).name
    assert (target.directory / token).exists()
    source.directory.mkdir()
    (source.directory / token).touch()
    assert source.ask(said.FindToken(token, "/nowhere/101"), said.Seen).same


def test_tokens_that_killed_agents_left_are_swept(sides: Tuple[Side, Side]) -> None:
    _, target = sides
    target.directory.mkdir()
    old = time.time() - 7200
    for place in (target.base, target.directory):
        (place / f"{TOKEN}{'0' * 32}").touch()
        os.utime(place / f"{TOKEN}{'0' * 32}", (old, old))
    target.ask(said.WriteToken(), said.Token)
    target.end()
    assert [name for name in (*os.listdir(target.base), *os.listdir(target.directory)) if name.startswith(TOKEN)] == []


# --- on one machine ------------------------------------------------------------------------------------------------


def relocate(side: Side, target: Path, full: str = "") -> str:
    for _ in range(60):
        how: str = side.ask(said.Relocate(str(target), ORIGIN, full), said.Relocated).how
        if how:  # otherwise it took its turn's time, and goes on
            return how
    raise AssertionError("it does not end")


@pytest.mark.parametrize("lacking", [(), ("move",), ("move", "clone", "clone_range", "exchange")])
def test_another_datastore_of_this_machine(base: Path, tmp_path: Path, lacking: Tuple[str, ...]) -> None:
    other = tmp_path / "datastores" / "101"
    (other / "42").mkdir(parents=True)
    (other / "42" / "stale").touch()
    furnish(base / "42")
    failing = {"move": errno.EXDEV} if "move" in lacking else {}
    side = Side(base, RecordingFiles(failing, lacking))
    assert relocate(side, other) == (said.COPIED if lacking else said.RENAMED)
    side.end()
    assert not (base / "42").exists()
    assert sorted(os.listdir(other / "42")) == [RECEIPT, "disk.0", "empty", "tpm"]
    assert (other / "42" / "disk.0").read_bytes() == content("AB-C")
    for place in (base, other):
        assert [name for name in os.listdir(place) if name.startswith(".42.")] == []
    (other / ".42.fastcopy.old" / "deep").mkdir(parents=True)  # as if it had been cut off right then
    again = Side(base, Files(), action=6)
    assert relocate(again, other) == said.BEFORE
    again.end()
    assert [name for name in os.listdir(other) if name.startswith(".42.")] == []
    never = Side(base, Files(), action=7, seq=9)
    assert relocate(never, other) == said.GONE
    never.end()


def test_one_directory_under_two_names_is_left_alone(base: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias" / "100"
    alias.parent.mkdir()
    alias.symlink_to(base)
    furnish(base / "42")
    side = Side(base, Files())
    assert relocate(side, alias) == said.SAME
    side.end()
    assert sorted(os.listdir(base / "42")) == ["disk.0", "empty", "tpm"]


def test_looking_at_a_directory(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "datastores" / "101"
    furnish(other / "42")
    side = Side(base, Files())
    assert side.ask(said.LookAt(str(other)), said.Looked) == said.Looked(False, "disk.0\nempty\ntpm")
    assert side.ask(said.LookAt(str(base)), said.Looked) == said.Looked(True, "")
    for number in range(600):
        (other / "42" / f"a file {number}").touch()
    assert side.ask(said.LookAt(str(other)), said.Looked).names.startswith("disk.0\n")
    side.end()


def test_a_place_is_cleared(base: Path) -> None:
    furnish(base / "42")
    (base / ".42.fastcopy.part").mkdir()
    side = Side(base, Files())
    side.ask(said.Clear(True))
    side.ask(said.Clear(True))
    side.end()
    assert os.listdir(base) == [".monitor"]


@pytest.mark.root
def test_what_is_mounted_in_the_directory_is_neither_moved_nor_emptied(base: Path, tmp_path: Path) -> None:
    """A bind mount, on the same file system: its files are also somewhere else, and another's."""
    furnish(base / "42")
    (base / "42" / "bound").mkdir()
    (tmp_path / "another's").mkdir()
    (tmp_path / "another's" / "file").write_text("the only copy")
    subprocess.run(["mount", "--bind", tmp_path / "another's", base / "42" / "bound"], check=True)
    try:
        side = Side(base, Files())
        side.ask(said.TakeGuard(False))
        assert "42/bound is a mount point" in side.failed(said.BeginLeaving()).text
        side.end()
        side = Side(base, Files(), action=6)
        assert "42/bound is a mount point" in side.failed(said.Clear(False)).text
        side.end()
        assert os.listdir(tmp_path / "another's") == ["file"]
    finally:
        subprocess.run(["umount", base / "42" / "bound"], check=True)


@pytest.mark.root
def test_a_directory_that_is_a_mount_is_told_before_all_is_carried(sides: Tuple[Side, Side], tmp_path: Path) -> None:
    source, target = sides
    for name, side in zip(("one", "other"), sides):
        furnish(tmp_path / name)
        side.directory.mkdir()
        subprocess.run(["mount", "--bind", tmp_path / name, side.directory], check=True)
    try:
        guard(*sides)
        assert "42 is a mount point" in source.failed(said.BeginLeaving()).text
        listed = encode([Entry("", "d", 0o755)])
        assert "42 is a mount point" in target.failed(said.BeginArriving(ORIGIN, listed)).text
    finally:
        for side in sides:
            side.end()
            subprocess.run(["umount", side.directory], check=True)
    assert [len(os.listdir(tmp_path / name)) for name in ("one", "other")] == [3, 3]


@pytest.mark.parametrize(
    "message",
    [
        said.BeginLeaving(), said.BeginArriving(ORIGIN, encode([])), said.ReadFile(0), Scan(0, 1, CHUNK), CloseSource(),
        said.Depart("{}"), said.WriteFile(0, CHUNK, False), Commit(""), said.Arrive(), Wants(b""),
    ],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_what_is_out_of_step_is_refused(base: Path, message: Message) -> None:
    furnish(base / "42")
    side = Side(base, Files())
    assert side.failed(message).kind == "protocol"
    side.end()
    assert sorted(os.listdir(base / "42")) == ["disk.0", "empty", "tpm"]
