"""The caretaker: which images are read, and what is said of a damaged one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, AsyncIterator, Dict, List, Tuple

import pytest

from tm_fastcopy.core.cache_messages import EntryRow, Scrubbed
from tm_fastcopy.core.errors import LinkLost
from tm_fastcopy.frontend import caretaker as module
from tm_fastcopy.frontend.caretaker import EVERY, Caretaker

NOW = 1_800_000_000.0


def row(letter: str, scrubbed: float, bad: bool = False) -> EntryRow:
    return EntryRow(letter * 64, 1, 1, 1, 1, int(NOW), int(scrubbed), False, bad)


class FakeUpkeep:
    """Caches by host."""

    def __init__(self) -> None:
        self.caches: Dict[str, List[EntryRow]] = {}
        self.damaged: List[str] = []
        self.read: List[Tuple[str, str, int]] = []

    @contextlib.asynccontextmanager
    async def open(self, _: Any, host: str, base: str) -> AsyncIterator[Any]:
        if host not in self.caches:
            raise LinkLost(f"{host} cannot be reached")
        self.host = host
        yield self

    async def entries(self) -> List[EntryRow]:
        return self.caches[self.host]

    async def scrub(self, manifest: str, rate: int) -> AsyncIterator[Scrubbed]:
        self.read.append((self.host, manifest[0], rate))
        yield Scrubbed(manifest, 10, 0, False)
        yield Scrubbed(manifest, 10, int(manifest in self.damaged), True)


@pytest.fixture
def upkeep(monkeypatch: pytest.MonkeyPatch) -> FakeUpkeep:
    fake = FakeUpkeep()
    monkeypatch.setattr(module, "CacheUpkeep", fake)
    return fake


def look(*hosts: Tuple[str, int]) -> None:
    taker = Caretaker(lambda: NOW)
    for host, rate in hosts:
        taker.note(None, host, "/ds/0", rate)  # type: ignore[arg-type]
    asyncio.run(taker.round())


def test_what_was_not_read_for_a_week_is_read(upkeep: FakeUpkeep) -> None:
    rows = [row("a", 0), row("b", NOW - EVERY + 60), row("c", NOW - EVERY - 60), row("d", 0, bad=True)]
    upkeep.caches["host1"] = rows
    look(("host1", 5))
    assert upkeep.read == [("host1", "a", 5), ("host1", "c", 5)]


def test_a_rate_of_nothing_is_no_scrub(upkeep: FakeUpkeep) -> None:
    upkeep.caches["host1"] = [row("a", 0)]
    look(("host1", 0))
    assert upkeep.read == []


def test_a_host_that_is_away_does_not_keep_the_others(upkeep: FakeUpkeep, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastcopyd")
    upkeep.caches["host2"] = [row("a", 0)]
    look(("host1", 5), ("host2", 5))
    assert upkeep.read == [("host2", "a", 5)]
    assert "the cache on host1 is not scrubbed: host1 cannot be reached" in caplog.text


def test_a_damaged_image_is_a_line_in_the_log(upkeep: FakeUpkeep, caplog: pytest.LogCaptureFixture) -> None:
    upkeep.caches["host1"] = [row("a", 0), row("b", 0)]
    upkeep.damaged = ["b" * 64]
    look(("host1", 5))
    assert [record.getMessage() for record in caplog.records] == [
        "the cached image bbbbbbbbbbbbbbbb on host1 is damaged and was put aside"
    ]
