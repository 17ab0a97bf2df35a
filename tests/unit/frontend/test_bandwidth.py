"""Bandwidth: what transfers may send, on a clock that only their waiting moves."""

from __future__ import annotations

import asyncio
from typing import Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.frontend.bandwidth import Bandwidth, Bucket, Meter

MIB = 1 << 20
BURST = 0.25  # seconds, as in the module


class Clock:
    """Time for coroutines of one loop: it goes on when all of them sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: List[Tuple[float, asyncio.Event]] = []

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.append((self.now + seconds, event))
        await event.wait()

    async def run(self, *tasks: asyncio.Task[None]) -> float:
        """Let them work to their ends; when that was."""
        while not all(task.done() for task in tasks):
            for _ in range(10):
                await asyncio.sleep(0)
            if self._sleepers:
                self._sleepers.sort(key=lambda pair: pair[0])
                self.now, event = self._sleepers.pop(0)
                event.set()
        await asyncio.gather(*tasks)
        return self.now


async def transfer(meter: Meter, size: int, batch: int, sent: Dict[str, int], name: str) -> None:
    """Send *size* bytes, paying before each batch."""
    carried = 0
    while carried < size:
        await meter.pay(carried)
        carried += batch
        sent[name] = carried
    meter.charge(carried)


def play(limit: int, *transfers: Tuple[str, int, int], size: int = 64 * MIB) -> Tuple[float, Bandwidth]:
    """Transfers (host, its limit, bytes of a batch) at once under a common limit: seconds they took."""

    async def main() -> Tuple[float, Bandwidth]:
        clock = Clock()
        bandwidth = Bandwidth(clock.time, clock.sleep)
        tasks = [
            asyncio.ensure_future(transfer(bandwidth.meter(host, limit, own), size, batch, {}, host))
            for host, own, batch in transfers
        ]
        return await clock.run(*tasks), bandwidth

    return asyncio.run(main())


def test_without_limits_nothing_waits_and_nothing_is_counted() -> None:
    seconds, bandwidth = play(0, ("a", 0, MIB))
    assert (seconds, bandwidth.all.paid) == (0.0, 0)


def test_one_transfer_has_the_rate_that_it_is_allowed() -> None:
    seconds, bandwidth = play(8 * MIB, ("a", 0, MIB))
    assert seconds == pytest.approx(8.0 - 1 / 8 - BURST)  # nobody waits for the last batch, and the first are free
    assert bandwidth.all.paid == 64 * MIB


def test_transfers_with_several_hosts_share_the_common_limit() -> None:
    seconds, bandwidth = play(16 * MIB, ("a", 0, MIB), ("b", 0, MIB), ("a", 0, 4 * MIB))
    assert 3 * 64 / 16 - 1 <= seconds <= 3 * 64 / 16
    assert bandwidth.all.paid == 3 * 64 * MIB


def test_a_host_has_a_limit_of_its_own() -> None:
    seconds, bandwidth = play(0, ("a", 8 * MIB, MIB), ("a", 8 * MIB, MIB))
    assert 15 <= seconds <= 16
    seconds, bandwidth = play(0, ("a", 8 * MIB, MIB), ("b", 8 * MIB, MIB))
    assert 7 <= seconds <= 8
    assert bandwidth.host("a").paid == bandwidth.host("b").paid == 64 * MIB


def test_the_tighter_of_both_limits_holds() -> None:
    assert 15 <= play(32 * MIB, ("a", 4 * MIB, MIB))[0] <= 16
    assert 15 <= play(4 * MIB, ("a", 32 * MIB, MIB))[0] <= 16


def test_a_transfer_that_is_over_is_paid_by_the_next() -> None:
    clock = Clock()
    bandwidth = Bandwidth(clock.time, clock.sleep)
    assert bandwidth.meter("a", MIB, 0).charge(10 * MIB) == pytest.approx(10 - BURST)
    assert bandwidth.meter("b", MIB, 0).charge(0) == pytest.approx(10 - BURST)
    clock.now = 11.0
    assert bandwidth.meter("b", MIB, 0).charge(0) == 0.0


def test_what_was_paid_is_not_paid_again() -> None:
    meter = Bandwidth(lambda: 0.0).meter("a", MIB, 0)
    assert [meter.charge(carried) for carried in (MIB, MIB, 2 * MIB)] == pytest.approx([0.75, 0.75, 1.75])


def test_buckets_of_hosts_that_went_away_are_dropped_and_debts_are_not() -> None:
    clock = Clock()
    bandwidth = Bandwidth(clock.time, clock.sleep)
    bandwidth.meter("busy", 0, MIB).charge(100 * MIB)
    for number in range(3000):
        bandwidth.meter(f"host{number}", 0, MIB).charge(1)
        clock.now += 0.01
    assert bandwidth.host("busy").paid == 100 * MIB
    assert len(bandwidth._hosts) <= 1001


@given(
    rate=st.integers(64 * 1024, 1 << 32),
    steps=st.lists(st.tuples(st.integers(0, 1 << 26), st.floats(0, 100)), max_size=40),
)
def test_never_more_than_the_rate_and_a_burst_for_who_waits(rate: int, steps: List[Tuple[int, float]]) -> None:
    bucket, now, released = Bucket(), 0.0, 0
    for size, pause in steps:
        # All that was released until now was paid for, whatever pauses there were.
        assert released <= rate * (now + BURST) * (1 + 1e-9) + 1
        now += bucket.pay(size, rate, now)
        released += size
        now += pause
