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
    async def transfer(self, host: str) -> AsyncIterator[None]:
        """Hold one of them."""
        # The host's first: who waits for a host must not keep another host's transfer from running.
        async with self._hosts.setdefault(host, asyncio.Semaphore(self._per_host)), self._total:
            yield
