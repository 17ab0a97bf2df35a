"""Turns, flights and limits: who waits for whom among the calls of one process."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, Coroutine, List, Optional

import pytest

from tm_fastcopy.core.errors import FastcopyError, LinkLost, NoSpace, Superseded
from tm_fastcopy.frontend.flights import Flights
from tm_fastcopy.frontend.limits import Limits
from tm_fastcopy.frontend.turns import Turns

Act = Callable[..., Coroutine[Any, Any, None]]


class Stage:
    """Actions that say when they begin and end, and wait to be let on."""

    def __init__(self) -> None:
        self.said: List[str] = []
        self.go: dict[str, asyncio.Event] = {}

    async def work(self, name: str) -> None:
        self.said.append(f"{name} begins")
        try:
            await self.go.setdefault(name, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.said.append(f"{name} cancelled")
            raise
        self.said.append(f"{name} ends")

    def let(self, name: str) -> None:
        self.go.setdefault(name, asyncio.Event()).set()


def play(scene: Callable[[Stage], Awaitable[None]]) -> List[str]:
    """Run a scene and return what was said."""

    async def run() -> List[str]:
        stage = Stage()
        await asyncio.wait_for(scene(stage), 20)
        return stage.said

    return asyncio.run(run())


async def pause() -> None:
    """Let everything go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def turn(
    turns: Turns, stage: Stage, name: str, where: Any = "vm", disk: str = "disk.0", ending: Optional[str] = None
) -> Any:
    async def act() -> None:
        async with turns.turn(where, disk, ending):
            await stage.work(name)

    return asyncio.ensure_future(act())


def test_actions_on_one_directory_run_one_after_another_in_order() -> None:
    async def scene(stage: Stage) -> None:
        turns = Turns()
        tasks = []
        for name in "abc":
            tasks.append(turn(turns, stage, name))
            await pause()
            stage.let(name)
        await asyncio.gather(*tasks)

    assert play(scene) == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


def test_actions_on_two_directories_do_not_wait_for_each_other() -> None:
    async def scene(stage: Stage) -> None:
        turns = Turns()
        tasks = [turn(turns, stage, name, name) for name in "ab"]
        await pause()
        stage.let("b")
        stage.let("a")
        await asyncio.gather(*tasks)

    assert play(scene)[:2] == ["a begins", "b begins"]


def test_an_action_that_fails_lets_the_next_one_go() -> None:
    async def scene(stage: Stage) -> None:
        turns = Turns()

        async def fail() -> None:
            async with turns.turn("vm"):
                raise LinkLost("gone")

        failing = asyncio.ensure_future(fail())
        after = turn(turns, stage, "after")
        stage.let("after")
        with pytest.raises(LinkLost):
            await failing
        await after

    assert play(scene) == ["after begins", "after ends"]


@pytest.mark.parametrize("disk", ["disk.0", ""])
def test_a_delete_ends_what_runs_and_what_waits_for_the_disk(disk: str) -> None:
    async def scene(stage: Stage) -> None:
        turns = Turns()
        clones = [turn(turns, stage, "clone"), turn(turns, stage, "second clone")]
        await pause()
        delete = turn(turns, stage, "delete", disk=disk, ending="the VM is being deleted")
        stage.let("delete")
        await delete
        for clone in clones:
            with pytest.raises(Superseded, match="the VM is being deleted"):
                await clone

    assert play(scene) == ["clone begins", "clone cancelled", "delete begins", "delete ends"]


def test_a_delete_of_one_disk_waits_for_another_disks_action() -> None:
    async def scene(stage: Stage) -> None:
        turns = Turns()
        clone = turn(turns, stage, "clone", disk="disk.1")
        await pause()
        delete = turn(turns, stage, "delete", disk="disk.0", ending="deleted")
        await pause()
        stage.let("clone")
        stage.let("delete")
        await asyncio.gather(clone, delete)

    assert play(scene) == ["clone begins", "clone ends", "delete begins", "delete ends"]


def test_a_cancelled_caller_stays_cancelled() -> None:
    async def scene(stage: Stage) -> None:
        turns = Turns()
        task = turn(turns, stage, "clone")
        await pause()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = turn(turns, stage, "again")
        stage.let("again")
        await again

    assert play(scene)[-1] == "again ends"


