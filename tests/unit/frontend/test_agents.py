"""Agents and their pool, with an agent at the other end that does as the test says."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, Dict, List, Optional

import pytest

from tm_fastcopy.core import messages, wire
from tm_fastcopy.core.errors import LinkLost, NoSpace, Superseded
from tm_fastcopy.frontend import agents
from tm_fastcopy.frontend.agents import Agent, AgentPool
from tm_fastcopy.frontend.channel import Channel

Answer = Callable[[wire.Message], Optional[wire.Message]]


def obliging(message: wire.Message) -> Optional[wire.Message]:
    """Answers as an agent that has nothing to complain about."""
    if isinstance(message, wire.Ping):
        return wire.Pong()
    if isinstance(message, messages.Get):
        return messages.Put(message.index, 1, 0, b"x")
    return wire.Done()


class FakeLink:
    """A stream to an agent that answers each message by *answer*; None is no answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.said = answer, asyncio.StreamReader()
        self.heard: List[wire.Message] = []
        self.closed = False
        self._decoder = wire.Decoder()

    async def write(self, *pieces: bytes) -> None:
        data = b"".join(pieces)
        if self.closed:
            raise LinkLost("the connection broke")
        for message in self._decoder.feed(data):
            self.heard.append(message)
            answer = self.answer(message)
            if answer is not None:
                self.say(answer)

    def say(self, message: wire.Message) -> None:
        self.said.feed_data(wire.encode(message))

    async def read_exactly(self, length: int) -> bytes:
        return await self.said.readexactly(length)

    async def close(self, wait: float = 0.0) -> None:
        if not self.closed:
            self.closed = True
            self.said.feed_eof()

    async def epitaph(self) -> tuple[Optional[int], str]:
        return 255, "killed"


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene; no more than a few seconds of it."""

    async def run() -> None:
        await asyncio.wait_for(scene(), 20)

    asyncio.run(run())


def agent(answer: Answer = obliging) -> tuple[Agent, FakeLink]:
    link = FakeLink(answer)
    return Agent(Channel("host1", link)), link  # type: ignore[arg-type]


def test_answers_come_to_who_asked_in_order() -> None:
    async def scene() -> None:
        one, link = agent()
        assert await one.ask(messages.OpenSource("raw"), wire.Done) == wire.Done()
        answers = await one.ask_all([messages.Get(i, 1, 1, True) for i in range(100)])
        assert [answer.index for answer in answers] == list(range(100))  # type: ignore[attr-defined]
        await one.end()
        assert link.closed

    play(scene)


def test_several_may_ask_many_things_at_once() -> None:
    """Questions go out as answers come in, whoever asks; at no time are too many on their way."""

    async def scene() -> None:
        most = 0

        def count(message: wire.Message) -> wire.Message:
            nonlocal most
            most = max(most, len(one._answers))
            return obliging(message)

        one, _ = agent(count)
        groups = [range(start, start + 50) for start in (0, 100, 200)]
        asked = [one.ask_all([messages.Get(i, 1, 1, True) for i in group]) for group in groups]
        for group, answers in zip(groups, await asyncio.gather(*asked)):
            assert [answer.index for answer in answers] == list(group)  # type: ignore[attr-defined]
        assert 1 <= most <= agents._PIPELINE
        await one.end()

    play(scene)


def test_who_is_cancelled_before_the_question_went_out_has_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "PING", 0.01)

    async def scene() -> None:
        one, link = agent()
        turn, free, honest = asyncio.Lock(), asyncio.Event(), link.write

        async def write(*pieces: bytes) -> None:
            async with turn:  # as a pipe's writer has it
                await free.wait()
                await honest(*pieces)

        monkeypatch.setattr(link, "write", write)
        await asyncio.sleep(0.05)  # a ping is on its way out
        first = asyncio.ensure_future(one.ask(messages.Get(1, 1, 1, True), messages.Put))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        free.set()
        assert (await asyncio.wait_for(one.ask(messages.Get(2, 1, 1, True), messages.Put), 5)).index == 2
        await one.end()

    play(scene)


def test_an_agent_that_is_stuck_is_given_up_also_if_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_ANSWER", 0.2)

    async def scene() -> None:
        one, _ = agent(lambda message: wire.Pong() if isinstance(message, wire.Ping) else None)
        asked = [asyncio.ensure_future(one.ask(messages.Get(i, 1, 1, True))) for i in range(agents._PIPELINE)]
        await asyncio.sleep(0.01)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(LinkLost, match="at one thing"):
            await asyncio.wait_for(one.ask(messages.CloseSource()), 5)
        await one.end()

    play(scene)


def test_an_agent_that_is_alive_and_stuck_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_ANSWER", 0.1)
    monkeypatch.setattr(agents, "PING", 0.01)

    async def scene() -> None:
        for count in (1, agents._PIPELINE + 1):
            one, _ = agent(lambda m: wire.Pong() if isinstance(m, wire.Ping) else None)
            with pytest.raises(LinkLost, match="host1 has been at one thing"):
                await one.ask_all([messages.Get(i, 1, 1, True) for i in range(count)])
            assert one.broken.done()
            await one.end()

    play(scene)


def test_a_failure_is_raised_and_the_next_question_answered() -> None:
    async def scene() -> None:
        full = wire.Failure("no-space", "full")
        one, _ = agent(lambda m: full if isinstance(m, messages.OpenSource) else obliging(m))
        with pytest.raises(NoSpace, match="full"):
            await one.ask(messages.OpenSource("raw"), messages.Source)
        assert await one.ask(messages.CloseSource(), wire.Done) == wire.Done()
        await one.end()

    play(scene)


def test_an_end_of_the_connection_fails_what_was_asked_and_what_is_asked() -> None:
    async def scene() -> None:
        one, link = agent(lambda _: None)
        asked = asyncio.ensure_future(one.ask(messages.OpenSource("raw"), messages.Source))
        await asyncio.sleep(0)
        await link.close()
        for question in (asked, one.ask(messages.OpenSource("raw"), messages.Source)):
            with pytest.raises(LinkLost, match="the connection to host1 broke: killed; repeat the action"):
                await question
        assert one.broken.done()
        await one.end()

    play(scene)


def test_what_an_agent_says_unasked_is_why_it_ends() -> None:
    async def scene() -> None:
        one, link = agent(lambda _: None)
        link.say(wire.Failure("superseded", "a newer action has taken over"))
        assert isinstance(await one.broken, Superseded)
        await one.end()

    play(scene)


def test_pongs_are_no_answers_and_keep_an_agent_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on with each ping, so that no machine is too slow for it."""
    monkeypatch.setattr(agents, "PING", 0.01)

    async def scene() -> None:
        loop, ahead = asyncio.get_running_loop(), 0.0
        honest = loop.time
        monkeypatch.setattr(loop, "time", lambda: honest() + ahead)

        def answer(message: wire.Message) -> Optional[wire.Message]:
            nonlocal ahead
            if not isinstance(message, wire.Ping):
                return None
            ahead += agents.SILENCE / 3
            return wire.Pong()

        one, link = agent(answer)
        asked = asyncio.ensure_future(one.ask(messages.OpenSource("raw"), wire.Done))
        end = honest() + 20.0
        while ahead < 2 * agents.SILENCE and not asked.done():
            assert honest() < end
            await asyncio.sleep(0)
        assert not asked.done()
        link.say(wire.Done())
        assert await asked == wire.Done()
        await one.end()

    asyncio.run(scene())  # without a limit: it would go by that clock


