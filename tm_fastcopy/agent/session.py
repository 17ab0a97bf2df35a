"""Session: what the agent does for each message of one conversation.

One conversation serves one action on one VM directory, whose guard it holds from `Open` to its end; or
the upkeep of a cache, from `OpenCache` on; or one side of a move, from `OpenMove` on; or questions about the
host, which need nothing to be open.
"""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, Optional, Tuple, Type

from ..core.cache_messages import OpenCache
from ..core.errors import FastcopyError, NoSpace, ProtocolError, SourceChanged, Superseded, classify
from ..core.files import Files
from ..core.hashing import hash_page
from ..core.identity import Identity, boot_id
from ..core.image_messages import Keep, OpenExtract, OpenLive
from ..core.manifest import check_geometry, chunk_count
from ..core.messages import (
    PAGE_CHUNKS,
    Begin,
    Begun,
    CacheOptions,
    CloneEntry,
    CloneLocal,
    CloseSource,
    Commit,
    Discard,
    Get,
    Missing,
    Offer,
    Open,
    Opened,
    OpenSource,
    Published,
    Put,
    Remove,
    Scan,
    Source,
    Stored,
    Wants,
)
from ..core.move_messages import OpenMove
from ..core.receipt import Receipt
from ..core.restore_messages import DropTree
from ..core.snapshot_messages import SnapCreate, SnapCreateLive, SnapDelete, SnapRevert
from ..core.staging import need_room, store_chunk
from ..core.tree_messages import BeginTree, ListTree, Member, OpenMember, PublishTree
from ..core.volatile_messages import GrowDisk, MakeDisk
from ..core.wire import Done, Failure, Message
from . import examine, snapshots
from .cache import Cache
from .directory import VmDirectory, datastore_or_above
from .disk import Target, open_disk
from .extract import open_extract
from .growth import Growth
from .intake import Intake
from .lanes import LaneDoor, read_chunk
from .live import open_live, remove_live
from .local import LocalImage
from .moving import Move
from .removal import discard_disk, discard_move, drop_tree, remove_directory, remove_disk, remove_moved
from .room import room_for
from .shelf import Shelf, Shelved, shelve
from .standstill import recover
from .trees import TreeInTheMaking, list_tree, open_for_reading
from .upkeep import Upkeep
from .volatile import Volatile


