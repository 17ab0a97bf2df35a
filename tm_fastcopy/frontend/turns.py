"""Turns: actions on one VM directory run one after another, and one that deletes does not wait for what it undoes.

The guard on the host does the same for all front-ends and all processes.  Turns keep those of one daemon from waiting
there, and can end what the guard can only wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import AsyncIterator, Dict, Hashable, List, Optional

from ..core.errors import Superseded


@dataclass(eq=False)
class _Turn:
    task: asyncio.Task[object]
    disk: str
    ended_by: str = ""


class Turns:
    """Whose turn it is, by VM directory."""

    def __init__(self) -> None:
        self._queues: Dict[Hashable, List[_Turn]] = {}
        self._change = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def turn(self, directory: Hashable, disk: str = "", ending: Optional[str] = None) -> AsyncIterator[None]:
        """Wait for the turn of an action on *disk* ("" is the whole directory), and hold it.

        With *ending*, what is under way or waits for that disk is cancelled; *ending* is the sentence that it fails
        with (`Superseded`).
        """
        task = asyncio.current_task()
        assert task is not None
        mine = _Turn(task, disk)
        queue = self._queues.setdefault(directory, [])
        if ending is not None:
            for other in queue:
                if disk in ("", other.disk) and not other.ended_by:
                    other.ended_by = ending
                    other.task.cancel()
        queue.append(mine)
        try:
            async with self._change:
                await self._change.wait_for(lambda: queue[0] is mine)
            yield
        except asyncio.CancelledError:
            if mine.ended_by:
                raise Superseded(mine.ended_by) from None
            raise
        finally:
            queue.remove(mine)
            if not queue:
                self._queues.pop(directory, None)
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._change:
            self._change.notify_all()
