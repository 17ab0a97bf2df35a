"""Flights: one transfer for many callers.

The first to bring an image to a host flies; others who want the same image there wait until it has landed, and then
find it in the host's cache.  Who is known to find it there does not wait.  The cache's own lock does the same for
several front-ends and processes; flights keep those of one daemon from holding an agent each meanwhile.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import AsyncIterator, Dict, Hashable, Optional

from ..core.errors import LinkLost

_REMEMBERED = 10_000  # images on hosts; about 1 MB


class Flights:
    """Images on their way, and those that are known to have arrived."""

    def __init__(self) -> None:
        self._flying: Dict[Hashable, asyncio.Future[Optional[LinkLost]]] = {}
        self._landed: collections.OrderedDict[Hashable, None] = collections.OrderedDict()
        self._waiting: collections.Counter[Hashable] = collections.Counter()

    def wanted(self, key: Hashable) -> bool:
        """Whether somebody flies *key*, or waits for that."""
        return key in self._flying or self._waiting[key] > 0

    @contextlib.asynccontextmanager
    async def board(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the flight *key*, or go on without one if it has landed before.  None is never shared.

        If the host did not answer the one who flew (`LinkLost`), those who waited get the same error, instead of
        finding it out one after another.
        """
        while key is not None and key not in self._landed and key in self._flying:
            self._waiting[key] += 1
            try:
                lost = await asyncio.shield(self._flying[key])
            finally:
                self._waiting -= collections.Counter([key])  # which forgets those for whom nobody waits
            if lost:
                raise LinkLost(str(lost))
        if key is None or key in self._landed:
            yield
            return
        flight = self._flying[key] = asyncio.get_running_loop().create_future()
        lost = None
        try:
            yield
            self._landed[key] = None
            while len(self._landed) > _REMEMBERED:
                self._landed.popitem(last=False)
        except LinkLost as error:
            lost = error
            raise
        finally:
            del self._flying[key]
            flight.set_result(lost)
