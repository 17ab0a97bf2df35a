"""Channel: what happens to a message when its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tm_fastcopy.core.wire import Ping, Pong, encode
from tm_fastcopy.frontend.channel import Channel

_TICKS = 8  # turns of the event loop between the end of a write and the cancellation: more than it takes to be noticed


class Gated:
    """A link whose next step is done when the test says so."""

    def __init__(self) -> None:
        self.gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = encode(Pong())

    async def write(self, *pieces: bytes) -> None:
        await self.gate

    async def read_exactly(self, length: int) -> bytes:
        await self.gate
        piece, self._answer = self._answer[:length], self._answer[length:]
        return piece


@pytest.mark.parametrize("ticks", range(_TICKS))
@pytest.mark.parametrize("what", ["send", "receive"])
def test_a_cancellation_is_never_lost(what: str, ticks: int) -> None:
    """Before Python 3.12, `asyncio.wait_for` loses one that comes when what it waits for has just been done.

    The task then goes on in a lane that has failed, and the action waits for it for ever.
    """

    async def scene() -> None:
        link = Gated()
        channel = Channel("host1", link)  # type: ignore[arg-type]
        task: asyncio.Task[Any] = asyncio.ensure_future(
            channel.send(Ping()) if what == "send" else channel.receive()
        )
        await asyncio.sleep(0)
        link.gate.set_result(None)
        for _ in range(ticks):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task

    asyncio.run(scene())
