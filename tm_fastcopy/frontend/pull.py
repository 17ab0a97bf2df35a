"""Pull: brings a VM's disk back as an image, of which only the chunks that changed travel.

The new image is staged beside the old one, beginning as its reflink (or, where there is none, taking unchanged
chunks from it as a seed), and takes its name in one step.  The host's disk is not touched.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence

from ..core import qcow2
from ..core.assembly import Assembly
from ..core.chain import open_member
from ..core.errors import BadChunk, FastcopyError, NoSpace, ProtocolError, Refused, classify
from ..core.files import Files, free_bytes, room
from ..core.manifest import MAX_CHUNKS, ZERO_DIGEST, Manifest, check_geometry, chunk_count, chunk_size_for
from ..core.messages import CloseSource, Get, Offer, OpenSource, Put, Scan, Source
from ..core.paths import has, relative_to_any
from ..core.plan import Place
from ..core.publish import Staged, publish, replace, staging_name
from ..core.receipt import Receipt
from ..core.staging import ChunkTable, Sink, Staging, need_room, store_chunk
from ..core.tree import tree_name
from ..core.tree_messages import OpenMember
from ..core.wire import Done, Message
from .compression import Compression, Slice
from .host import Host
from .image import Image, ManifestStore, open_place
from .lanes import LanePool
from .phases import Phases
from .settings import Settings
from .threads import in_thread

_SCAN_PAGE = 256  # chunks, 64 MiB: small enough that lanes begin while the rest of the disk is read
_NEW_IMAGE_MODE = 0o660


class Slot(NamedTuple):
    """One file of a tree in the making: the open staging tree, its name there, the old tree, if there is one, and
    whether the old image is a file of its own.
    """

    tree: int
    name: str
    old: Optional[int]
    flat: bool


@dataclass(frozen=True)
class Pulled:
    """How it went: the receipt, bytes of chunks that travelled (plain), bytes on the wire."""

    receipt: Receipt
    fetched: int
    wire: int


class _OldImage:
    """The image that is being replaced, as a seed.  *remembered*: its manifest was not made just now."""

    def __init__(self, image: Image, manifest: Manifest, remembered: bool) -> None:
        self.image, self.manifest, self.remembered = image, manifest, remembered
        self._places = {digest: index for index, digest in enumerate(manifest) if digest != ZERO_DIGEST}

    def find(self, digest: bytes) -> Optional[Place]:
        """Where the old image has a chunk."""
        index = self._places.get(digest)
        return None if index is None else Place("old", index)

    def open(self, source: str) -> int:
        """The old image."""
        return self.image.fd

    def damaged(self, source: str) -> None:
        """What differs is fetched, as if it had been changed."""

    def have(self, first: int, count: int, size: int) -> List[Optional[bytes]]:
        """What a reflink of the old image, cut or grown to *size* bytes, has in the chunks from *first* on."""
        chunk = self.manifest.chunk_size
        found: List[Optional[bytes]] = []
        for index in range(first, first + count):
            here = min(chunk, size - index * chunk)
            there = min(chunk, self.manifest.size - index * chunk)
            if there <= 0:
                found.append(ZERO_DIGEST)
            else:
                found.append(self.manifest.digest(index) if here == there else None)
        return found


class Pull:
    """One disk on its way to one image; `run` once."""

    def __init__(
        self,
        host: Host,
        path: str,
        bases: Iterable[str],
        store: ManifestStore,
        settings: Settings,
        files: Files,
        format: str = "raw",
        phases: Optional[Phases] = None,
        member: Optional[Slot] = None,
    ) -> None:
        self._phases = phases or Phases()
        self._host, self._path, self._bases, self._store, self._files = host, path, list(bases), store, files
        self._lanes, self._compression = settings.lanes, Compression(settings.compression)
        self._slices: Dict[int, Slice] = {}
        self._pool: Optional[LanePool] = None
        self._format = format
        self._member = member
        if member:
            self._directory, self._name = os.dup(member.tree), member.name
            self._file = f"{tree_name(path)}/{member.name}"
        else:
            place = open_place(*relative_to_any(path, self._bases), path, format)
            self._directory, self._name = place.directory, place.name
            self._file = f"{tree_name(path)}/{place.name}" if place.in_tree else path
        self._sink: Optional[Sink] = None
        self._fetched = 0
        self._needed = 0

    async def run(self) -> Pulled:
        """Bring the disk back and give it the image's name."""
        old: Optional[_OldImage] = None
        staging: Optional[Staging] = None
        try:
            self._phases.enter("disk")
            question = OpenMember(self._name) if self._member else OpenSource(self._format)
            source: Source = await self._host.ask(question, Source)
            self._needed = source.data
            check_geometry(source.size, chunk_size_for(source.size))
            self._phases.enter("image")
            old = await in_thread(self._old_image)
            if old and self._format == "raw" and not self._member and source.size < old.image.size:
                raise Refused(
                    f"the disk has {source.size} bytes and its image {old.image.size}: disks do not shrink, so this "
                    "one is damaged; the image stays as it is"
                )
            staging = await in_thread(self._stage, source.size)
            self._phases.enter("wait")
            async with self._host.transfer():
                self._phases.enter("transfer")
                receipt = await self._assemble(source, old, staging)
            return Pulled(receipt, self._fetched, self._host.wire_bytes)
        except (OSError, NoSpace) as error:
            raise self._told(error, staging) from error
        finally:
            if self._pool:
                await self._pool.cancel()
            if old:
                old.image.close()
            if staging:
                staging.close()
            os.close(self._directory)

    def _told(self, error: Exception, staging: Optional[Staging]) -> FastcopyError:
        typed = classify(error, f"writing {self._path}")
        if not isinstance(typed, NoSpace):
            return typed
        if staging:
            self._files.unlink(self._directory, staging.name)  # a half that cannot be completed only keeps it full
        return NoSpace(
            f"the datastore of {self._path} is full ({free_bytes(self._directory) // 2**20} MiB free, up to "
            f"{-(-self._needed // 2**20)} MiB needed): make room there and repeat; image and disk are as they were"
        )

    def _old_image(self) -> Optional[_OldImage]:
        """Open the image that will be replaced, with its manifest; None if there is none."""
        image = self._open_old()
        if image is None:
            return None
        try:
            chunk = chunk_size_for(image.size)
            manifest = self._store.get(image)
            if manifest is not None:
                return _OldImage(image, manifest, remembered=True)
            pages = (image.page(chunk, *place, None) for place in image.pages(chunk, None))
            manifest = Manifest(image.size, chunk, b"".join(page.digests for page in pages))
            image.check()
            self._store.put(image, manifest)
            return _OldImage(image, manifest, remembered=False)
        except BaseException:
            image.close()
            raise

    def _open_old(self) -> Optional[Image]:
        if self._member:
            old = self._member.old
            if old is not None and has(old, self._name) is not None:
                return Image(self._file, open_member(old, self._name, tree_name(self._path)))
            # An image of one file is what the first of the tree's files was made of, or (raw) what all were.
            return Image.open(self._path, self._bases, "raw") if self._member.flat else None
        if has(self._directory, self._name) is None:
            return None
        return Image.open(self._path, self._bases, self._format)

    def _stage(self, size: int) -> Staging:
        staging = Staging.open(self._files, self._directory, staging_name(self._name), size)
        if staging is None:
            raise Refused(f"another action is just bringing back {self._path}: repeat this one when it is done")
        return staging

    async def _assemble(self, source: Source, old: Optional[_OldImage], staging: Staging) -> Receipt:
        chunk = old.manifest.chunk_size if old else chunk_size_for(source.size)
        mode = old.image.mode if old else _NEW_IMAGE_MODE
        seed = old
        if chunk_count(source.size, chunk) > MAX_CHUNKS:
            seed, chunk = None, chunk_size_for(source.size)  # grown out of its chunk size: fetched whole
        table = ChunkTable.create(source.size, chunk)
        pool = self._pool = LanePool(self._host, self._lanes, chunk, self._prepare, self._settle)
        try:
            assembly = self._assembly(table, seed, staging, source)
            self._sink = Sink(self._files, table, staging.fd, staging.fresh)
            try:
                await self._offer_all(assembly, pool, source.size, chunk)
                await pool.finish()
            except BadChunk:
                await pool.cancel()
                await self._host.ask(CloseSource(), Done)  # if the disk was written meanwhile, that is what it says
                raise
            self._phases.enter("publish")
            manifest = await in_thread(assembly.finish)
            await self._host.ask(CloseSource(), Done)
            if old:
                old.image.check()
            if self._format == "qcow2" and not self._member:
                await in_thread(self._check_header, staging, old)
            staged = Staged(self._directory, staging.name, staging.fd, manifest.id)
            if self._member:
                mode = (source.mode & 0o777) | 0o600
                return await in_thread(publish, self._files, staged, self._name, self._file, mode)
            return await in_thread(replace, self._files, staged, self._name, self._file, mode)
        finally:
            table.close()

    def _check_header(self, staging: Staging, old: Optional[_OldImage]) -> None:
        """Refuse what must not become an image.  The agent has looked as well; an image is read by every host."""
        shown = f"the disk of {self._path}"
        try:
            header = qcow2.read(staging.fd, shown)
            qcow2.check_stand_alone(header, shown)
            if old and header.size < qcow2.read(old.image.fd, self._path).size:
                raise Refused(
                    f"{shown} is smaller for its guest than the image is: disks do not shrink, so this one is damaged; "
                    "the image stays as it is"
                )
        except Refused:
            self._files.unlink(self._directory, staging.name)
            raise

    def _assembly(self, table: ChunkTable, old: Optional[_OldImage], staging: Staging, source: Source) -> Assembly:
        check = old is not None and old.remembered  # what has to be read anyway is also verified
        if not staging.fresh:  # what an earlier action left is looked at and kept
            return Assembly(self._files, staging, table, old, check_seeds=check)
        if old and self._files.clone(staging.fd, old.image.fd):
            self._files.truncate(staging.fd, source.size)
            staging.fresh = False
            base = old
            return Assembly(
                self._files, staging, table, have=lambda first, count: base.have(first, count, source.size)
            )
        need_room(self._path, source.data, room(self._files, self._directory, source.data))
        return Assembly(self._files, staging, table, old, check_seeds=check)

    async def _offer_all(self, assembly: Assembly, pool: LanePool, size: int, chunk: int) -> None:
        """Have the host digest the disk page by page, one page ahead of the one that is planned."""
        count = chunk_count(size, chunk)
        places = [(first, min(_SCAN_PAGE, count - first)) for first in range(0, count, _SCAN_PAGE)]
        ahead: Optional[asyncio.Task[Offer]] = None
        try:
            for i, (first, length) in enumerate(places):
                task = ahead or self._scan(first, length, chunk)
                page = await task
                ahead = self._scan(*places[i + 1], chunk) if i + 1 < len(places) else None
                if page.first != first or page.count != length:
                    raise ProtocolError("the agent answered for another page than it was asked for")
                await pool.add(await in_thread(assembly.offer, first, page.digests, page.runs))
        finally:
            if ahead:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    def _scan(self, first: int, count: int, chunk: int) -> asyncio.Task[Offer]:
        return asyncio.ensure_future(self._host.ask(Scan(first, count, chunk), Offer))

    async def _prepare(self, chunks: Sequence[int]) -> List[Message]:
        assert self._sink is not None
        table = self._sink.table
        self._slices.update((index, self._compression.next(table.length(index))) for index in chunks)
        return [Get(index, table.chunk_size, table.length(index), self._slices[index].packed) for index in chunks]

    async def _settle(self, answer: Message) -> int:
        if not isinstance(answer, Put) or self._sink is None or answer.index not in self._slices:
            raise ProtocolError(f"a lane answered {type(answer).__name__} to a question for a chunk")
        await in_thread(store_chunk, self._sink, answer.index, answer.length, answer.codec, answer.blob)
        self._compression.arrived(self._slices.pop(answer.index), answer.length)
        self._fetched += answer.length
        return answer.index


