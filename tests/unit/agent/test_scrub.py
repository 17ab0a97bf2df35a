"""The scrub: what it reads, how fast, where it goes on, and what becomes of a bad image.  Time is simulated."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Iterator, List

import pytest

from tests.support import CHUNK, manifest_of
from tm_fastcopy.agent import scrub
from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.scrub import STATE, TURN, Scrubber, last_scrubs
from tm_fastcopy.core.cache_messages import Scrubbed
from tm_fastcopy.core.errors import Refused
from tm_fastcopy.core.files import Files

from .entries import add


class Clock:
    """A clock that only sleeping moves; *limit* says after how many looks the front-end goes away."""

    def __init__(self) -> None:
        self.seconds, self.looks, self.limit = 1000.0, 0, 1_000_000
        self.wrong = 0.0  # by how much the time of day is
        self.slept: List[float] = []

    def now(self) -> float:
        return self.seconds

    def today(self) -> float:
        return 1_000_000 + self.seconds + self.wrong

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.seconds += seconds

    def alive(self) -> bool:
        self.looks += 1
        return self.looks <= self.limit


@pytest.fixture
def clock() -> Clock:
    return Clock()


def scrubber(cache: Cache, clock: Clock) -> Scrubber:
    return Scrubber(Files(), cache, clock.alive, clock.now, clock.sleep, clock.today)


@pytest.fixture
def one(cache: Cache, clock: Clock) -> Iterator[Scrubber]:
    made = scrubber(cache, clock)
    yield made
    made.close()


def spoil(cache: Cache, manifest_id: str, chunk: int = 0) -> None:
    """Change a byte of a chunk and leave the time as it was, as a disk does that rots."""
    path = Path(cache.path) / f"{manifest_id}.img"
    times = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(chunk * CHUNK + 17)
        file.write(b"!")
    os.utime(path, ns=(times, times))


def test_sound_images_are_read_and_stay(cache: Cache, one: Scrubber) -> None:
    ids = {add(cache, "AB-C"), add(cache, "--"), add(cache, "D")}
    assert one.turn("", 0) == Scrubbed("", 4 * CHUNK, 0, True)
    assert {entry.id for entry in cache.entries()} == ids
    assert set(last_scrubs(cache)) == ids


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1000.0, -1000.0])
def test_every_pass_reads_everything_whatever_the_clock_says(
    cache: Cache, clock: Clock, one: Scrubber, seconds: float
) -> None:
    manifest_id = add(cache, "ABC")
    assert one.turn("", 0) == Scrubbed("", 3 * CHUNK, 0, True)
    clock.wrong += seconds
    assert one.turn("", 0) == Scrubbed("", 3 * CHUNK, 0, True)
    spoil(cache, manifest_id)
    assert one.turn("", 0) == Scrubbed("", 0, 1, True)


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_bad_image_is_quarantined_and_the_others_are_read(cache: Cache, one: Scrubber, chunk: int) -> None:
    bad, good = add(cache, "ABC"), add(cache, "D")
    spoil(cache, bad, chunk)
    assert one.turn("", 0) == Scrubbed("", (chunk + 1) * CHUNK, 1, True)
    assert [entry.id for entry in cache.entries()] == [good]
    assert cache.quarantined() == [bad]
    assert set(last_scrubs(cache)) == {good}


def test_an_image_that_was_cut_is_bad(cache: Cache, one: Scrubber) -> None:
    bad = add(cache, "ABC")
    os.truncate(Path(cache.path) / f"{bad}.img", CHUNK)
    assert one.turn("", 0).damaged == 1


def test_a_chunk_that_cannot_be_read_is_bad(cache: Cache, one: Scrubber, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    add(cache, "A")
    monkeypatch.setattr(scrub, "read_exactly", fail)
    assert one.turn("", 0).damaged == 1
    assert "Input/output error" in cache.notes[0]


def test_one_image_is_verified(cache: Cache, one: Scrubber) -> None:
    wanted, other = add(cache, "AB"), add(cache, "CD")
    spoil(cache, other)
    assert one.turn(wanted, 0) == Scrubbed(wanted, 2 * CHUNK, 0, True)
    assert one.turn(other, 0) == Scrubbed(other, 0, 1, True)
    assert set(last_scrubs(cache)) == {wanted}
    with pytest.raises(Refused, match="no image"):
        one.turn("ab" * 32, 0)


# --- in turns ----------------------------------------------------------------------------------------------------


def test_it_reads_no_faster_than_told(cache: Cache, clock: Clock, one: Scrubber) -> None:
    add(cache, "ABCDEFGH")
    began = clock.seconds
    assert one.turn("", CHUNK * 2).finished
    assert clock.seconds - began == pytest.approx(4.0)


@pytest.mark.parametrize("manifest_id", ["", manifest_of("ABCDEFGH").id])
def test_a_turn_ends_in_time_and_the_next_goes_on(
    cache: Cache, clock: Clock, one: Scrubber, manifest_id: str
) -> None:
    add(cache, "ABCDEFGH")
    rate = int(CHUNK * 3 / TURN)  # three chunks a turn
    answers: List[Scrubbed] = []
    for _ in range(10):
        began = clock.seconds
        answers.append(one.turn(manifest_id, rate))
        assert clock.seconds - began <= TURN + 0.001
        if answers[-1].finished:
            break
    assert answers[-1].finished
    assert sum(answer.read for answer in answers) == 8 * CHUNK
    assert len(answers) == 3


def test_a_chunk_that_costs_more_than_a_turn_is_paid_for_in_the_next(cache: Cache, clock: Clock, one: Scrubber) -> None:
    add(cache, "AB")
    began, read = clock.seconds, 0
    for _ in range(100):
        answer = one.turn("", int(CHUNK / (3 * TURN)))
        read += answer.read
        if answer.finished:
            break
    assert read == 2 * CHUNK and clock.seconds - began == pytest.approx(3 * TURN * 2, rel=0.01)


def test_another_process_goes_on_where_the_last_stopped(cache: Cache, clock: Clock) -> None:
    add(cache, "ABCDEFGH")
    add(cache, "IJ")
    reads: List[int] = []
    for _ in range(20):
        one = scrubber(cache, clock)
        clock.looks, clock.limit = 0, 4
        answer = one.turn("", 0)
        one.close()
        reads.append(answer.read)
        assert answer.read <= 4 * CHUNK
        if answer.finished:
            break
    assert len(reads) > 2 and sum(reads) == 10 * CHUNK


@pytest.mark.parametrize("letters", ["IJ", "KL", "MN", "OP"])  # their ids lie on both sides of the first one's
def test_it_ends_with_an_image_before_it_turns_to_another(cache: Cache, clock: Clock, letters: str) -> None:
    first = add(cache, "ABCDEFGH")
    one = scrubber(cache, clock)
    clock.limit = 4
    assert one.turn("", 0).manifest == first
    one.close()
    add(cache, letters)
    clock.looks, clock.limit = 0, 4
    other = scrubber(cache, clock)
    assert other.turn("", 0).manifest == first
    other.close()


def test_the_next_pass_begins_with_what_was_not_read_for_the_longest_time(cache: Cache, clock: Clock) -> None:
    first = scrubber(cache, clock)
    old = add(cache, "A")
    assert first.turn("", 0).finished
    clock.seconds += 100
    new = add(cache, "B")
    assert first.turn(new, 0).finished
    clock.seconds += 100
    order: List[str] = []
    for _ in range(3):
        clock.looks, clock.limit = 0, 2
        answer = first.turn("", 0)
        order.append(answer.manifest)
    first.close()
    assert order[0] == old


def test_nothing_is_read_for_a_front_end_that_is_gone(cache: Cache, clock: Clock, one: Scrubber) -> None:
    add(cache, "AB")
    clock.limit = 0
    assert one.turn("", 0) == Scrubbed("", 0, 0, False)


# --- its state ---------------------------------------------------------------------------------------------------

RUBBISH = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"version": 2, "entry": "", "chunk": 0, "began": 0, "full": {}}',
    b'{"version": 1, "entry": 5, "chunk": 0, "began": 0, "full": {}}',
    b'{"version": 1, "entry": "", "chunk": -1, "began": 0, "full": {}}',
    b'{"version": 1, "entry": "", "chunk": 0, "began": 1e400, "full": {}}',
    b'{"version": 1, "entry": "", "chunk": 0, "began": 0, "full": {"x": 1e400}}',
    b'{"version": 1, "entry": "", "chunk": 0, "began": 0, "full": [1]}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("raw", RUBBISH, ids=lambda raw: repr(raw)[:30])
def test_a_state_that_cannot_be_read_is_begun_anew(cache: Cache, clock: Clock, raw: bytes) -> None:
    (Path(cache.path) / STATE).write_bytes(raw)
    assert last_scrubs(cache) == {}
    add(cache, "AB")
    one = scrubber(cache, clock)
    assert one.turn("", 0) == Scrubbed("", 2 * CHUNK, 0, True)
    one.close()
    assert json.loads((Path(cache.path) / STATE).read_text())["version"] == 1


def test_a_state_that_names_what_is_not_there_does_no_harm(cache: Cache, clock: Clock) -> None:
    state = {"version": 1, "entry": "ab" * 32, "chunk": 1 << 60, "began": 5, "full": {"cd" * 32: 7}}
    (Path(cache.path) / STATE).write_text(json.dumps(state))
    manifest_id = add(cache, "AB")
    one = scrubber(cache, clock)
    assert one.turn("", 0).read == 2 * CHUNK
    one.close()
    assert set(last_scrubs(cache)) == {manifest_id}


def test_a_chunk_beyond_the_end_is_the_end(cache: Cache, clock: Clock) -> None:
    manifest_id = add(cache, "AB")
    state = {"version": 1, "entry": manifest_id, "chunk": 1 << 60, "began": 5, "full": {}}
    (Path(cache.path) / STATE).write_text(json.dumps(state))
    one = scrubber(cache, clock)
    assert one.turn("", 0).finished
    one.close()


def test_one_scrub_at_a_time(cache: Cache, clock: Clock, one: Scrubber) -> None:
    with pytest.raises(Refused, match="already"):
        scrubber(cache, clock)
