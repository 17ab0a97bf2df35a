"""Relay: brings one file from one agent to another.

The source's agent digests the file page by page, the target's plans each page with what it has, and only what it lacks
travels: packed or not as the source sends it, and verified by the target.  It goes through this process (`Relay`), or
from host to host where the one reaches the other (`Direct`).
"""

from __future__ import annotations

import asyncio
from typing import Dict, List, Optional, Sequence

from ..core.errors import BadChunk, FastcopyError, LinkLost, ProtocolError
from ..core.manifest import Manifest, chunk_count
from ..core.messages import CloseSource, Commit, Get, Offer, Put, Scan, Stored, Wants
from ..core.move_messages import Carry, Forward
from ..core.wire import Done, Message
from . import lanes
from .channel import Channel
from .compression import Compression
from .host import Host
from .lanes import LanePool

_PAGE = 256  # chunks, 64 MiB: small enough that lanes begin while the rest of the file is read


class _Way:
    """One file of *size* bytes, open for reading at *source* and for writing at *target*; `run` once."""

    def __init__(self, source: Host, target: Host, size: int, chunk: int, compression: Compression) -> None:
        self._source, self._target, self._size, self._chunk = source, target, size, chunk
        self._compression = compression
        self._pools: List[LanePool] = []
        """Where chunks go, one pool after the other."""
        self.sent = 0
        """Bytes of chunks that travelled, before they were packed."""

    async def run(self) -> None:
        """Bring the file over, verified and durable; the files on both sides are closed."""
        try:
            try:
                digests = await self._offer_all()
                for pool in self._pools:
                    await pool.finish()
            finally:
                for pool in self._pools:
                    await pool.cancel()
        except BadChunk:
            await self._source.ask(CloseSource(), Done)  # if the file was written meanwhile, that is what it says
            raise
        await self._source.ask(CloseSource(), Done)
        await self._target.ask(Commit(Manifest(self._size, self._chunk, digests).id), Done)

    async def _offer_all(self) -> bytes:
        count = chunk_count(self._size, self._chunk)
        places = [(first, min(_PAGE, count - first)) for first in range(0, count, _PAGE)] or [(0, 0)]
        digests: List[bytes] = []
        ahead: Optional[asyncio.Task[Offer]] = None
        try:
            for i, (first, length) in enumerate(places):
                page = await (ahead or self._scan(first, length))
                ahead = self._scan(*places[i + 1]) if i + 1 < len(places) else None
                if page.first != first or page.count != length:
                    raise ProtocolError(f"{self._source.name} answered for another page than it was asked for")
                digests.append(page.digests)
                wants: Wants = await self._target.ask(page, Wants)
                if len(wants.blob) != length:
                    raise ProtocolError(f"{self._target.name} answered for another page than it was offered")
                self._pools[0].add([first + i for i, wanted in enumerate(wants.blob) if wanted])
        finally:
            if ahead:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)
        return b"".join(digests)

    def _scan(self, first: int, count: int) -> asyncio.Task[Offer]:
        return asyncio.ensure_future(self._source.ask(Scan(first, count, self._chunk), Offer))

    def _length(self, index: int) -> int:
        return min(self._chunk, self._size - index * self._chunk)

    def _packed(self, chunks: Sequence[int]) -> List[bool]:
        """Whether each chunk shall be packed if it shrinks."""
        return [self._compression.next(index, self._length(index)) for index in chunks]

    def _arrived(self, answer: Message) -> int:
        if not isinstance(answer, Stored) or not self._compression.awaits(answer.index):
            raise ProtocolError(f"{self._target.name} answered {type(answer).__name__} to a chunk")
        self._compression.arrived(answer.index)
        self.sent += self._length(answer.index)
        return answer.index


class Relay(_Way):
    """Through this process.  What was fetched and is not stored yet is bounded, so a slow target slows the source down.

    *most* lanes are used on either side.
    """

    def __init__(
        self, source: Host, target: Host, size: int, chunk: int, compression: Compression, most: int
    ) -> None:
        super().__init__(source, target, size, chunk, compression)
        self._fetched: Dict[int, Put] = {}
        # Enough that the target may wait for more than goes without a lane before it dials one.
        self._most_kept = 2 * max(lanes.INLINE // chunk, lanes.WINDOW)
        self._to = LanePool(target, most, chunk, self._give, self._settle)
        self._pools += [LanePool(source, most, chunk, self._ask, self._take), self._to]

    async def _ask(self, chunks: Sequence[int]) -> List[Message]:
        packed = self._packed(chunks)
        return [Get(index, self._chunk, self._length(index), pack) for index, pack in zip(chunks, packed)]

    async def _take(self, answer: Message) -> int:
        if not isinstance(answer, Put) or not self._compression.awaits(answer.index) or answer.index in self._fetched:
            raise ProtocolError(f"{self._source.name} answered {type(answer).__name__} to a question for a chunk")
        await self._to.room(self._most_kept)
        self._fetched[answer.index] = answer
        self._to.add([answer.index])
        return answer.index

    async def _give(self, chunks: Sequence[int]) -> List[Message]:
        return [self._fetched[index] for index in chunks]

    async def _settle(self, answer: Message) -> int:
        index = self._arrived(answer)
        del self._fetched[index]
        return index


class Direct(_Way):
    """From host to host: lanes at the source dial the target's agent themselves, and only say here what has arrived."""

    def __init__(
        self, source: Host, target: Host, size: int, chunk: int, compression: Compression, most: int
    ) -> None:
        super().__init__(source, target, size, chunk, compression)
        self._pools.append(LanePool(source, most, chunk, self._ask, self._settle, self._onward))

    async def _ask(self, chunks: Sequence[int]) -> List[Message]:
        packed = self._packed(chunks)
        return [Carry(index, self._chunk, self._length(index), pack) for index, pack in zip(chunks, packed)]

    async def _settle(self, answer: Message) -> int:
        return self._arrived(answer)

    async def _onward(self, channel: Channel) -> None:
        try:
            await channel.ask(forward(self._target), Done)
        except LinkLost:
            self._source.hops.note(self._source.name, self._target.name, False)
            raise


def forward(target: Host) -> Forward:
    """What a lane is told that shall dial the agent of this conversation."""
    return Forward(target.name, *target.bundle, target.opened.socket, target.opened.token)


async def reaches(source: Host, target: Host) -> str:
    """Try whether *source* can dial *target*, both of which have a file open; "" if it can, otherwise why not."""
    try:
        channel = await source.lane(onward=True)
        try:
            await channel.ask(forward(target), Done)
            return ""
        finally:
            await source.release(channel, usable=False)
    except FastcopyError as error:
        return str(error)