def board(flights: Flights, stage: Stage, name: str, key: Any, fail: Optional[type[FastcopyError]] = None) -> Any:
    async def act() -> None:
        async with flights.board(key):
            await stage.work(name)
            if fail:
                raise fail("gone")

    return asyncio.ensure_future(act())


def test_one_flies_and_the_others_follow_together() -> None:
    async def scene(stage: Stage) -> None:
        flights = Flights()
        tasks = [board(flights, stage, name, "image") for name in "abc"]
        await pause()
        assert stage.said == ["a begins"]
        stage.let("a")
        await pause()
        assert stage.said == ["a begins", "a ends", "b begins", "c begins"]
        late = board(flights, stage, "late", "image")
        await pause()
        assert stage.said[-1] == "late begins"
        for name in ("b", "c", "late"):
            stage.let(name)
        await asyncio.gather(*tasks, late)

    play(scene)


def test_it_is_known_whether_somebody_wants_a_flight() -> None:
    async def scene(stage: Stage) -> None:
        flights = Flights()
        assert not flights.wanted("image")
        first = board(flights, stage, "a", "image")
        second = board(flights, stage, "b", "image")
        await pause()
        assert flights.wanted("image") and not flights.wanted("another")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert flights.wanted("image")  # by the second
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert not flights.wanted("image")

    play(scene)


def test_who_waited_for_a_host_that_does_not_answer_learns_it_at_once() -> None:
    async def scene(stage: Stage) -> None:
        flights = Flights()
        tasks = [board(flights, stage, "a", "image", LinkLost), *(board(flights, stage, n, "image") for n in "bc")]
        await pause()
        stage.let("a")
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [(type(error), str(error)) for error in found] == [(LinkLost, "gone")] * 3
        assert stage.said == ["a begins", "a ends"]
        again = board(flights, stage, "d", "image")
        stage.let("d")
        await again

    play(scene)


def test_after_a_failure_the_next_one_flies() -> None:
    async def scene(stage: Stage) -> None:
        flights = Flights()
        tasks = [board(flights, stage, "a", "image", NoSpace), *(board(flights, stage, n, "image") for n in "bc")]
        await pause()
        stage.let("a")
        await pause()
        assert stage.said == ["a begins", "a ends", "b begins"]
        stage.let("b")
        stage.let("c")
        first, *_ = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, NoSpace)
        assert stage.said[-1] == "c ends"

    play(scene)


def test_without_a_key_nobody_waits() -> None:
    async def scene(stage: Stage) -> None:
        flights = Flights()
        tasks = [board(flights, stage, name, None) for name in "ab"]
        await pause()
        assert stage.said == ["a begins", "b begins"]
        stage.let("a")
        stage.let("b")
        await asyncio.gather(*tasks)

    play(scene)


def test_limits_hold_in_all_and_for_a_host() -> None:
    async def scene(stage: Stage) -> None:
        limits = Limits(total=3, per_host=2)

        async def act(name: str, host: str) -> None:
            async with limits.transfer(host):
                await stage.work(name)

        tasks = [asyncio.ensure_future(act(f"{host}{i}", host)) for host in ("x", "y") for i in range(3)]
        await pause()
        # x2 waits for its host and keeps nobody else from running; y1 waits for the total.
        assert stage.said == ["x0 begins", "x1 begins", "y0 begins"]
        for host in ("x", "y"):
            for i in range(3):
                stage.let(f"{host}{i}")
        await asyncio.gather(*tasks)
        assert len(stage.said) == 12

    play(scene)


def test_a_transfer_between_two_hosts_counts_once_and_none_waits_for_another_in_a_circle() -> None:
    """Defect A4 of the stock drivers."""
    async def scene() -> None:
        limits = Limits(total=1, per_host=1)
        done: List[str] = []

        async def move(one: str, other: str) -> None:
            async with limits.transfer(one, other):
                await asyncio.sleep(0)
                done.append(f"{one} to {other}")

        pairs = [("a", "b"), ("b", "a"), ("a", "a"), ("c", "b")] * 3
        await asyncio.wait_for(asyncio.gather(*(move(*pair) for pair in pairs)), 20)
        assert len(done) == len(pairs)

    asyncio.run(scene())
