"""Lanes, on the front-end: a bounded set of streams that pull chunks from one queue.

A slow lane takes less, because it asks less often.  Lanes are dialled one after another, and only while there is work
that the ones at hand would need longer for than a login takes.  A chunk that was refused as bad is sent again a few
times; a lane that broke gives its chunks back and is dialled again; any other error stops all lanes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Awaitable, Callable, Deque, Dict, List, Optional, Sequence

from ..core.errors import BadChunk, LinkLost
from ..core.wire import Failure, Message
from .channel import Channel, first_error
from .host import Host

BATCH = 4  # chunks that one trip to a thread serves: at 256 KiB a chunk, 1 MiB
WINDOW = 16  # chunks on their way in a lane: 4 MiB, more than a 10 Gbit/s link holds at a round trip of 1 ms
WORTH_A_LANE = 32  # chunks waiting (8 MiB) that make one more login worth its 0.2 s
INLINE = 16 * 1024 * 1024  # bytes that go over the control connection: as long as a lane's login and start take
_TRIES = 3  # for one chunk, and for one lane

Prepare = Callable[[Sequence[int]], Awaitable[List[Message]]]
Settle = Callable[[Message], Awaitable[int]]
Onward = Callable[[Channel], Awaitable[None]]


class _InFlight:
    """Chunks on their way in one lane, in order; *complete* when no more will follow."""

    def __init__(self) -> None:
        self.chunks: Deque[int] = deque()
        self.complete = False


class LanePool:
    """Moves chunks of *chunk* bytes between this machine and *host* on at most *most* lanes.

    What turns out to be little goes over the control connection.  *prepare* makes the messages for some chunks (`Put`
    or `Get`), *settle* takes an answer in and says which chunk it settled.
    `add` may be called until `finish`, which returns when everything is settled.
    With *onward*, which is awaited for each lane that has joined, lanes dial another host from there; all goes by them.
    """

    def __init__(
        self, host: Host, most: int, chunk: int, prepare: Prepare, settle: Settle, onward: Optional[Onward] = None
    ) -> None:
        self._host, self._most, self._prepare, self._settle = host, most, prepare, settle
        self._onward = onward
        self._inline = 0 if onward else INLINE // chunk
        self._waiting: Deque[int] = deque()
        self._tries: Dict[int, int] = {}
        self._unsettled = 0
        self._lost = 0
        self._closed = False
        self._news = asyncio.Condition()
        self._telling: Optional[asyncio.Task[None]] = None
        self._lanes: List[asyncio.Task[None]] = []
        self._dialling = asyncio.Lock()
        self._failed: Optional[BaseException] = None

    def add(self, chunks: Sequence[int]) -> None:
        """Queue chunks; raises what a lane has failed with.

        Nobody waits here: who queues what was just taken in from another lane is not cut off, by that lane's end,
        before it counts as settled.
        """
        if self._failed:
            raise self._failed
        self._waiting.extend(chunks)
        self._unsettled += len(chunks)
        if len(self._waiting) > max(self._inline, WORTH_A_LANE * len(self._lanes)):
            self._start()
        self._tell()

    async def room(self, most: int) -> None:
        """Wait until fewer than *most* chunks are unsettled; raises what a lane has failed with."""
        async with self._news:
            await self._news.wait_for(lambda: self._failed or self._unsettled < most)
        if self._failed:
            raise self._failed

    async def finish(self) -> None:
        """Wait until every chunk is settled, and end the lanes."""
        self._closed = True
        if not self._lanes:
            await self._send_inline()
        self._tell()
        await self._outlive(asyncio.ensure_future(first_error(self._lanes)))
        if self._failed:
            raise self._failed
        if self._unsettled:
            raise LinkLost(f"all connections to {self._host.name} broke; repeat the action")

    async def _outlive(self, lanes: asyncio.Task[None]) -> None:
        """Wait for the lanes, or for what ends the conversation that they belong to."""
        broken = asyncio.ensure_future(self._host.broken())
        try:
            await asyncio.wait([lanes, broken], return_when=asyncio.FIRST_COMPLETED)
            await (lanes if lanes.done() else broken)
        finally:
            for task in (lanes, broken):
                task.cancel()
            await asyncio.gather(lanes, broken, return_exceptions=True)

    async def _send_inline(self) -> None:
        """All that waits is little, and goes with the conversation: a few batches at once, as in a lane."""
        running: Deque[asyncio.Task[None]] = deque()
        try:
            while self._waiting or running:
                if self._waiting and len(running) < WINDOW // BATCH:
                    await self._host.pay()
                    batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                    running.append(asyncio.ensure_future(self._send_batch(batch, await self._prepare(batch))))
                else:
                    await running.popleft()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _send_batch(self, batch: Sequence[int], messages: Sequence[Message]) -> None:
        mine = _InFlight()
        mine.chunks.extend(batch)
        for answer in await self._host.ask_all(messages):
            await self._take(answer, mine)

    async def cancel(self) -> None:
        """Stop at once."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        if self._telling:
            await self._telling

    def _tell(self) -> None:
        """Wake, soon, all who wait for news."""
        if self._telling is None or self._telling.done():
            self._telling = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _start(self) -> None:
        if len(self._lanes) < self._most:
            self._lanes.append(asyncio.ensure_future(self._keep_lane()))

    async def _keep_lane(self) -> None:
        """Run one lane, and dial it again when it breaks; note the error that stops all."""
        try:
            while True:
                try:
                    await self._run_lane()
                    return
                except LinkLost:
                    self._lost += 1
                    if self._lost >= _TRIES:
                        raise
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed = self._failed or error
            self._tell()
            raise

    async def _run_lane(self) -> None:
        async with self._dialling:  # one login at a time: sshd drops what comes faster (MaxStartups)
            if not self._waiting and self._closed:
                return
            channel = await self._host.lane(onward=self._onward is not None)
        mine, usable = _InFlight(), False
        try:
            if self._onward:
                await self._onward(channel)
            sender = asyncio.ensure_future(self._send(channel, mine))
            receiver = asyncio.ensure_future(self._receive(channel, mine))
            await first_error([sender, receiver])
            usable = not self._failed and not self._onward
        except LinkLost:
            self._waiting.extend(mine.chunks)
            self._tell()
            raise
        finally:
            await self._host.release(channel, usable)

    async def _send(self, channel: Channel, mine: _InFlight) -> None:
        while True:
            if self._waiting or not self._closed:
                await self._host.pay()  # before chunks are taken: what is in flight has its time limit
            async with self._news:
                await self._news.wait_for(
                    lambda: self._failed
                    or (self._waiting and len(mine.chunks) <= WINDOW - BATCH)
                    or (self._closed and not self._unsettled)
                )
                if self._failed or not self._waiting:
                    mine.complete = True
                    self._news.notify_all()
                    return
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                mine.chunks.extend(batch)
                self._news.notify_all()
            await channel.send(*await self._prepare(batch))

    async def _receive(self, channel: Channel, mine: _InFlight) -> None:
        while True:
            if not mine.chunks:
                async with self._news:
                    await self._news.wait_for(lambda: mine.chunks or mine.complete or self._failed)
            if not mine.chunks or self._failed:
                return
            await self._take(await channel.receive(), mine)

    async def _take(self, answer: Message, mine: _InFlight) -> None:
        """Settle one answer.  Answers come in the order of the questions."""
        index = mine.chunks[0]
        again = False
        try:
            if isinstance(answer, Failure):
                raise answer.error()
            settled = await self._settle(answer)
            if settled != index:
                raise LinkLost(f"{self._host.name} answered for chunk {settled} when asked for {index}")
        except BadChunk:
            self._tries[index] = self._tries.get(index, 0) + 1
            if self._tries[index] >= _TRIES:
                raise
            self._waiting.append(index)
            again = True
        else:
            self._unsettled -= 1
        mine.chunks.popleft()
        # What waits for room in a lane's window waits for that of a batch: not every chunk is news.
        if again or not self._unsettled or len(mine.chunks) % BATCH == 0:
            self._tell()
