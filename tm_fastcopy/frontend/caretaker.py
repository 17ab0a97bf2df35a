"""Caretaker: has hosts read their cached images now and then, one host at a time, while the daemon lives.

A host reads at the rate that the settings allow, and each image once a week.  What it finds damaged it puts aside by
itself; here that becomes a line in the log.  Whoever needs an agent does not wait for it: there are others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Callable, Dict, Tuple

from .agents import AgentPool
from .upkeep import CacheUpkeep

EVERY = 7 * 24 * 3600.0  # seconds between two looks at an image: a disk's own scrubs are weekly or monthly
_ROUND = 3600.0  # seconds between rounds of all hosts
_FIRST = 60.0  # seconds from the start to the first round: who starts a daemon has something better for it to do

log = logging.getLogger("fastcopyd")


@dataclass(frozen=True)
class _Charge:
    agents: AgentPool
    rate: int


class Caretaker:
    """Looks after the caches that were used since it began.  *now* is the time of day in seconds."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._charges: Dict[Tuple[str, str], _Charge] = {}

    def note(self, agents: AgentPool, host: str, base: str, rate: int) -> None:
        """The cache on *host* that serves the system datastore *base* is in use; *rate* is bytes a second, or 0."""
        self._charges[host, base] = _Charge(agents, rate)

    async def run(self) -> None:
        """Work until cancelled."""
        await asyncio.sleep(_FIRST)
        while True:
            await self.round()
            await asyncio.sleep(_ROUND)

    async def round(self) -> None:
        """Look at every cache once."""
        for (host, base), charge in list(self._charges.items()):
            if charge.rate:
                try:
                    await self._scrub(host, base, charge)
                except Exception as error:  # whatever it is, the next host and the next round are not to blame
                    log.info("the cache on %s is not scrubbed: %s", host, error)

    async def _scrub(self, host: str, base: str, charge: _Charge) -> None:
        async with CacheUpkeep.open(charge.agents, host, base) as cache:
            for row in await cache.entries():
                if row.bad or self._now() - row.scrubbed < EVERY:
                    continue
                async for done in cache.scrub(row.manifest, charge.rate):
                    if done.damaged:
                        log.warning("the cached image %s on %s is damaged and was put aside", row.manifest[:16], host)
