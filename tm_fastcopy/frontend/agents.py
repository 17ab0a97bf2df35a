"""Agents: the control connections to hosts, and the pool that keeps them for the next conversation.

To dial a host and start an agent there takes half a second, a conversation with an agent that is there some
milliseconds.  An agent serves one conversation at a time, so there are as many as there are conversations, and a few
are kept when these are over.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import Any, Deque, Dict, List, Optional, Sequence, Set, Type

from async_timeout import timeout

from ..core.errors import FastcopyError, LinkLost, ProtocolError
from ..core.messages import Leave
from ..core.wire import Done, Failure, Message, Ping, Pong, expect
from .bundle import Bundles
from .channel import Channel
from .link import Dialer

PING = 5.0  # seconds; the agent takes 30 of silence for the front-end's end
SILENCE = 30.0  # seconds: six pings without an answer; as long as an agent waits for us
MOST = 8  # agents on a host: sshd lets a connection have ten sessions (MaxSessions)
_ANSWER = 3600.0  # seconds for any one answer: the longest is a copy of a large image from the cache on ext4
_LOOK = 0.02  # seconds between looks for answers that nobody waits for any more
_KEPT = 2  # agents that stay on a host when nothing is to be done: 30 MB each
_PIPELINE = 16  # questions that are sent before the first answer is awaited


def orderly(error: Optional[BaseException]) -> bool:
    """Whether a conversation that ended with *error* leaves an agent that can have another one."""
    broken = isinstance(error, (LinkLost, ProtocolError))
    return error is None or (isinstance(error, FastcopyError) and not broken)


class Agent:
    """An agent on a host, and the questions to it.  Answers come in the order of the questions."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.host = channel, channel.host
        self.used = False
        """Whether it has served a conversation before this one."""
        self.extra = False
        """Whether it was taken beyond the number that a host may have."""
        self._answers: Deque[asyncio.Future[Message]] = collections.deque()
        self._heard = asyncio.get_running_loop().time()
        self._turn, self._sending = asyncio.Lock(), asyncio.Lock()
        self.broken: asyncio.Future[FastcopyError] = asyncio.get_running_loop().create_future()
        """Done, with the reason, as soon as the agent is of no more use."""
        self._tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._ping())]

    @classmethod
    async def dial(cls, dialer: Dialer, bundles: Bundles, host: str) -> Agent:
        """Start an agent on *host*."""
        return cls(await Channel.open(dialer, bundles, host, "control"))

    async def _read(self) -> None:
        reason: FastcopyError = LinkLost(f"the agent on {self.host} ended; repeat the action")
        try:
            while True:
                message = await self.channel.receive(None)
                self._heard = asyncio.get_running_loop().time()
                if isinstance(message, Pong):
                    continue
                if not self._answers:  # what it says unasked is why it ends
                    out_of_step = LinkLost(f"{self.host} answered what it was not asked; repeat the action")
                    reason = message.error() if isinstance(message, Failure) else out_of_step
                    break
                answer = self._answers.popleft()
                if not answer.done():
                    answer.set_result(message)
        except FastcopyError as error:
            reason = error
        self._break(reason)

    async def _ping(self) -> None:
        while not self.broken.done():
            await asyncio.sleep(PING)
            try:
                async with self._sending:
                    await self.channel.send(Ping())
            except FastcopyError as error:
                self._break(error)
            silent = asyncio.get_running_loop().time() - self._heard
            if silent > SILENCE:
                self._break(LinkLost(f"{self.host} has not answered for {silent:.0f} s: see whether it is alive"))

    def _break(self, reason: FastcopyError) -> None:
        if not self.broken.done():
            self.broken.set_result(reason)
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(type(reason)(str(reason)))
                answer.exception()  # who asked may have been cancelled: then nobody takes it

    async def ask(self, message: Message, *answers: Type[Message]) -> Any:
        """Send a message and return its answer; raise what a `Failure` reports."""
        return expect((await self.ask_all([message]))[0], *answers)

    async def ask_all(self, messages: Sequence[Message]) -> List[Message]:
        """Send messages without waiting for each answer; return the answers, a `Failure` among them as it is."""
        return [await self._answer(answer) for answer in [await self._put(message) for message in messages]]

    async def _put(self, message: Message) -> asyncio.Future[Message]:
        """Send a message when there is room for its answer among those that are awaited; return the answer to come."""
        async with self._turn:
            while len(self._answers) >= _PIPELINE and not self.broken.done():
                await self._answer_to_any()
            if self.broken.done():
                reason = self.broken.result()
                raise type(reason)(str(reason))
            answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            async with self._sending:  # who is cancelled before this has not asked
                self._answers.append(answer)
                await self.channel.send(message)
            return answer

    async def _answer_to_any(self) -> None:
        """Wait until something is answered, also if who asked has been cancelled."""
        count, until = len(self._answers), asyncio.get_running_loop().time() + _ANSWER
        while len(self._answers) == count and asyncio.get_running_loop().time() < until:
            open_ = [answer for answer in self._answers if not answer.done()]
            if open_:
                await asyncio.wait(open_, timeout=_ANSWER, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(_LOOK)
        if len(self._answers) == count:
            raise self._stuck()

    async def _answer(self, answer: asyncio.Future[Message]) -> Message:
        """Wait for an answer; an agent that gives signs of life and none is stuck in a disk that does not answer."""
        try:
            async with timeout(_ANSWER):
                return await answer
        except asyncio.TimeoutError:
            raise self._stuck() from None

    def _stuck(self) -> LinkLost:
        reason = LinkLost(f"{self.host} has been at one thing for {_ANSWER:.0f} s: see whether its disks answer")
        self._break(reason)
        return reason

    async def end(self) -> None:
        """Close the connection; the agent completes by itself what nobody waits for."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._break(LinkLost(f"the connection to {self.host} was closed"))
        await self.channel.close()


class AgentPool:
    """Agents by host.  With *keep* they stay for the next conversation, otherwise each serves one."""

    def __init__(self, dialer: Dialer, bundles: Bundles, keep: bool) -> None:
        self._dialer, self._bundles, self._keep = dialer, bundles, keep
        self._idle: Dict[str, List[Agent]] = {}
        self._room: Dict[str, asyncio.Semaphore] = {}
        self._leaving: Set[asyncio.Task[None]] = set()
        self.taken = 0
        """Agents that have a conversation."""

    async def take(self, host: str, fresh: bool = False, urgent: bool = False) -> Agent:
        """An agent for one conversation, which `give_back` must get.

        *fresh* means one that is dialled now; *urgent*, one more than there may be: a deletion waits for no clone.
        """
        room = self._room.setdefault(host, asyncio.Semaphore(MOST))
        if not urgent:
            await room.acquire()
        try:
            agent = await self._idle_or_new(host, fresh)
            agent.extra = urgent
            self.taken += 1
            return agent
        except BaseException:
            if not urgent:
                room.release()
            raise

    async def _idle_or_new(self, host: str, fresh: bool) -> Agent:
        idle = self._idle.get(host, [])
        while idle:
            agent = idle.pop()
            if not fresh and not agent.broken.done():
                return agent
            await agent.end()
        return await Agent.dial(self._dialer, self._bundles, host)

    def give_back(self, agent: Agent, usable: bool) -> None:
        """The conversation is over.  *usable*: it ended in order, with no question open."""
        self.taken -= 1
        task = asyncio.ensure_future(self._see_off(agent, usable))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _see_off(self, agent: Agent, usable: bool) -> None:
        extra = agent.extra  # somebody else may have taken it by the end of this
        try:
            if usable and self._keep:
                with contextlib.suppress(FastcopyError):
                    await agent.ask(Leave(), Done)  # when it has completed what nobody waits for
                    agent.used = True
                    idle = self._idle.setdefault(agent.host, [])
                    if len(idle) < _KEPT and not agent.broken.done():
                        idle.append(agent)
                        return
            await agent.end()
        finally:
            if not extra:
                self._room[agent.host].release()

    async def settle(self) -> None:
        """Wait until every agent that was given back is seen off."""
        while self._leaving:
            await asyncio.gather(*self._leaving, return_exceptions=True)

    async def dismiss(self) -> None:
        """End all agents."""
        await self.settle()
        for idle in self._idle.values():
            while idle:
                await idle.pop().end()