def test_an_agent_that_is_stopped_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "PING", 0.01)
    monkeypatch.setattr(agents, "SILENCE", 0.1)

    async def scene() -> None:
        one, _ = agent(lambda _: None)
        with pytest.raises(LinkLost, match="host1 has not answered"):
            await one.ask(messages.OpenSource("raw"), wire.Done)
        await one.end()

    play(scene)


def test_a_cancelled_question_does_not_shift_the_answers() -> None:
    async def scene() -> None:
        one, link = agent(lambda _: None)
        asked = asyncio.ensure_future(one.ask(messages.Get(1, 1, 1, True), messages.Put))
        await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        second = asyncio.ensure_future(one.ask(messages.Get(2, 1, 1, True), messages.Put))
        await asyncio.sleep(0.01)
        for index in (1, 2):
            link.say(messages.Put(index, 1, 0, b"x"))
        assert (await second).index == 2
        await one.end()

    play(scene)


# --- the pool ------------------------------------------------------------------------------------------------------


class Dials:
    """Dials that a pool has made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Answer = obliging) -> None:
        self.links: Dict[str, List[FakeLink]] = {}
        self.answer = answer

        async def dial(_: Any, __: Any, host: str) -> Agent:
            link = FakeLink(self.answer)
            self.links.setdefault(host, []).append(link)
            return Agent(Channel(host, link))  # type: ignore[arg-type]

        monkeypatch.setattr(Agent, "dial", dial)

    def pool(self, keep: bool = True) -> AgentPool:
        return AgentPool(None, None, keep)  # type: ignore[arg-type]


def test_an_agent_is_kept_and_told_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        dials = Dials(monkeypatch)
        pool = dials.pool()
        first = await pool.take("host1")
        pool.give_back(first, True)
        await pool.settle()
        again = await pool.take("host1")
        assert again is first and again.used
        (link,) = dials.links["host1"]
        assert [m for m in link.heard if not isinstance(m, wire.Ping)] == [messages.Leave()]
        other = await pool.take("host1")
        assert other is not first
        for one in (again, other):
            pool.give_back(one, True)
        await pool.dismiss()
        assert all(link.closed for link in dials.links["host1"])

    play(scene)


@pytest.mark.parametrize("why", ["not usable", "not kept", "broken", "fresh"])
def test_an_agent_is_not_used_again(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    async def scene() -> None:
        dials = Dials(monkeypatch)
        pool = dials.pool(keep=why != "not kept")
        first = await pool.take("host1")
        pool.give_back(first, why != "not usable")
        await pool.settle()
        if why == "broken":
            await dials.links["host1"][0].close()
            await first.broken
        second = await pool.take("host1", fresh=why == "fresh")
        assert second is not first and not second.used
        assert dials.links["host1"][0].closed
        pool.give_back(second, False)
        await pool.dismiss()

    play(scene)


def test_there_are_only_so_many_agents_on_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        dials = Dials(monkeypatch)
        pool = dials.pool()
        taken = [await pool.take("host1") for _ in range(agents.MOST)]
        waiting = asyncio.ensure_future(pool.take("host1"))
        elsewhere = await pool.take("host2")
        await asyncio.sleep(0.01)
        assert not waiting.done()
        urgent = await pool.take("host1", urgent=True)  # a deletion waits for nobody
        pool.give_back(urgent, True)
        await asyncio.sleep(0.01)
        assert not waiting.done()  # and gives nobody a place that it did not take
        pool.give_back(taken.pop(), True)
        for one in (await waiting, elsewhere, *taken):
            pool.give_back(one, True)
        await pool.settle()
        assert sum(not link.closed for link in dials.links["host1"]) == 2
        await pool.dismiss()

    play(scene)


def test_a_dial_that_fails_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        pool = AgentPool(None, None, True)  # type: ignore[arg-type]

        async def dial(*_: Any) -> Agent:
            raise LinkLost("refused")

        monkeypatch.setattr(Agent, "dial", dial)
        for _ in range(agents.MOST + 1):
            with pytest.raises(LinkLost):
                await pool.take("host1")

    play(scene)
