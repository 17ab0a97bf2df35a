"""Examination: a conversation with the agent on a host in which the host is looked at and nothing is changed."""

from __future__ import annotations

import contextlib
import time
from typing import AsyncIterator, NamedTuple

from ..core.examine_messages import (
    ClockRead,
    DatastoreExamined,
    DiskFound,
    Examine,
    Examined,
    ExamineDatastore,
    FindDisk,
    Reach,
    Reached,
    ReadClock,
)
from ..core.paths import DiskPath
from .agents import Agent, AgentPool, orderly


class Clock(NamedTuple):
    """How many seconds a host's clock is ahead of ours, and by how much that may be wrong."""

    ahead: float
    doubt: float


class Examination:
    """The conversation.  One question after the other."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, agents: AgentPool, host: str) -> AsyncIterator[Examination]:
        """Start an agent on *host*."""
        agent = await agents.take(host)
        try:
            yield cls(agent)
        except BaseException as error:
            agents.give_back(agent, orderly(error))
            raise
        agents.give_back(agent, True)

    async def host(self, remotes: str) -> Examined:
        """What is on the host; *remotes* is where OpenNebula's scripts are there."""
        answer: Examined = await self._agent.ask(Examine(remotes), Examined)
        return answer

    async def clock(self) -> Clock:
        """How the host's clock stands to ours."""
        before = time.time()
        answer: ClockRead = await self._agent.ask(ReadClock(), ClockRead)
        after = time.time()
        return Clock(answer.clock / 1e6 - (before + after) / 2, (after - before) / 2)

    async def datastore(self, base: str) -> DatastoreExamined:
        """A system datastore there."""
        answer: DatastoreExamined = await self._agent.ask(ExamineDatastore(base), DatastoreExamined)
        return answer

    async def reach(self, other: str) -> str:
        """Why the host cannot log into another one; "" if it can."""
        answer: Reached = await self._agent.ask(Reach(other), Reached)
        return answer.problem

    async def look(self, disk: DiskPath) -> DiskFound:
        """What is at a disk's path."""
        answer: DiskFound = await self._agent.ask(FindDisk(disk.base, disk.vm, disk.name), DiskFound)
        return answer
