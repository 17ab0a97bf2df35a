"""Lanes that are kept: how many, how long, and which not."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from tm_fastcopy.core.errors import LinkLost
from tm_fastcopy.core.messages import Leave
from tm_fastcopy.core.wire import Done
from tm_fastcopy.frontend import spare_lanes
from tm_fastcopy.frontend.spare_lanes import KEPT, MOST, SpareLanes


class _Lane:
    """A lane that answers at once, never (*silent*), or not any more (*broken*)."""

    def __init__(self, host: str = "host1", silent: bool = False, broken: bool = False) -> None:
        self.host, self._silent, self._broken = host, silent, broken
        self.asked: List[Any] = []
        self.closed = False

    async def ask(self, message: Any, *answers: Any) -> Any:
        self.asked.append(message)
        if self._broken:
            raise LinkLost("the connection to host1 broke")
        await asyncio.sleep(3600 if self._silent else 0)
        return Done()

    async def close(self, wait: float = 0.0) -> None:
        self.closed = True


def test_a_lane_is_kept_for_its_host() -> None:
    async def run() -> None:
        spare, lane = SpareLanes(), _Lane()
        await spare.put(lane)  # type: ignore[arg-type]
        assert lane.asked == [Leave()]
        assert spare.take("host2") is None
        assert spare.take("host1") is lane and spare.take("host1") is None
        assert not lane.closed

    asyncio.run(run())


def test_no_more_are_kept_than_a_transfer_uses() -> None:
    async def run() -> None:
        spare, lanes = SpareLanes(), [_Lane() for _ in range(KEPT + 2)]
        await asyncio.gather(*(spare.put(lane) for lane in lanes))  # type: ignore[arg-type]
        assert [lane.closed for lane in lanes] == [False] * KEPT + [True] * 2
        await spare.close()
        assert all(lane.closed for lane in lanes)

    asyncio.run(run())


def test_no_more_are_kept_in_all_than_pipes_may_have_pages() -> None:
    """The oldest makes room."""

    async def run() -> None:
        spare, lanes = SpareLanes(), [_Lane(f"host{number}") for number in range(MOST + 3)]
        for lane in lanes:
            await spare.put(lane)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert [lane.closed for lane in lanes] == [True] * 3 + [False] * MOST
        assert spare.take("host0") is None and spare.take("host3") is lanes[3]

    asyncio.run(run())


def test_one_that_is_of_no_more_use_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_lanes, "_ANSWER", 0.01)

    async def run() -> None:
        spare, lanes = SpareLanes(), [_Lane(broken=True), _Lane(silent=True)]
        for lane in lanes:
            await spare.put(lane)  # type: ignore[arg-type]
        assert all(lane.closed for lane in lanes) and spare.take("host1") is None

    asyncio.run(run())


def test_who_is_cancelled_leaves_no_lane_behind() -> None:
    async def run() -> None:
        spare, lane = SpareLanes(), _Lane(silent=True)
        task = asyncio.ensure_future(spare.put(lane))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert lane.closed and spare.take("host1") is None

    asyncio.run(run())


def test_it_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_lanes, "IDLE", 0.01)

    async def run() -> None:
        spare, lane = SpareLanes(), _Lane()
        await spare.put(lane)  # type: ignore[arg-type]
        for _ in range(500):
            if lane.closed:
                break
            await asyncio.sleep(0.01)
        assert lane.closed and spare.take("host1") is None

    asyncio.run(run())
