"""Spare lanes: streams that a transfer has done with, kept for the next one to the same host.

To dial one takes 0.2 s, and a third of a second of CPU on both ends together: as much as 64 MiB take.
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
        self._idle: Dict[str, List[Channel]] = {}
        self._timers: Dict[Channel, asyncio.TimerHandle] = {}
        self._ending: Set[asyncio.Task[None]] = set()

    def take(self, host: str) -> Optional[Channel]:
        """One that nobody uses; it may have broken meanwhile."""
        idle = self._idle.get(host)
        if not idle:
            return None
        lane = idle.pop()
        self._timers.pop(lane).cancel()
        return lane

    async def put(self, lane: Channel) -> None:
        """Keep a lane that has nothing on its way; returns when it has let go of its files, or has ended."""
        kept = self._idle.setdefault(lane.host, [])
        try:
            async with timeout(_ANSWER):
                await lane.ask(Leave(), Done)
        except (FastcopyError, asyncio.TimeoutError):
            await lane.close()
            return
        except BaseException:
            await lane.close()
            raise
        if len(kept) >= KEPT:
            await lane.close()
            return
        if len(self._timers) >= MOST:
            oldest = next(iter(self._timers))
            self._timers[oldest].cancel()
            self._expire(oldest)
        kept.append(lane)
        self._timers[lane] = asyncio.get_running_loop().call_later(IDLE, self._expire, lane)

    def _expire(self, lane: Channel) -> None:
        self._idle[lane.host].remove(lane)
        del self._timers[lane]
        task = asyncio.ensure_future(lane.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all."""
        for lane in list(self._timers):
            self._timers[lane].cancel()
            self._expire(lane)
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)
