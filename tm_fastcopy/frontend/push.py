"""Push: brings an image to a host, and makes a VM's disk of it there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import AsyncIterator, Dict, List, Optional, Sequence

from ..core import codec
from ..core.errors import BadChunk, LinkLost, ProtocolError
from ..core.hashing import Page, read_exactly
from ..core.identity import boot_id
from ..core.manifest import Manifest, chunk_size_for
from ..core.messages import (
    DEFAULT_OPTIONS,
    Begin,
    Begun,
    CloneEntry,
    CloneLocal,
    Commit,
    Missing,
    Offer,
    Published,
    Put,
    Stored,
    Wants,
)
from ..core.receipt import Receipt
from ..core.wire import Done, Message
from .cache_options import cache_options
from .compression import Compression
from .host import Host
from .image import Image, ManifestStore
from .lanes import LanePool
from .phases import Phases
from .settings import Settings
from .threads import in_thread

_LONGEST_HOW = 300  # characters
_FOLLOW = 0.3  # seconds between looks at a transfer of the same image that another action has begun
_ADVANCE = 2  # pages hashed ahead of the one that is offered: both cores, and no more memory than their buffers


@dataclass(frozen=True)
class Wanted:
    """What the disk must be: bytes (at least the image's), permission bits, holes allowed, format, and (qcow2) how
    many bytes its guest must see, 0 for those of the image.
    """

    size: int
    mode: int
    sparse: bool
    format: str = "raw"
    virtual: int = 0


@dataclass(frozen=True)
class Pushed:
    """How it went: the receipt, where the disk came from, bytes of chunks that were sent (before they were packed), how
    many of these in packed slices, and bytes on the wire."""

    receipt: Receipt
    how: str
    sent: int
    packed: int
    wire: int


class Push:
    """One image on its way to one disk; `run` once.

    *known* is its manifest if *store* has it; *key* names the image as it is now ("": it cannot be named).
    """

    def __init__(
        self,
        host: Host,
        image: Image,
        wanted: Wanted,
        store: ManifestStore,
        known: Optional[Manifest],
        settings: Settings,
        key: str,
        phases: Phases,
    ) -> None:
        self._host, self._image, self._wanted, self._store = host, image, wanted, store
        self._options = cache_options(settings)
        self._known = known
        self._chunk = self._known.chunk_size if self._known else chunk_size_for(image.size)
        self._key, self._phases = key, phases
        self._pool = LanePool(host, settings.lanes, self._chunk, self._prepare, self._settle)
        self._digests: List[bytes] = []
        self._compression = Compression(settings.compression, favourite=host.packs)
        self._sent = 0
        self._content = ""

    async def run(self) -> Pushed:
        """Make the disk: from the image itself if it lies there, from the host's cache if that has it, or by lanes."""
        if self._options != DEFAULT_OPTIONS:
            await self._host.ask(self._options, Done)
        self._phases.enter("disk")
        published = await self._from_image()
        if published is None and self._known:
            published = await self._from_cache(self._known.id)
        while published is None:
            self._phases.enter("wait")
            begun = await self._host.ask(self._begin(), Begun)
            if begun.state == "lead":
                async with self._host.transfer():
                    published = await self._send()
            elif begun.state == "ready":
                self._phases.enter("disk")
                published = await self._from_cache(begun.manifest)
                if published is None:
                    self._key = ""  # the cache names an image that it cannot give: go past it
            elif begun.state == "wait":
                await asyncio.sleep(_FOLLOW)
            else:
                raise ProtocolError(f"the agent is in the unknown state {begun.state!r}")
        receipt = Receipt.decode(published.receipt)
        if receipt.manifest != self._content or receipt.size < max(self._image.size, self._wanted.size):
            raise ProtocolError("the agent's receipt is for another file than the one that was sent")
        how = published.how if published.how.isprintable() else "in an unprintable way"  # it goes into oned's log
        return Pushed(receipt, how[:_LONGEST_HOW], self._sent, self._compression.packed, self._host.wire_bytes)

    async def _from_image(self) -> Optional[Published]:
        """Have the image cloned where it lies, if this machine is the host."""
        boot = boot_id()
        image, wanted = self._image, self._wanted
        if not boot or self._host.opened.boot != boot or not all(0 <= number < 1 << 63 for number in image.identity):
            return None
        self._content = self._known.id if self._known else ""
        message = CloneLocal(
            boot, image.base, image.rest, *image.identity, self._content,
            wanted.size, wanted.mode, wanted.sparse, wanted.format, wanted.virtual,
        )  # fmt: skip
        answer = await self._host.ask(message, Published, Missing)
        return answer if isinstance(answer, Published) else None

    async def _from_cache(self, manifest_id: str) -> Optional[Published]:
        wanted, self._content = self._wanted, manifest_id
        answer = await self._host.ask(
            CloneEntry(manifest_id, wanted.size, wanted.mode, wanted.sparse, wanted.format, wanted.virtual),
            Published,
            Missing,
        )
        return answer if isinstance(answer, Published) else None

    def _begin(self) -> Begin:
        image, wanted = self._image, self._wanted
        sizes = self._key, image.size, image.data, self._chunk, wanted.size
        return Begin(*sizes, wanted.mode, wanted.sparse, wanted.format, wanted.virtual)

    async def _send(self) -> Published:
        self._phases.enter("transfer")
        self._phases.progress.expect(self._image.data)
        try:
            async for page in self._pages():
                self._digests.append(page.digests)
                wants = await self._host.ask(Offer.make(page.first, page.digests, page.runs), Wants)
                if len(wants.blob) * 32 != len(page.digests):
                    raise ProtocolError("the agent answered for another page than it was offered")
                chunks = [page.first + i for i, wanted in enumerate(wants.blob) if wanted]
                self._phases.progress.found(sum(n for _, n in page.runs) - sum(map(self._length, chunks)))
                self._pool.add(chunks)
            await self._pool.finish()
            self._host.note_packing(self._compression.learned)
        except BadChunk as error:
            self._image.check()  # if it was written meanwhile, that is the reason, and the better thing to say
            if not self._known:
                raise
            self._store.forget(self._image)
            raise BadChunk(
                f"{self._image.path} is not what it was when it was last read, though its times are the same: "
                "repeat the action, which reads it anew, and look whether its datastore is sound"
            ) from error
        except LinkLost:
            await self._pool.cancel()
            raise
        finally:
            await self._pool.cancel()
        self._image.check()
        manifest = Manifest(self._image.size, self._chunk, b"".join(self._digests))
        self._content = manifest.id
        self._phases.enter("publish")
        published: Published = await self._host.ask(Commit(manifest.id), Published)
        if not self._known:
            await in_thread(self._store.put, self._image, manifest)
        return published

    async def _pages(self) -> AsyncIterator[Page]:
        """The image's pages in order, digested a little ahead."""
        todo = self._image.pages(self._chunk, self._known)
        running: List[asyncio.Future[Page]] = []
        try:
            for place in range(len(todo) + _ADVANCE):
                if place < len(todo):
                    first, count = todo[place]
                    running.append(
                        asyncio.ensure_future(
                            in_thread(self._image.page, self._chunk, first, count, self._known)
                        )
                    )
                if place >= _ADVANCE and running:
                    yield await running.pop(0)
            while running:
                yield await running.pop(0)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _prepare(self, chunks: Sequence[int]) -> List[Message]:
        ways = [self._compression.next(index, self._length(index)) for index in chunks]
        return await in_thread(self._read, dict(zip(chunks, ways)))

    def _length(self, index: int) -> int:
        return min(self._chunk, self._image.size - index * self._chunk)

    def _read(self, chunks: Dict[int, bool]) -> List[Message]:
        messages: List[Message] = []
        for index, packed in chunks.items():
            data = read_exactly(self._image.fd, index * self._chunk, self._length(index))
            encoding, payload = codec.encode(data) if packed else (codec.PLAIN, data)
            messages.append(Put(index, len(data), encoding, payload))
            self._sent += len(data)
        return messages

    async def _settle(self, answer: Message) -> int:
        if not isinstance(answer, Stored) or not self._compression.awaits(answer.index):
            raise ProtocolError(f"a lane answered {type(answer).__name__} to a chunk")
        self._compression.arrived(answer.index)
        self._phases.progress.moved(self._length(answer.index))
        return answer.index
