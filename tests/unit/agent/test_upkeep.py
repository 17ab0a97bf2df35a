"""The conversation about a cache: what an administrator sees of it, and does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Type

import pytest

from tests.support import CHUNK, make_file
from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.agent.session import Session
from tm_fastcopy.core import cache_messages, messages, wire
from tm_fastcopy.core.files import Files

from .entries import KEY, add


class Talk:
    """One conversation about the cache that serves *base*."""

    def __init__(self, base: Path, door: LaneDoor) -> None:
        self.session = Session(Files(), lambda: True, door)
        self.opened: Any = self.session.handle(cache_messages.OpenCache(str(base)))

    def ask(self, message: wire.Message, expected: Type[wire.Message] = wire.Done) -> Any:
        answer = self.session.handle(message)
        assert isinstance(answer, expected), answer
        return answer


@pytest.fixture
def talk(base: Path, cache: Cache, door: LaneDoor) -> Iterator[Talk]:
    made = Talk(base, door)
    yield made
    made.session.end()


def test_it_opens(talk: Talk, cache: Cache) -> None:
    opened = talk.opened
    assert isinstance(opened, cache_messages.CacheOpened)
    assert (opened.path, opened.reflink) == (cache.path, cache.reflink)
    assert 0 < opened.free <= opened.total


def test_entries_are_listed(talk: Talk, cache: Cache) -> None:
    assert talk.ask(cache_messages.ListEntries(), cache_messages.Entries).rows == []
    old, new = add(cache, "AB-", used=100.0), add(cache, "C", used=200.0)
    bad = add(cache, "DD")
    cache.quarantine(bad, "is bad")
    talk.ask(cache_messages.Pin(old, True))
    talk.ask(cache_messages.Scrub(new, 0), cache_messages.Scrubbed)
    rows = talk.ask(cache_messages.ListEntries(), cache_messages.Entries).rows
    assert [(row.manifest, row.pinned, row.bad) for row in rows] == [
        (new, False, False), (old, True, False), (bad, False, True)
    ]
    assert [row.size for row in rows] == [CHUNK, 3 * CHUNK, 2 * CHUNK]
    assert [row.used for row in rows] == [200, 100, 0]
    assert rows[0].scrubbed > 0 and rows[1].scrubbed == 0
    for row in rows:
        assert row.allocated == row.exclusive > 0 and row.extents >= 1


def test_entries_are_removed_unless_they_are_pinned(talk: Talk, cache: Cache) -> None:
    kept, gone, bad = add(cache, "A"), add(cache, "B", KEY), add(cache, "C")
    cache.quarantine(bad, "is bad")
    talk.ask(cache_messages.Pin(kept, True))
    talk.ask(cache_messages.Evict(gone))
    talk.ask(cache_messages.Evict(bad))
    assert "pinned" in talk.ask(cache_messages.Evict(kept), wire.Failure).text
    for unknown in (gone, "", "../" + "a" * 61, "ab" * 32):
        assert "no image" in talk.ask(cache_messages.Evict(unknown), wire.Failure).text
    assert [entry.id for entry in cache.entries()] == [kept] and cache.quarantined() == []
    talk.ask(cache_messages.Pin(kept, False))
    talk.ask(cache_messages.Evict(kept))
    assert cache.entries() == []


def test_a_scrub_finds_what_is_bad(talk: Talk, cache: Cache) -> None:
    manifest_id = add(cache, "AB")
    make_file(Path(cache.path) / f"{manifest_id}.img", "AX")
    assert talk.ask(cache_messages.Scrub("", 0), cache_messages.Scrubbed) == cache_messages.Scrubbed("", CHUNK, 1, True)
    assert cache.entries() == []


def test_two_scrubs_at_once_are_one_too_many(talk: Talk, base: Path, door: LaneDoor) -> None:
    talk.ask(cache_messages.Scrub("", 0), cache_messages.Scrubbed)
    other = Talk(base, door)
    assert "already" in other.ask(cache_messages.Scrub("", 0), wire.Failure).text
    other.session.end()


OUT_OF_TURN = [
    messages.Open("/ds/0", 1, "disk.0", 0, 0, False, "x"),
    cache_messages.OpenCache("/ds/0"),
    messages.Commit("ab" * 32),
    messages.CloneEntry("ab" * 32, 1, 0o600, True, "raw", 0),
    messages.OpenSource("raw"),
    wire.Done(),
]


@pytest.mark.parametrize("message", OUT_OF_TURN, ids=lambda message: type(message).__name__)
def test_nothing_else_makes_sense_in_it(talk: Talk, message: Any) -> None:
    assert talk.ask(message, wire.Failure).kind == "protocol"


@pytest.mark.parametrize("base", ["/", "/etc", "relative/0", "/nonexistent/0", "", "/ds/../0"])
def test_only_a_datastore_has_a_cache(base: str, door: LaneDoor) -> None:
    session = Session(Files(), lambda: True, door)
    assert isinstance(session.handle(cache_messages.OpenCache(base)), wire.Failure)
    session.end()


def test_a_cache_that_cannot_be_had_says_why(base: Path, door: LaneDoor) -> None:
    (base.parent / ".fastcopy").write_text("")
    talk = Talk(base, door)
    assert "has no cache" in talk.opened.text
    talk.session.end()


def test_a_conversation_about_a_disk_does_not_turn_to_the_cache(base: Path, door: LaneDoor) -> None:
    session = Session(Files(), lambda: True, door)
    assert isinstance(session.handle(messages.Open(str(base), 42, "disk.0", 0, 1, True, "fastcopy")), messages.Opened)
    about_the_cache = (
        cache_messages.OpenCache(str(base)),
        cache_messages.ListEntries(),
        cache_messages.Pin("ab" * 32, True),
        cache_messages.Scrub("", 0),
    )
    for message in about_the_cache:
        answer = session.handle(message)
        assert isinstance(answer, wire.Failure) and answer.kind == "protocol"
    session.end()
