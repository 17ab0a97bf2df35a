"""Spare lanes: streams that a transfer has done with, kept for the next one to the same host.

To dial one takes a key exchange, a login shell and the start of Python there, one lane after another.
"""

from __future__ import annotations

import asyncio
from typing import Dict, List, Optional, Set

from async_timeout import timeout

from ..core.errors import FastcopyError
from ..core.messages import Leave
from ..core.wire import Done
from .channel import Channel

KEPT = 2  # lanes of a host: as many as a transfer uses, 25 MB on the host and 10 here each
# Lanes in all.  A lane's pipes are 288 pages, and a user who has more than 16384 gets such small ones that they crawl
# (/proc/sys/fs/pipe-user-pages-soft): with these, 40 more can be at work.
MOST = 16
IDLE = 120.0  # seconds; deployments come in waves.  A lane waits longer than that for another `Join` (agent/lanes.py)
_ANSWER = 5.0  # seconds for a lane to let go of its files


class SpareLanes:
    """Lanes by host, each of which waits for `Join`."""

    def __init__(self) -> None:
        self._timers: Dict[Channel, asyncio.TimerHandle] = {}  # the oldest first
        self._ending: Set[asyncio.Task[None]] = set()

    def _of(self, host: str) -> List[Channel]:
        return [lane for lane in self._timers if lane.host == host]

    def take(self, host: str) -> Optional[Channel]:
        """One that nobody uses, the newest; it may have broken meanwhile."""
        idle = self._of(host)
        if not idle:
            return None
        self._timers.pop(idle[-1]).cancel()
        return idle[-1]

    async def put(self, lane: Channel) -> None:
        """Keep a lane that has nothing on its way; returns when it has let go of its files, or has ended."""
        usable = False
        try:
            async with timeout(_ANSWER):
                await lane.ask(Leave(), Done)
            usable = len(self._of(lane.host)) < KEPT
        except (FastcopyError, asyncio.TimeoutError):
            pass
        finally:
            if not usable:
                await lane.close()
        if usable:
            if len(self._timers) >= MOST:
                self._expire(next(iter(self._timers)))
            self._timers[lane] = asyncio.get_running_loop().call_later(IDLE, self._expire, lane)

    def _expire(self, lane: Channel) -> None:
        self._timers.pop(lane).cancel()
        task = asyncio.ensure_future(lane.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all."""
        for lane in list(self._timers):
            self._expire(lane)
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)