class Session:
    """State of one conversation.  *alive* says whether the front-end is still there; lanes come in by *door*."""

    def __init__(self, files: Files, alive: Callable[[], bool], door: LaneDoor) -> None:
        self._files, self._alive, self._door = files, alive, door
        self._directory: Optional[VmDirectory] = None
        self._intake: Optional[Intake] = None
        self._source: Optional[Tuple[int, Identity]] = None
        self._rested = self._live = False
        self._shelf, self._shelved = Shelf(files), list[Shelved]()
        self._upkeep: Optional[Upkeep] = None
        self._move: Optional[Move] = None
        self._tree: Optional[TreeInTheMaking] = None
        self._cache_note = ""
        self._handlers: Dict[Type[Message], Callable[..., Message]] = {
            Open: self._open,
            Remove: self._remove,
            Discard: self._discard,
            CacheOptions: self._options,
            CloneLocal: self._clone_local,
            CloneEntry: self._clone_entry,
            Begin: self._begin,
            Offer: self._offer,
            Put: self._put,
            Commit: self._commit,
            OpenSource: self._open_source,
            OpenLive: self._open_live,
            OpenExtract: self._open_extract,
            Scan: self._scan,
            Get: self._get,
            Keep: self._keep_disk,
            CloseSource: self._close_source,
            MakeDisk: self._make,
            GrowDisk: self._grow,
            DropTree: self._drop_tree,
            SnapCreate: self._snapshot,
            SnapCreateLive: self._snapshot,
            SnapRevert: self._snapshot,
            SnapDelete: self._snapshot,
            ListTree: self._list_tree,
            OpenMember: self._open_member,
            BeginTree: self._begin_tree,
            Member: self._take_member,
            PublishTree: self._publish_tree,
        }

    def handle(self, message: Message) -> Message:
        """Answer one message.  Errors become a `Failure`; they end nothing by themselves."""
        handler = self._handlers.get(type(message))
        if self._move or (type(message) is OpenMove and self._directory is None):
            handler = self._go_on_moving
        elif self._upkeep or (type(message) is OpenCache and self._directory is None):
            handler = self._keep
        elif isinstance(message, examine.QUESTIONS) and self._directory is None:
            handler = self._examine
        elif handler is None or (self._directory is None) != isinstance(message, (Open, Remove, Discard)):
            return Failure.of(ProtocolError(f"{type(message).__name__} makes no sense here"))
        try:
            return handler(message)
        except (OSError, ValueError, FastcopyError) as error:  # ValueError: a name that no file can have
            disk = self._directory.disk if self._directory else "the cache" if self._upkeep else "the VM directory"
            if self._move:
                return Failure.of(self._move.told(error))
            typed = classify(error, f"working on {disk}")
            if isinstance(typed, NoSpace):
                self._make_room()
            return Failure.of(typed)

    def _make_room(self) -> None:
        if self._intake:
            self._intake.no_room()
        try:
            if self._tree:
                self._tree.no_room()
        except (OSError, FastcopyError):
            pass  # the next action on the disk, or its removal, takes it away

    def heard(self) -> None:
        """The front-end gave a sign of life.  `Superseded` if a newer action waits for this one's end."""
        if self._intake:
            self._stay()
            self._intake.heartbeat()
        if self._move:
            self._move.stay()

    def _stay(self) -> None:
        assert self._directory is not None
        self._directory.check_fence()

    def _open(self, message: Open) -> Message:
        fence = (message.seq, message.action)
        directory = VmDirectory(self._files, message.base, message.vm, message.name, fence, message.create)
        try:
            directory.enter(message.create, message.driver, alive=self._alive)
        except BaseException:
            directory.leave()
            raise
        self._directory = directory
        recover(self._files, directory)
        cache = None
        if message.create:
            cache = self._receive_into(None)
        return Opened(bool(cache and cache.reflink), self._door.path, self._door.token, boot_id())

    def _keep(self, message: Message) -> Message:
        if self._upkeep:
            return self._upkeep.handle(message)
        assert isinstance(message, OpenCache)
        fd, present = datastore_or_above(message.base)
        os.close(fd)
        if not present:
            return Missing()
        self._upkeep = Upkeep(self._files, message, self._alive)
        return self._upkeep.opened()

    def _go_on_moving(self, message: Message) -> Message:
        if self._move:
            return self._move.handle(message)
        assert isinstance(message, OpenMove)
        self._move = Move(self._files, message, self._door, self._alive)
        return Opened(False, self._door.path, self._door.token, boot_id())

    def _examine(self, message: Message) -> Message:
        return examine.answer(self._files, message)

    def _remove(self, message: Remove) -> Message:
        fence = (message.seq, message.action)
        directory = VmDirectory(self._files, message.base, message.vm, message.name, fence)
        try:
            if directory.enter_if_there(self._alive):
                self._shelved += shelve(self._files, directory)
                (remove_disk if message.name else remove_directory)(self._files, directory)
            elif not message.name:
                remove_moved(self._files, directory)
        finally:
            directory.leave()
        return Done()

    def _discard(self, message: Discard) -> Message:
        fd, present = datastore_or_above(message.base)
        os.close(fd)
        if not present:
            return Done()
        fence = (message.seq, message.action)
        directory = VmDirectory(self._files, message.base, message.vm, message.name, fence)
        free = True
        try:
            there = directory.enter_if_there(self._alive)
            if not there:
                directory.check_gone()
            if not message.name:
                free = discard_move(self._files, directory)
            elif there:
                discard_disk(self._files, directory)
            if message.key:
                cache, _ = Cache.open(self._files, directory.base_fd, directory.base)
                if cache:
                    free = cache.discard(message.key) and free
                    cache.close()
        except Superseded:
            pass  # what is there is a newer action's
        finally:
            directory.leave()
        return Done() if free else Missing()

    def _receiving(self) -> Intake:
        if self._intake is None:
            raise ProtocolError("this conversation was not opened for writing")
        return self._intake

    def _begun(self) -> Intake:
        intake = self._receiving()
        if intake.table is None:
            raise ProtocolError("no transfer has begun")
        return intake

    def _options(self, message: CacheOptions) -> Message:
        if self._source is None:
            self._receiving().use(message)
        self._shelf.use(message)
        return Done()

    def _clone_local(self, message: CloneLocal) -> Message:
        image = LocalImage.open(message)
        if image is None:
            return Missing()
        try:
            target = Target(message.size, message.mode, message.sparse, message.format, message.virtual)
            return self._receiving().from_image(image, target) or Missing()
        finally:
            image.close()

    def _clone_entry(self, message: CloneEntry) -> Message:
        target = Target(message.size, message.mode, message.sparse, message.format, message.virtual)
        published = self._receiving().from_entry(message.manifest, target)
        return self._explained(published) if published else Missing()

    def _explained(self, published: Published) -> Published:
        """With what was wrong in the cache, which belongs into the log."""
        notes = [*([self._cache_note] if self._cache_note else []), *self._receiving().notes()]
        return Published(published.receipt, published.how + (f" (cache: {'; '.join(notes)})" if notes else ""))

    def _begin(self, message: Begin) -> Message:
        intake = self._receiving()
        if intake.table is not None:
            raise ProtocolError("a transfer has begun already")
        begun = intake.begin(message)
        if begun.state == "lead":
            assert intake.table is not None and intake.staging is not None and self._directory is not None
            offer = {
                "do": "store",
                "size": message.size,
                "chunk": message.chunk,
                "fresh": intake.staging.fresh,
                "shown": f"writing {self._directory.name} of VM {self._directory.vm}",
            }
            tee = [intake.tee.fd] if intake.tee else []
            self._door.hand_out(offer, [intake.table.fd, intake.staging.fd, *tee])
        return Begun(begun.state, begun.manifest)

    def _offer(self, message: Offer) -> Message:
        self._stay()
        return Wants(self._begun().offer(message.first, message.digests, message.runs))

    def _put(self, message: Put) -> Message:
        """A chunk of a transfer that is too small for a lane to be worth its login."""
        store_chunk(self._begun().sink(), message.index, message.length, message.codec, message.blob)
        return Stored(message.index)

    def _commit(self, message: Commit) -> Message:
        intake = self._begun()
        self._door.close_and_wait()
        return self._explained(intake.commit(message.manifest))

    def _open_source(self, message: OpenSource) -> Message:
        directory = self._to_be_read()
        return self._read_from(open_disk(self._files, directory, message.format))

    def _open_live(self, message: OpenLive) -> Message:
        directory = self._to_be_read()
        self._live = True
        return self._read_from(open_live(self._files, directory, message, self._alive))

    def _open_extract(self, message: OpenExtract) -> Message:
        return self._read_from(open_extract(self._files, self._to_be_read(), message, self._alive))

    def _open_member(self, message: OpenMember) -> Message:
        return self._read_from(open_for_reading(self._to_be_read(), message.name))

    def _list_tree(self, message: ListTree) -> Message:
        return list_tree(self._files, self._guarded(), message.format)

    def _begin_tree(self, message: BeginTree) -> Message:
        self._receiving()
        if self._tree is not None:
            raise ProtocolError("a tree is in the making already")
        self._tree = TreeInTheMaking(self._files, self._guarded(), message, self._alive)
        return Done()

    def _take_member(self, message: Member) -> Message:
        if self._tree is None:
            raise ProtocolError("no tree is in the making")
        place = self._tree.place(message.name) if message.name else None
        self._end_intake()
        self._receive_into(place)
        return Done()

    def _publish_tree(self, message: PublishTree) -> Message:
        if self._tree is None:
            raise ProtocolError("no tree is in the making")
        self._door.close_and_wait()
        self._end_intake()
        return Published(self._tree.publish(message).encode(), "")

    def _end_intake(self) -> None:
        if self._intake:
            self._intake.finish_tee()
            self._intake.abandon()
            self._intake = None

    def _receive_into(self, place: Optional[Tuple[int, str]]) -> Optional[Cache]:
        """Be ready for a disk, or a file of its tree; return the cache."""
        directory = self._guarded()
        cache, self._cache_note = Cache.open(self._files, directory.base_fd, directory.base)
        self._intake = Intake(self._files, directory, cache, self._alive, place)
        return cache

    def _to_be_read(self) -> VmDirectory:
        assert self._directory is not None
        if self._source is not None:
            raise ProtocolError("a disk is open for reading already")
        return self._directory

    def _read_from(self, fd: int) -> Source:
        assert self._directory is not None
        status = os.fstat(fd)
        self._source = fd, Identity.of(status)
        self._rested = self._source[1].settled(time.time_ns())
        self._door.hand_out({"do": "fetch", "shown": f"reading {self._directory.disk}"}, [fd])
        data = min(status.st_blocks * 512, status.st_size)
        return Source(status.st_size, data, stat.S_IMODE(status.st_mode))

    def _reading(self) -> Tuple[int, Identity]:
        if self._source is None:
            raise ProtocolError("no disk is open for reading")
        return self._source

    def _scan(self, message: Scan) -> Message:
        fd, identity = self._reading()
        check_geometry(identity.size, message.chunk)
        if message.count > PAGE_CHUNKS or message.first + message.count > chunk_count(identity.size, message.chunk):
            raise ProtocolError("a page that the disk does not have was asked for")
        halves = [(message.first, message.count // 2), (message.first + message.count // 2, -(-message.count // 2))]
        with ThreadPoolExecutor(2) as pool:  # hashing and reading release the GIL
            pages = list(
                pool.map(lambda half: hash_page(fd, identity.size, message.chunk, *half), (h for h in halves if h[1]))
            )
        digests = b"".join(page.digests for page in pages)
        self._shelf.read(message.first, message.chunk, digests)
        return Offer.make(message.first, digests, [run for page in pages for run in page.runs])

    def _get(self, message: Get) -> Message:
        """As for a lane, for a disk of which little is wanted."""
        return read_chunk(self._reading()[0], message)

    def _keep_disk(self, message: Keep) -> Message:
        fd, identity = self._reading()
        assert self._directory is not None
        self._shelf.keep(self._directory, fd, identity, self._rested, message.manifest)
        return Done()

    def _close_source(self, message: CloseSource) -> Message:
        fd, identity = self._reading()
        self._door.close_and_wait()
        now = Identity.of(os.fstat(fd))
        os.close(fd)
        self._source = None
        if now != identity:
            assert self._directory is not None
            raise SourceChanged(f"{self._directory.disk} was written while it was read; repeat when its VM is off")
        return Done()

    def _snapshot(self, message: snapshots.Wish) -> Message:
        return snapshots.perform(self._files, self._guarded(), message, self._alive)

    def _make(self, message: MakeDisk) -> Message:
        self._receiving()
        return Volatile(self._files, self._guarded(), message, self._claim, self._alive).make()

    def _grow(self, message: GrowDisk) -> Message:
        return Growth(self._files, self._guarded(), message, self._claim, self._alive).grow()

    def _guarded(self) -> VmDirectory:
        assert self._directory is not None
        return self._directory

    def _claim(self, needed: int) -> None:
        """Find room for *needed* bytes of the disk, which may cost cached images; `NoSpace` if there is none."""
        directory = self._guarded()
        need_room(directory.disk, needed, room_for(self._files, directory.base_fd, directory.base, needed))

    def _drop_tree(self, message: DropTree) -> Message:
        self._receiving()
        self._stay()
        assert self._directory is not None
        drop_tree(self._files, self._directory, Receipt.decode(message.receipt))
        return Done()

    def end(self) -> None:
        """The conversation is over: release the guard, then complete what nobody waits for."""
        self._door.reset()
        if self._source:
            os.close(self._source[0])
        if self._intake and self._intake.lacks_room:  # under the guard: what is staged may be another's afterwards
            self._make_room()
        if self._tree:
            self._tree.close()
        if self._directory:
            self._forget_live()
            self._directory.leave()
        self._end_intake()
        self._shelf.finish()
        for shelved in self._shelved:
            shelved.finish()
        if self._upkeep:
            self._upkeep.close()
        if self._move:
            self._move.end()

    def _forget_live(self) -> None:
        assert self._directory is not None
        try:
            if self._live:
                remove_live(self._files, self._directory)
        except OSError:
            pass  # the next action on this disk, or its removal, takes it away
