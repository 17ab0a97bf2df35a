"""Upkeep: a conversation with the agent on a host about the cache of a system datastore."""

from __future__ import annotations

import contextlib
from typing import AsyncIterator, List

from ..core.cache_messages import CacheOpened, Entries, EntryRow, Evict, ListEntries, OpenCache, Pin, Scrub, Scrubbed
from ..core.errors import FastcopyError
from ..core.messages import Missing
from ..core.wire import Done
from .agents import Agent, AgentPool, orderly


class NotThere(FastcopyError):
    """The datastore's directory is not on the host yet, and so it has no cache."""


class CacheUpkeep:
    """The open cache on a host.  One question after the other."""

    def __init__(self, agent: Agent, opened: CacheOpened) -> None:
        self._agent, self.opened = agent, opened

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, agents: AgentPool, host: str, base: str) -> AsyncIterator[CacheUpkeep]:
        """The cache on *host* that serves the system datastore *base*; `NotThere` if there can be none yet."""
        agent = await agents.take(host)
        try:
            opened = await agent.ask(OpenCache(base), CacheOpened, Missing)
            if isinstance(opened, Missing):
                raise NotThere(f"{base} is not on {host} yet, so there is no cache: the first VM there makes it")
            yield cls(agent, opened)
        except BaseException as error:
            agents.give_back(agent, orderly(error))
            raise
        agents.give_back(agent, True)

    async def entries(self) -> List[EntryRow]:
        """The images, the one that was used last first, then those in quarantine."""
        answer: Entries = await self._agent.ask(ListEntries(), Entries)
        return answer.rows

    async def pin(self, manifest: str, pinned: bool) -> None:
        """Keep an image from being removed, or no longer."""
        await self._agent.ask(Pin(manifest, pinned), Done)

    async def remove(self, manifest: str) -> None:
        """Remove an image."""
        await self._agent.ask(Evict(manifest), Done)

    async def scrub(self, manifest: str = "", rate: int = 0) -> AsyncIterator[Scrubbed]:
        """Verify an image, or all of them, *rate* bytes a second; yields what was done every few seconds.

        Whoever stops to iterate stops the scrub; the next one of all images goes on there.
        """
        while True:
            answer: Scrubbed = await self._agent.ask(Scrub(manifest, rate), Scrubbed)
            yield answer
            if answer.finished:
                return
