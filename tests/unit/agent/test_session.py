"""The agent, by the messages that it is sent and the files that are there afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import CHUNK, NO_SHARING, RecordingFiles, content, make_file, manifest_of, shape
from tm_fastcopy.agent import intake
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.agent.session import Session
from tm_fastcopy.core import codec, messages, tree_messages, wire
from tm_fastcopy.core.errors import BadChunk, NoSpace, Refused, SourceChanged
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.publish import staging_name
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.core.tree_messages import BeginTree, Member, pack_names

from .conversation import Conversation
from .entries import KEY

Talk = Callable[..., Conversation]


@pytest.fixture
def talk(base: Path) -> Iterator[Talk]:
    """Begin a conversation about a disk below *base*; all are ended."""
    begun: List[Conversation] = []

    def work(**arguments: Any) -> Conversation:
        begun.append(Conversation(base, **arguments))
        return begun[-1]

    yield work
    for one in begun:
        if one in begun and not getattr(one, "ended", False):
            one.end()


def end(one: Conversation) -> None:
    one.end()
    one.ended = True  # type: ignore[attr-defined]


def receipt(published: Any) -> Receipt:
    assert isinstance(published, messages.Published), published
    return Receipt.decode(published.receipt)


# --- to the host -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("letters", "size"), [("AB-A", -1), ("A", 1), ("--", -1), ("", -1), ("AB", CHUNK + 1)])
def test_a_cold_clone(talk: Talk, letters: str, size: int) -> None:
    one = talk()
    assert isinstance(one.opened, messages.Opened)
    assert one.clone(letters, size) == messages.Missing()
    proof = receipt(one.push(letters, size))
    assert one.disk.read_bytes() == content(letters, size)
    assert shape(one.disk) == "".join("-" if letter == "-" else "#" for letter in letters)
    assert one.disk.stat().st_mode & 0o777 == 0o640
    assert proof.path == str(one.disk)
    assert (proof.inode, proof.size) == (one.disk.stat().st_ino, len(content(letters, size)))
    assert sorted(os.listdir(one.disk.parent)) == [one.disk.name]


def test_what_was_sent_once_is_a_warm_clone(talk: Talk) -> None:
    first = talk()
    first.push("AB-A", key=KEY)
    end(first)
    second = talk(name="disk.1", action=2)
    published = second.clone("AB-A")
    assert published.how.startswith("cache, ")
    assert receipt(published).manifest == manifest_of("AB-A").id
    assert second.disk.read_bytes() == content("AB-A")
    assert second.disk.stat().st_ino != first.disk.stat().st_ino


def test_a_source_is_recognized_by_its_key(talk: Talk) -> None:
    first = talk()
    assert first.begin("AB", key=KEY) == messages.Begun("lead", "")
    end(first)
    second = talk(action=2)
    second.push("AB", key=KEY)
    end(second)
    third = talk(action=3)
    assert third.begin("AB", key=KEY) == messages.Begun("ready", manifest_of("AB").id)


def test_a_new_version_costs_only_what_changed(talk: Talk) -> None:
    first = talk()
    first.push("ABCD-", key=KEY)
    end(first)
    second = talk(name="disk.1", action=2)
    second.push("ABXD-", key="f" * 32)
    assert second.fetched == "X"
    assert second.disk.read_bytes() == content("ABXD-")


def spoil(one: Conversation, letters: str, quietly: bool) -> None:
    """Change a byte of the cached image; *quietly* with its time as it was, as a failing disk would."""
    image = next(one.disk.parent.parent.parent.rglob(f"{manifest_of(letters).id}.img"))
    times = image.stat().st_mtime_ns
    image.chmod(0o600)
    with image.open("r+b") as file:
        file.write(b"!")
    if quietly:
        os.utime(image, ns=(times, times))


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("quietly", [True, False])
def test_a_cached_image_that_was_written_to_makes_no_disk(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, quietly: bool, sharing: bool
) -> None:
    """A reflink reads nothing and finds no rot; a copy reads all, and finds it."""
    if not sharing:
        monkeypatch.setattr(Files, "clone", lambda *_: False)
    first = talk()
    first.push("AB", key=KEY)
    end(first)
    spoil(first, "AB", quietly)
    second = talk(name="disk.1", action=2)
    answer = second.clone("AB")
    if answer == messages.Missing():
        assert not second.disk.exists() and second.begin("AB", key=KEY) == messages.Begun("lead", "")
    else:
        assert quietly and sharing and "reflink" in answer.how


def test_a_damaged_seed_is_fetched_instead(talk: Talk) -> None:
    first = talk()
    first.push("ABCD", key=KEY)
    end(first)
    spoil(first, "ABCD", quietly=True)
    second = talk(name="disk.1", action=2)
    second.push("ABXD", key="f" * 32)
    assert "A" in second.fetched and "D" not in second.fetched
    assert second.disk.read_bytes() == content("ABXD")


def test_one_image_to_two_vms_at_once_is_one_transfer(talk: Talk) -> None:
    first, second = talk(), talk(vm=43)
    assert first.begin("AB", key=KEY).state == "lead"
    assert second.begin("AB", key=KEY).state == "wait"
    first.offer("AB")
    lane = first.lane()
    assert [lane.put("AB", index) for index in (0, 1)] == [messages.Stored(0), messages.Stored(1)]
    lane.close()
    receipt(first.ask(messages.Commit(manifest_of("AB").id)))
    end(first)
    assert second.begin("AB", key=KEY).state == "ready"
    assert second.clone("AB").how.startswith("cache")
    assert second.disk.read_bytes() == content("AB")


def test_an_image_whose_transfer_died_is_taken_over(talk: Talk) -> None:
    first, second = talk(), talk(vm=43)
    assert first.begin("AB", key=KEY).state == "lead"
    end(first)
    assert second.begin("AB", key=KEY).state == "lead"


@pytest.mark.parametrize("final", [4 * CHUNK, 4 * CHUNK + 12345])
def test_a_disk_may_be_larger_than_its_image(talk: Talk, final: int) -> None:
    one = talk()
    one.push("AB", final=final)
    assert one.disk.stat().st_size == final
    assert one.disk.read_bytes() == content("AB") + bytes(final - 2 * CHUNK)


def test_a_disk_is_never_smaller_than_its_image(talk: Talk) -> None:
    one = talk()
    one.push("AB", final=CHUNK)
    assert one.disk.read_bytes() == content("AB")


@pytest.mark.parametrize("warm", [False, True])
def test_a_disk_that_must_not_be_sparse_is_allocated_in_full(talk: Talk, warm: bool) -> None:
    first = talk()
    first.push("A---", key=KEY, sparse=False)
    if warm:
        end(first)
        first = talk(name="disk.1", action=2)
        assert receipt(first.clone("A---", sparse=False)).size == 4 * CHUNK
    assert first.disk.read_bytes() == content("A---")
    assert first.disk.stat().st_blocks * 512 >= 4 * CHUNK


def test_it_goes_on_where_it_was_cut_off(talk: Talk) -> None:
    first = talk()
    first.begin("ABC")
    first.offer("ABC")
    lane = first.lane()
    assert lane.put("ABC", 1) == messages.Stored(1)
    lane.close()
    end(first)
    second = talk(action=2)
    second.push("ABC")
    assert second.fetched == "AC"
    assert second.disk.read_bytes() == content("ABC")


def test_an_old_disk_stays_until_the_new_one_is_whole(talk: Talk, base: Path) -> None:
    (base / "42").mkdir()
    make_file(base / "42" / "disk.0", "X")
    one = talk()
    one.begin("AB")
    one.offer("AB")
    failure = one.refused(messages.Commit(manifest_of("AB").id))
    assert failure.kind == BadChunk.kind and "2 chunks" in failure.text
    assert one.disk.read_bytes() == content("X")


def test_what_was_not_announced_is_not_published(talk: Talk) -> None:
    one = talk()
    one.begin("-")
    one.offer("-")
    assert one.refused(messages.Commit(manifest_of("A").id)).kind == BadChunk.kind
    assert not one.disk.exists()


def test_a_bad_chunk_is_refused_and_can_be_sent_again(talk: Talk) -> None:
    one = talk()
    one.begin("AB")
    one.offer("AB")
    lane = one.lane()
    answer = lane.put("BB", 0)
    assert isinstance(answer, wire.Failure) and answer.kind == BadChunk.kind
    assert lane.put("AB", 0) == messages.Stored(0)
    assert lane.put("AB", 1) == messages.Stored(1)
    lane.close()
    receipt(one.ask(messages.Commit(manifest_of("AB").id)))


def test_chunks_that_come_at_once_are_all_answered_in_order(talk: Talk) -> None:
    letters = "ABCDEFGHI"
    one = talk()
    one.begin(letters)
    assert one.offer(letters) == list(range(9))
    lane = one.lane()
    chunks = [content(letter) for letter in letters[:3] + "X" + letters[4:]]
    answers = lane.ask_all([messages.Put(i, len(data), *codec.encode(data)) for i, data in enumerate(chunks)])
    bad = answers.pop(3)
    assert isinstance(bad, wire.Failure) and bad.kind == "refetch"
    assert answers == [messages.Stored(index) for index in (0, 1, 2, 4, 5, 6, 7, 8)]
    assert lane.put(letters, 3) == messages.Stored(3)
    lane.close()
    one.ask(messages.Commit(manifest_of(letters).id), messages.Published)
    assert one.disk.read_bytes() == content(letters)


def test_a_lane_cannot_write_after_the_commit(talk: Talk) -> None:
    one = talk()
    one.begin("A")
    one.offer("A")
    lane = one.lane()
    assert lane.put("A", 0) == messages.Stored(0)
    receipt(one.ask(messages.Commit(manifest_of("A").id)))
    assert lane.process.wait(60) is not None
    lane.close()


def test_a_link_in_the_disks_place_is_replaced_not_followed(talk: Talk, base: Path, tmp_path: Path) -> None:
    victim = make_file(tmp_path / "victim", "X")
    (base / "42").mkdir()
    (base / "42" / "disk.0").symlink_to(victim)
    one = talk()
    one.push("A")
    assert not one.disk.is_symlink()
    assert victim.read_bytes() == content("X")


def test_nothing_is_published_for_a_front_end_that_is_gone(talk: Talk) -> None:
    one = talk()
    one.begin("-")
    one.offer("-")
    one.alive = False
    one.refused(messages.Commit(manifest_of("-").id))
    assert not one.disk.exists()


# --- without a cache, without room -------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", ["a file", "a link", "another file system's error"])
def test_a_cache_that_cannot_be_had_only_makes_it_slower(talk: Talk, base: Path, tmp_path: Path, planted: str) -> None:
    place = base.parent / ".fastcopy"
    files = Files()
    if planted == "a file":
        place.write_text("")
    elif planted == "a link":
        place.symlink_to(tmp_path)
    else:
        files = _NoCache()
    one = talk(files=files)
    assert one.opened.reflink is False
    published = one.push("AB", key=KEY)
    assert "past the cache (cache: " in published.how
    assert one.disk.read_bytes() == content("AB")


class _NoCache(Files):
    """A file system on which `.fastcopy` cannot be made."""

    def make_directory(self, directory: int, name: str, mode: int) -> bool:
        if name == ".fastcopy":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return super().make_directory(directory, name, mode)


@pytest.mark.parametrize("failing", ["names", "writes"])
def test_a_cache_that_breaks_only_makes_it_slower(talk: Talk, failing: str) -> None:
    class Broken(RecordingFiles):
        def rename(self, directory: int, old: str, new: str) -> None:
            if new.endswith((".img", ".manifest", ".source")):
                raise OSError(errno.EIO, "broken")
            Files.rename(self, directory, old, new)

    one = talk(files=Broken(lacking=NO_SHARING if failing == "writes" else ()))
    one.push("AB", key=KEY)
    assert one.disk.read_bytes() == content("AB")


def test_no_room_says_how_much_is_needed_and_leaves_nothing(
    talk: Talk, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "make_room", lambda *_, **__: CHUNK)
    one = talk()
    failure = one.begin("A" * 32)
    assert isinstance(failure, wire.Failure) and failure.kind == NoSpace.kind
    assert "needs 2 MiB" in failure.text and "make room" in failure.text
    assert not (base / "42" / staging_name("disk.0")).exists()


@pytest.mark.parametrize("sharing", [True, False])
def test_a_full_disk_while_it_is_assembled(talk: Talk, base: Path, sharing: bool) -> None:
    files = RecordingFiles(lacking=() if sharing else NO_SHARING)
    one = talk(files=files)
    one.begin("A")
    files.failing["allocate"] = errno.ENOSPC
    manifest = manifest_of("A")
    failure = one.refused(messages.Offer.make(0, manifest.digests, [(0, CHUNK)]))
    assert failure.kind == NoSpace.kind and "make room" in failure.text
    assert os.listdir(base / "42") == []


def test_a_tree_whose_second_file_finds_no_room_keeps_nothing(talk: Talk, base: Path) -> None:
    files = RecordingFiles()
    one = talk(files=files)
    assert one.ask(BeginTree("raw", pack_names(["0", "1"]))) == wire.Done()
    one.ask(Member("0"))
    receipt(one.push("AB"))
    assert os.listdir(base / "42" / staging_name("disk.0.snap")) == ["0"]
    one.ask(Member("1"))
    one.begin("C")
    files.failing["allocate"] = errno.ENOSPC
    assert one.refused(messages.Offer.make(0, manifest_of("C").digests, [(0, CHUNK)])).kind == NoSpace.kind
    assert os.listdir(base / "42") == []


@pytest.mark.parametrize("tree", [False, True])
def test_a_full_disk_that_only_a_lane_has_met(talk: Talk, base: Path, tree: bool) -> None:
    """It tells the front-end, which ends the conversation."""
    one = talk()
    if tree:
        one.ask(BeginTree("raw", pack_names(["0", "1"])), wire.Done)
        one.ask(Member("0"), wire.Done)
    one.begin("AB", key=KEY)
    assert one.offer("AB") == [0, 1]
    lane = one.lane(limit=CHUNK)
    assert lane.put("AB", 0) == messages.Stored(0)
    refused = lane.put("AB", 1)
    assert isinstance(refused, wire.Failure) and refused.kind == NoSpace.kind
    lane.close()
    end(one)
    assert os.listdir(base / "42") == []
    assert list((base.parent / ".fastcopy/cache").glob("*")) == []
    # What was cut off otherwise stays, for the next attempt.
    one = talk(action=2)
    one.begin("AB")
    one.offer("AB")
    lane = one.lane()
    assert lane.put("AB", 0) == messages.Stored(0)
    lane.close()
    end(one)
    assert os.listdir(base / "42") == [staging_name("disk.0")]


def test_a_full_disk_while_a_tree_is_assembled(talk: Talk, base: Path) -> None:
    files = RecordingFiles(lacking=NO_SHARING)
    one = talk(files=files)
    one.ask(tree_messages.BeginTree("raw", tree_messages.pack_names(["0", "1"])), wire.Done)
    one.ask(tree_messages.Member("0"), wire.Done)
    one.push("A")
    one.ask(tree_messages.Member("1"), wire.Done)
    one.begin("B")
    files.failing["allocate"] = errno.ENOSPC
    failure = one.refused(messages.Offer.make(0, manifest_of("B").digests, [(0, CHUNK)]))
    assert failure.kind == NoSpace.kind and "make room" in failure.text
    assert os.listdir(base / "42") == []


# --- from the host -----------------------------------------------------------------------------------------------


@pytest.fixture
def reading(talk: Talk, base: Path) -> Conversation:
    """A conversation about the disk "AB-C", opened for reading."""
    (base / "42").mkdir()
    make_file(base / "42" / "disk.0", "AB-C").chmod(0o600)
    return talk(create=False)


def test_a_disk_is_described(reading: Conversation) -> None:
    assert reading.ask(messages.OpenSource("raw")) == messages.Source(4 * CHUNK, 3 * CHUNK, 0o600)


@pytest.mark.parametrize(("first", "count"), [(0, 4), (0, 1), (1, 2), (3, 1), (1, 3)])
def test_a_disk_is_scanned(reading: Conversation, first: int, count: int) -> None:
    reading.ask(messages.OpenSource("raw"), messages.Source)
    page = reading.ask(messages.Scan(first, count, CHUNK), messages.Offer)
    assert (page.first, page.count) == (first, count)
    assert page.digests == manifest_of("AB-C").digests[32 * first : 32 * (first + count)]


def test_a_scan_names_the_runs_of_data(reading: Conversation) -> None:
    reading.ask(messages.OpenSource("raw"), messages.Source)
    runs = reading.ask(messages.Scan(0, 4, CHUNK), messages.Offer).runs
    assert sum(length for _, length in runs) == 3 * CHUNK
    assert all(offset + length <= 2 * CHUNK or offset >= 3 * CHUNK for offset, length in runs)


@pytest.mark.parametrize(
    ("first", "count", "chunk"),
    [
        (0, 5, CHUNK),
        (0, 1024, CHUNK),
        (4, 1, CHUNK),
        (5, 1, CHUNK),
        (1 << 40, 1, CHUNK),
        (0, 1025, CHUNK),
        (0, 1, 12345),
        (0, 1, 1 << 40),
    ],
)
def test_a_page_that_is_none_is_refused(reading: Conversation, first: int, count: int, chunk: int) -> None:
    reading.ask(messages.OpenSource("raw"), messages.Source)
    reading.refused(messages.Scan(first, count, chunk))


def test_chunks_are_fetched_over_a_lane(reading: Conversation) -> None:
    reading.ask(messages.OpenSource("raw"), messages.Source)
    lane = reading.lane()
    assert lane.joined == wire.Done()
    for index in range(4):
        answer = lane.ask(messages.Get(index, CHUNK, CHUNK, True))
        assert isinstance(answer, messages.Put)
        assert answer.index == index
    wrong_sizes = [(4, CHUNK, CHUNK), (0, CHUNK, 1 << 40), (0, 1 << 40, 1)]
    for wrong in (*(messages.Get(*sizes, True) for sizes in wrong_sizes), wire.Done()):
        assert isinstance(lane.ask(wrong), wire.Failure)
    assert isinstance(lane.put("A", 0), wire.Failure)
    lane.close()
    assert reading.ask(messages.CloseSource()) == wire.Done()


def test_a_disk_that_is_written_while_it_is_read_is_an_error(reading: Conversation) -> None:
    reading.ask(messages.OpenSource("raw"), messages.Source)
    with open(reading.disk, "r+b") as file:
        file.truncate(5 * CHUNK)
    failure = reading.refused(messages.CloseSource())
    assert failure.kind == SourceChanged.kind and str(reading.disk) in failure.text


def test_there_must_be_a_disk(talk: Talk, base: Path) -> None:
    (base / "42").mkdir()
    assert "there is no" in talk(create=False).refused(messages.OpenSource("raw")).text


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_only_a_plain_file_is_a_disk(talk: Talk, base: Path, tmp_path: Path, kind: str) -> None:
    (base / "42").mkdir()
    disk = base / "42" / "disk.0"
    if kind == "link":
        disk.symlink_to(make_file(tmp_path / "victim", "A"))
    elif kind == "directory":
        disk.mkdir()
    else:
        os.mkfifo(disk)
    assert talk(create=False).refused(messages.OpenSource("raw")).kind == Refused.kind


# --- out of turn -------------------------------------------------------------------------------------------------

OUT_OF_TURN = [
    messages.Open("/", 1, "disk.0", 0, 0, False, "x"),
    messages.Commit("ab" * 32),
    messages.Offer.make(0, bytes(32), []),
    messages.Scan(0, 1, CHUNK),
    messages.Put(0, CHUNK, 0, b"A"),
    messages.Get(0, CHUNK, CHUNK, True),
    messages.CloseSource(),
    messages.Stored(1),
    messages.Join("", ""),
    wire.Done(),
]


@pytest.mark.parametrize("message", OUT_OF_TURN, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("create", [True, False])
def test_what_makes_no_sense_is_a_failure_and_no_crash(talk: Talk, base: Path, message: Any, create: bool) -> None:
    (base / "42").mkdir()
    assert talk(create=create).refused(message).kind == "protocol"


@pytest.mark.parametrize("message", OUT_OF_TURN[1:], ids=lambda message: type(message).__name__)
def test_nothing_comes_before_open(message: Any) -> None:
    door = LaneDoor()
    session = Session(Files(), lambda: True, door)
    answer = session.handle(message)
    assert isinstance(answer, wire.Failure) and answer.kind == "protocol"
    session.end()
    door.remove()


def test_a_disk_that_is_read_cannot_be_written(reading: Conversation) -> None:
    assert "not opened for writing" in reading.refused(messages.CloneEntry("ab" * 32, 1, 0o600, True, "raw", 0)).text
    assert isinstance(reading.begin("A"), wire.Failure)


def test_an_offer_beyond_the_end_is_refused(talk: Talk) -> None:
    one = talk()
    one.begin("AB")
    assert one.refused(messages.Offer.make(1, bytes(64), [])).kind == "protocol"


@pytest.mark.parametrize(("size", "chunk"), [(1 << 62, CHUNK), (CHUNK, 1), (CHUNK, 1 << 40)])
def test_a_file_that_is_too_large_is_refused_before_anything_is_made(
    talk: Talk, base: Path, size: int, chunk: int
) -> None:
    one = talk()
    assert one.refused(messages.Begin("", size, 0, chunk, size, 0o600, True, "raw", 0)).kind == Refused.kind
    assert os.listdir(base / "42") == []


def test_a_name_that_no_file_can_have_is_a_failure(base: Path) -> None:
    for name in (str(base) + "\ud800", str(base) + "\0"):
        one = Conversation(Path(name))
        assert isinstance(one.opened, wire.Failure)
        one.session.end()
