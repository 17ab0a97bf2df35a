"""A relay whose lane breaks, between two hosts that are played."""

from __future__ import annotations

import asyncio
from typing import Any, Deque, List, Sequence, Type

from tm_fastcopy.core.errors import LinkLost
from tm_fastcopy.core.manifest import DIGEST_SIZE, MAX_CHUNK
from tm_fastcopy.core.messages import CloseSource, Commit, Get, Offer, Put, Scan, Stored, Wants
from tm_fastcopy.core.wire import Done, Message
from tm_fastcopy.frontend.compression import Compression
from tm_fastcopy.frontend.relay import Relay

COUNT = 12  # chunks: more than go without a lane


class FakeHost:
    """One side of a relay: every chunk is wanted, and every question is answered at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stored: List[int] = []
        self.lanes: List[FakeLane] = []

    def answer(self, message: Message) -> Message:
        if isinstance(message, Scan):
            return Offer.make(message.first, bytes(range(1, message.count + 1)) * DIGEST_SIZE, [])
        if isinstance(message, Offer):
            return Wants(b"\1" * message.count)
        if isinstance(message, Get):
            return Put(message.index, message.length, 0, b"")
        if isinstance(message, Put):
            self.stored.append(message.index)
            return Stored(message.index)
        assert isinstance(message, (CloseSource, Commit))
        return Done()

    async def ask(self, message: Message, *_: Type[Message]) -> Message:
        return self.answer(message)

    async def ask_all(self, messages: Sequence[Message]) -> List[Message]:
        return [self.answer(message) for message in messages]

    async def pay(self) -> None: ...

    async def broken(self) -> None:
        await asyncio.Event().wait()

    async def lane(self, onward: bool) -> FakeLane:
        self.lanes.append(FakeLane(self))
        return self.lanes[-1]

    async def release(self, channel: FakeLane, usable: bool) -> None: ...


class FakeLane:
    """A lane that answers in order."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host
        self._answers: asyncio.Queue[Message] = asyncio.Queue()

    async def send(self, *messages: Message) -> None:
        for message in messages:
            self._answers.put_nowait(self._host.answer(message))

    async def receive(self) -> Message:
        return await self._answers.get()


class Breaking(FakeHost):
    """A source whose first lane breaks as soon as *taken* is true, when some chunks are on their way."""

    def __init__(self) -> None:
        super().__init__("source")
        self.taken: Any = None

    async def lane(self, onward: bool) -> FakeLane:
        lane = await super().lane(onward)
        if len(self.lanes) == 1:
            sent, send = Deque[int](), lane.send

            async def breaking(*messages: Message) -> None:
                if sent:
                    while not self.taken():
                        await asyncio.sleep(0)
                    raise LinkLost("source: the connection broke")
                sent.append(len(messages))
                await send(*messages)

            lane.send = breaking  # type: ignore[method-assign]
        return lane


def test_a_source_lane_that_breaks_just_when_a_chunk_is_passed_on_costs_a_login_and_no_more() -> None:
    async def main() -> None:
        source, target = Breaking(), FakeHost("target")
        parts: Any = source, target
        relay = Relay(*parts, COUNT * MAX_CHUNK, MAX_CHUNK, Compression("none"), 1)
        source.taken = lambda: relay._fetched
        room, news = relay._to.room, relay._to._news

        async def busy_room(most: int) -> None:
            await room(most)
            if len(source.lanes) == 1 and not news.locked():
                await news.acquire()  # whoever tells the target's lanes of a chunk now waits, as among many of them

        relay._to.room = busy_room  # type: ignore[method-assign]
        running = asyncio.ensure_future(relay.run())
        while len(source.lanes) < 2 and not running.done():
            await asyncio.sleep(0)
        news.release()
        await running
        assert sorted(target.stored) == list(range(COUNT))
        assert relay.sent == COUNT * MAX_CHUNK
        assert len(source.lanes) == 2

    asyncio.run(asyncio.wait_for(main(), 20))
