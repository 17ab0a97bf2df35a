"""Limits: how many transfers may run at once, in all and to one host.

A call that waits here keeps its slot in one_tm (15 by default, `-t`), so the limit in all is no lower than that unless
an administrator sets it: it would only move the queue.  The limit for a host keeps one slow host from taking all.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import AsyncIterator, Dict


class Limits:
    """At most *total* transfers, and *per_host* of them with one host."""

    def __init__(self, total: int = 15, per_host: int = 4) -> None:
        self._total, self._per_host = asyncio.Semaphore(total), per_host
        self._hosts: Dict[str, asyncio.Semaphore] = {}

    @contextlib.asynccontextmanager
    async def transfer(self, *hosts: str) -> AsyncIterator[None]:
        """Hold one of them, with one host, or between two."""
        async with contextlib.AsyncExitStack() as held:
            # The hosts' first: who waits for a host must not keep another host's transfer from running.  In the same
            # order for all: two transfers in opposite directions must not wait for each other.
            for host in sorted(set(hosts)):
                await held.enter_async_context(self._hosts.setdefault(host, asyncio.Semaphore(self._per_host)))
            await held.enter_async_context(self._total)
            yield
