"""Pull: brings a VM's disk to the front-end as an image, of which only the chunks that changed travel.

The new image is staged beside the old one, beginning as its reflink (or, where there is none, taking unchanged
chunks from it as a seed), and takes its name in one step.  The host's disk is not touched.  Where there is no old one,
because the disk is saved as a new image, the image that the disk was made of serves as the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ..core import qcow2
from ..core.assembly import Assembly
from ..core.chain import open_member
from ..core.errors import BadChunk, FastcopyError, NoSpace, ProtocolError, Refused, classify
from ..core.files import Files, free_bytes, room
from ..core.identity import Identity, backdate
from ..core.image_messages import Keep
from ..core.manifest import MAX_CHUNKS, ZERO_DIGEST, Manifest, check_geometry, chunk_count, chunk_size_for
from ..core.messages import CloseSource, Get, Offer, OpenSource, Put, Scan, Source
from ..core.paths import has, is_named, open_parent, relative_to_any
from ..core.plan import Place
from ..core.publish import Staged, publish, replace, staging_name
from ..core.receipt import Receipt
from ..core.staging import ChunkTable, Sink, Staging, discard, need_room, store_chunk
from ..core.tree import discard_staged, tree_name
from ..core.tree_messages import OpenMember
from ..core.wire import Done, Message, expect
from .cache_options import cache_options
from .compression import Compression
from .host import Host
from .image import Image, ManifestStore, open_place
from .lanes import LanePool
from .phases import Phases
from .settings import Settings
from .threads import in_thread

_SCAN_PAGE = 256  # chunks, 64 MiB: small enough that lanes begin while the rest of the disk is read
_NEW_IMAGE_MODE = 0o660
_MIB = 1024 * 1024
_OTHER = "what has arrived: another action is bringing the same image back"


def discard_pulled(path: str, bases: Iterable[str], format: str, files: Files) -> str:
    """Remove what an action that was ended has staged for the image *path*; what stays of it, or "".

    The image is what it was.  `FastcopyError` or OSError if that cannot be done.
    """
    base, rest = relative_to_any(path, bases)
    with contextlib.suppress(FastcopyError):  # an image with snapshots is staged as a tree, and never as one file
        place = open_place(base, rest, path, format)
        try:
            free = discard(files, place.directory, staging_name(place.name)) if place.in_tree else True
        finally:
            os.close(place.directory)
        if not free:
            return _OTHER
    parent, final = open_parent(base, rest)
    try:
        return "" if discard_staged(files, parent, final, alone=True) else _OTHER
    finally:
        os.close(parent)


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
    """The image that is being replaced, as a seed; or (not *replaced*) another that stays.  *remembered*: its manifest
    was not made just now."""

    def __init__(self, image: Image, manifest: Manifest, remembered: bool, replaced: bool) -> None:
        self.image, self.manifest, self.remembered, self.replaced = image, manifest, remembered, replaced
        self._places = {digest: index for index, digest in enumerate(manifest) if digest != ZERO_DIGEST}

    def close(self) -> None:
        """Close it."""
        self.image.close()

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
    """One disk on its way to one image; `run` once.

    *seed* is None for a disk that is brought back as its own image.  That must not shrink, unless the disk is as large
    as oned says (*size*, in MiB): then it went back to a snapshot from before it was made larger.  For a disk that is
    saved as a new image, *seed* is the path of the image that it was made of, or "".  *opening* has the agent open the
    disk (default: `OpenSource`).  *keep*: the host may keep the disk's content in its cache, as the settings say.
    """

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
        seed: Optional[str] = None,
        opening: Optional[Message] = None,
        keep: bool = False,
        member: Optional[Slot] = None,
        size: Optional[int] = None,
    ) -> None:
        self._size = size
        self._phases = phases or Phases()
        self._seed = seed
        self._opening = opening or (OpenMember(member.name) if member else OpenSource(format))
        self._options = cache_options(settings) if keep else None
        self._host, self._path, self._bases, self._store, self._files = host, path, list(bases), store, files
        self._lanes, self._packing = settings.lanes, settings.compression
        self._compression = Compression(self._packing)
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
        self._planned: Optional[int] = None
        """Bytes of chunks that each need room of their own; None where they may be written over what is there."""

    async def run(self) -> Pulled:
        """Bring the disk back and give it the image's name."""
        old: Optional[_OldImage] = None
        staging: Optional[Staging] = None
        try:
            self._phases.enter("disk")
            source: Source = await self._host.ask(self._opening, Source)
            self._needed = source.data
            check_geometry(source.size, chunk_size_for(source.size))
            self._phases.enter("image")
            old = await in_thread(self._old_image)
            alone = self._seed is None and not self._member
            if old and alone and self._format == "raw" and self._shrank(source.size, old.image.size):
                raise Refused(
                    f"the disk has {source.size} bytes and its image {old.image.size}: disks do not shrink, so this "
                    "one is damaged; the image stays as it is"
                )
            staging = await in_thread(self._stage, source.size)
            self._phases.enter("wait")
            async with self._host.transfer():
                self._phases.enter("transfer")
                self._phases.progress.expect(source.data)
                receipt = await self._assemble(source, old, staging)
            return Pulled(receipt, self._fetched, self._host.wire_bytes)
        except (OSError, NoSpace) as error:
            raise self._told(error, staging) from error
        finally:
            if self._pool:
                await self._pool.cancel()
            if old:
                old.close()
            if staging:
                staging.close()
            self.close()

    def close(self) -> None:
        """Let go of the datastore; `run` does it."""
        os.close(self._directory)

    def _shrank(self, size: int, before: int) -> bool:
        """Whether a disk of so many bytes has lost some of what its image had."""
        return size < before and (self._size is None or -(-size // _MIB) < self._size)

    def _told(self, error: Exception, staging: Optional[Staging]) -> FastcopyError:
        typed = classify(error, f"writing {self._path}")
        if not isinstance(typed, NoSpace):
            return typed
        if staging and is_named(self._directory, staging.name, staging.fd):  # not the old image, after the exchange
            self._files.unlink(self._directory, staging.name)  # a half that cannot be completed only keeps it full
        return NoSpace(
            f"the datastore of {self._path} is full ({free_bytes(self._directory) // 2**20} MiB free, up to "
            f"{-(-self._needed // 2**20)} MiB needed): make room there and repeat; image and disk are as they were"
        )

    def _old_image(self) -> Optional[_OldImage]:
        """Open the image that will be replaced, or the seed, with its manifest; None if there is none."""
        image, replaced = self._open_member() if self._member else self._open_image()
        if image is None:
            return None
        try:
            chunk = chunk_size_for(image.size)
            manifest = self._store.get(image)
            if manifest is not None:
                return _OldImage(image, manifest, True, replaced)
            pages = (image.page(chunk, *place, None) for place in image.pages(chunk, None))
            manifest = Manifest(image.size, chunk, b"".join(page.digests for page in pages))
            image.check()
            self._store.put(image, manifest)
            return _OldImage(image, manifest, False, replaced)
        except BaseException:
            image.close()
            raise

    def _open_image(self) -> Tuple[Optional[Image], bool]:
        """The image that will be replaced, or the seed; and whether it is the former."""
        replaced = has(self._directory, self._name) is not None
        path = self._path if replaced else self._seed
        if not path:
            return None, False
        try:
            return Image.open(path, self._bases, self._format), replaced
        except FastcopyError:
            if replaced:
                raise
            return None, False  # a seed is only ever a help

    def _open_member(self) -> Tuple[Optional[Image], bool]:
        """The file of the old tree that has the same name, or what it was most likely made of.  It is not replaced."""
        assert self._member is not None
        old = self._member.old
        if old is not None and has(old, self._name) is not None:
            return Image(self._file, open_member(old, self._name, tree_name(self._path))), False
        # An image of one file is what the first of the tree's files was made of, or (raw) what all were.
        return (Image.open(self._path, self._bases, "raw") if self._member.flat else None), False

    def _publish_member(self, staging: Staging, manifest: Manifest, source: Source) -> Receipt:
        staged = Staged(self._directory, staging.name, staging.fd, manifest.id)
        return publish(self._files, staged, self._name, self._file, (source.mode & 0o777) | 0o600)

    def _stage(self, size: int) -> Staging:
        staging = Staging.open(self._files, self._directory, staging_name(self._name), size)
        if staging is None:
            raise Refused(f"another action is just bringing back {self._path}: repeat this one when it is done")
        return staging

    async def _assemble(self, source: Source, old: Optional[_OldImage], staging: Staging) -> Receipt:
        chunk = old.manifest.chunk_size if old else chunk_size_for(source.size)
        mode = old.image.mode if old and old.replaced else _NEW_IMAGE_MODE
        seed = old
        if chunk_count(source.size, chunk) > MAX_CHUNKS:
            seed, chunk = None, chunk_size_for(source.size)  # grown out of its chunk size: fetched whole
        table = ChunkTable.create(source.size, chunk)
        self._compression = Compression(self._packing, favourite=self._host.packs)
        pool = self._pool = LanePool(self._host, self._lanes, chunk, self._prepare, self._settle)
        try:
            assembly = self._assembly(table, seed, staging, source)
            self._sink = Sink(self._files, table, staging.fd, staging.fresh)
            try:
                await self._offer_all(assembly, pool, source.size, chunk)
                await pool.finish()
                self._host.note_packing(self._compression.learned)
            except BadChunk:
                await pool.cancel()
                await self._host.ask(CloseSource(), Done)  # if the disk was written meanwhile, that is what it says
                raise
            self._phases.enter("publish")
            manifest = await in_thread(assembly.finish)
            await self._close_source(manifest)
            if old and old.replaced:
                old.image.check()
            if self._format == "qcow2" and not self._member:
                await in_thread(self._check_header, staging, old)
            if self._member:
                return await in_thread(self._publish_member, staging, manifest, source)
            return await in_thread(self._publish, staging, manifest, mode)
        finally:
            table.close()

    async def _close_source(self, manifest: Manifest) -> None:
        """Have the disk looked at once more, and, where that is wanted, kept: the agent does that when all is over."""
        wishes = [self._options, Keep(manifest.id)] if self._options else []
        *_, closed = await self._host.ask_all([*wishes, CloseSource()])
        expect(closed, Done)

    def _publish(self, staging: Staging, manifest: Manifest, mode: int) -> Receipt:
        """Give the image its name, and remember what is in it: the next action need not read it."""
        dated = -1
        try:
            dated = backdate(self._files, staging.fd)
        except OSError:
            pass  # then the next action reads it
        staged = Staged(self._directory, staging.name, staging.fd, manifest.id)
        receipt = replace(self._files, staged, self._name, self._file, mode)
        identity = Identity.of(os.fstat(staging.fd))
        if identity.mtime_ns == dated:  # it has had its name for a moment, and somebody may have written to it
            self._store.put_written(identity, manifest)
        return receipt

    def _check_header(self, staging: Staging, old: Optional[_OldImage]) -> None:
        """Refuse what must not become an image.  The agent has looked as well; an image is read by every host."""
        shown = f"the disk of {self._path}"
        try:
            header = qcow2.read(staging.fd, shown)
            qcow2.check_stand_alone(header, shown)
            if old and self._seed is None and self._shrank(header.size, qcow2.read(old.image.fd, self._path).size):
                raise Refused(
                    f"{shown} is smaller for its guest than the image is: disks do not shrink, so this one is damaged; "
                    "the image stays as it is"
                )
        except Refused:
            self._files.unlink(self._directory, staging.name)
            raise

    def _assembly(self, table: ChunkTable, old: Optional[_OldImage], staging: Staging, source: Source) -> Assembly:
        # What has to be read anyway is also verified.
        check = old is not None and (old.remembered or not old.replaced)
        if not staging.fresh:  # what an earlier action left is looked at and kept
            missing = max(0, source.data - os.fstat(staging.fd).st_blocks * 512)
            need_room(self._path, missing, room(self._files, self._directory, missing))
            return Assembly(self._files, staging, table, old, check_seeds=check)
        if old and self._files.clone(staging.fd, old.image.fd):
            old.image.check()
            self._files.truncate(staging.fd, source.size)
            staging.fresh = False
            self._planned = 0
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
                missing = await in_thread(assembly.offer, first, page.digests, page.runs)
                if self._planned is not None:
                    await in_thread(self._check_room, len(missing) * chunk)
                wanted = sum(min(chunk, size - index * chunk) for index in missing)
                self._phases.progress.found(sum(n for _, n in page.runs) - wanted)
                pool.add(missing)
        finally:
            if ahead:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    def _check_room(self, more: int) -> None:
        """`NoSpace` as soon as it is known that what has changed finds no room beside the blocks that both images
        share."""
        assert self._planned is not None
        self._planned += more
        waiting = self._planned - self._fetched
        need_room(self._path, waiting, room(self._files, self._directory, waiting))

    def _scan(self, first: int, count: int, chunk: int) -> asyncio.Task[Offer]:
        return asyncio.ensure_future(self._host.ask(Scan(first, count, chunk), Offer))

    async def _prepare(self, chunks: Sequence[int]) -> List[Message]:
        assert self._sink is not None
        table = self._sink.table
        lengths = [(index, table.length(index)) for index in chunks]
        return [Get(index, table.chunk_size, n, self._compression.next(index, n)) for index, n in lengths]

    async def _settle(self, answer: Message) -> int:
        if not isinstance(answer, Put) or self._sink is None or not self._compression.awaits(answer.index):
            raise ProtocolError(f"a lane answered {type(answer).__name__} to a question for a chunk")
        await in_thread(store_chunk, self._sink, answer.index, answer.length, answer.codec, answer.blob)
        self._compression.arrived(answer.index)
        self._fetched += answer.length
        self._phases.progress.moved(answer.length)
        return answer.index


