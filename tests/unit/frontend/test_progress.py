"""How far an action is: bytes, rates of late, and the lines of a log."""

from __future__ import annotations

import asyncio

import pytest

from tm_fastcopy.frontend import progress as module
from tm_fastcopy.frontend.phases import Phases
from tm_fastcopy.frontend.progress import Progress, Snapshot, duration, line, narrate, size

MIB = 1 << 20


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_before_a_transfer_begins() -> None:
    seen = Progress(Clock()).snapshot()
    assert (seen.done, seen.total, seen.rate, seen.left, seen.percent) == (0, 0, 0.0, None, None)


def test_bytes_that_were_there_count_as_done_and_not_as_speed() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect(100 * MIB)
    progress.found(50 * MIB)
    for _ in range(10):
        clock.now += 0.5
        progress.moved(MIB)
    assert progress.snapshot() == Snapshot(60 * MIB, 100 * MIB, 2.0 * MIB)
    assert progress.snapshot().left == 20.0
    assert progress.snapshot().percent == 60


def test_a_rate_is_of_the_last_seconds_and_falls_when_nothing_comes() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect(1000 * MIB)
    for rate in (10, 1):
        for _ in range(40):
            clock.now += 0.5
            progress.moved(rate * MIB)
    assert progress.snapshot().rate == pytest.approx(2 * MIB, rel=0.1)
    clock.now += 1000
    assert progress.snapshot().rate < 0.01 * MIB


def test_more_than_expected_is_all_of_it() -> None:
    progress = Progress(Clock())
    progress.expect(10)
    progress.moved(16)
    assert progress.snapshot().percent == 100


def test_a_transfer_that_begins_anew_counts_anew() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.expect(10 * MIB)
    clock.now += 1
    progress.moved(8 * MIB)
    progress.expect(10 * MIB)
    progress.found(8 * MIB)
    clock.now += 4
    progress.moved(MIB)
    assert progress.snapshot() == Snapshot(9 * MIB, 10 * MIB, MIB / 4)


def test_phases_and_progress_go_together() -> None:
    phases = Phases(Clock())
    assert phases.now == ""
    phases.enter("transfer")
    phases.progress.expect(5)
    assert (phases.now, phases.progress.snapshot().total) == ("transfer", 5)


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (Snapshot(0, 0, 0.0), "after 10 s: wait"),
        (Snapshot(0, 4 * MIB, 0.0), "after 10 s: wait, 0 % of 4.0 MiB, 0 B/s"),
        (Snapshot(MIB, 4 * MIB, MIB), "after 10 s: wait, 25 % of 4.0 MiB, 1.0 MiB/s, 3 s left"),
    ],
)
def test_a_line_says_what_is_known(seen: Snapshot, text: str) -> None:
    assert line("wait", 10.0, seen) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1536, "1.5 KiB"), (824 * MIB, "824 MiB"), (5 << 40, "5.0 TiB"),
     (5000 << 40, "5000 TiB"), (99 * MIB, "99.0 MiB"), (1 << 30, "1.0 GiB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_LINE", 0.02)
    told: list[float] = []

    async def watch() -> None:
        task = asyncio.ensure_future(narrate(told.append))
        while len(told) < 4:
            await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(asyncio.wait_for(watch(), 20))
    assert all(later >= 2 * earlier for earlier, later in zip(told, told[1:]))
