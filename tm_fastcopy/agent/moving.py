"""Moving: what the agent does for each message about the move of a VM's directory, on whichever side of it.

Whether two directories are one, or one machine reaches both, is found out by a token that one side writes and the other
looks for, never from host names.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from typing import Callable, Dict, Iterator, List, Optional, Type

from ..core import move_messages as said
from ..core.arriving import finish_giving_up
from ..core.errors import FastcopyError, ProtocolError, Superseded, classify
from ..core.files import Files, close
from ..core.listing import MAX_ENTRIES, TOKEN
from ..core.messages import (
    DEFAULT_OPTIONS,
    CacheOptions,
    CloseSource,
    Commit,
    Get,
    Missing,
    Offer,
    Published,
    Put,
    Scan,
    Source,
    Stored,
    Wants,
)
from ..core.paths import has, list_names, open_directory
from ..core.receipt import Receipt
from ..core.staging import store_chunk
from ..core.wire import Done, Message
from .arrival import Arrival, arrived
from .departure import Departure, SourceFile
from .directory import VmDirectory, open_datastore
from .lanes import LaneDoor, read_chunk
from .relocation import Relocation, alike
from .removal import remove_directory, remove_moved

_OLD_TOKEN = 3600.0  # seconds; a token is looked for within seconds, and an agent that was killed leaves it
_MOST_NAMES = 5000  # characters of the names in a directory: a header has 32 KiB, and JSON may write one as six bytes


class Move:
    """One side of a move."""

    def __init__(
        self, files: Files, message: said.OpenMove, door: LaneDoor, alive: Callable[[], bool]
    ) -> None:
        self._files, self._opened, self._door, self._alive = files, message, door, alive
        self._directory = self._place(message.base, message.create)
        self._options = DEFAULT_OPTIONS
        self._token = ""
        self._guarded = self._made = False
        self._departure: Optional[Departure] = None
        self._source: Optional[SourceFile] = None
        self._arrival: Optional[Arrival] = None
        self._relocation: Optional[Relocation] = None
        self._handlers: Dict[Type[Message], Callable[..., Message]] = {
            CacheOptions: self._use,
            said.WriteToken: self._write_token,
            said.FindToken: self._find_token,
            said.DropToken: self._drop_token,
            said.TakeGuard: self._take_guard,
            said.BeginLeaving: self._begin_leaving,
            said.ReadFile: self._read_file,
            Scan: self._scan,
            Get: self._get,
            CloseSource: self._close_source,
            said.Depart: self._depart,
            said.BeginArriving: self._begin_arriving,
            said.HasArrived: self._has_arrived,
            said.WriteFile: self._write_file,
            Offer: self._offer,
            Put: self._put,
            Commit: self._commit,
            said.Arrive: self._arrive,
            said.Relocate: self._relocate,
            said.LookAt: self._look_at,
            said.Clear: self._clear,
        }

    def _place(self, base: str, create: bool = False) -> VmDirectory:
        fence = (self._opened.seq, self._opened.action)
        return VmDirectory(self._files, base, self._opened.vm, "", fence, create)

    def handle(self, message: Message) -> Message:
        """Answer one message; errors are raised."""
        handler = self._handlers.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} makes no sense here")
        return handler(message)

    def told(self, error: Exception) -> FastcopyError:
        """What the front-end is told of an error."""
        if self._arrival:
            return self._arrival.told(error)
        if self._relocation:
            return self._relocation.told(error)
        return classify(error, f"moving {self._directory.path}")

    def stay(self) -> None:
        """Raise `Superseded` if a newer action waits for this one's end."""
        if self._guarded:
            self._directory.check_fence()

    def _use(self, message: CacheOptions) -> Message:
        self._options = message
        return Done()

    # --- where the two sides are -----------------------------------------------------------------------------------

    def _write_token(self, _: said.WriteToken) -> Message:
        self._token = self._token or TOKEN + secrets.token_hex(16)
        try:
            self._put_token(self._directory.base_fd)
            with self._inside() as inside:
                if inside is not None:
                    self._put_token(inside)
        except OSError as error:
            raise classify(error, f"writing to {self._directory.base}") from error
        return said.Token(self._token)

    def _put_token(self, place: int) -> None:
        for name in list_names(place):
            status = has(place, name) if name.startswith(TOKEN) else None
            if status and abs(time.time() - status.st_mtime) > _OLD_TOKEN:
                self._files.unlink(place, name)
        if has(place, self._token) is None:
            os.close(self._files.create(place, self._token))

    def _drop_token(self, _: said.DropToken) -> Message:
        if self._token:
            with contextlib.suppress(OSError):  # whoever writes one an hour later takes it away
                with self._inside() as inside:
                    if inside is not None:
                        self._files.unlink(inside, self._token)
                self._files.unlink(self._directory.base_fd, self._token)
        self._token = ""
        return Done()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[Optional[int]]:
        """The VM's directory as it is now, or None."""
        try:
            fd: Optional[int] = open_directory(self._directory.base_fd, str(self._directory.vm), self._directory.path)
        except FastcopyError:
            fd = None
        try:
            yield fd
        finally:
            close(fd)

    def _find_token(self, message: said.FindToken) -> Message:
        if not re.fullmatch(re.escape(TOKEN) + "[0-9a-f]{32}", message.name):
            raise ProtocolError("that is no token's name")
        with contextlib.suppress(OSError, FastcopyError):  # whoever gives a directory up here comes by it again
            finish_giving_up(self._files, self._directory.base_fd, str(self._directory.vm), self._directory.path)
        same = has(self._directory.base_fd, message.name) is not None
        with self._inside() as inside:
            present = inside is not None
            same = same or (inside is not None and has(inside, message.name) is not None)
        return said.Seen(same, same or sees(message.other, message.name), present)

    def _look_at(self, message: said.LookAt) -> Message:
        other = self._place(message.base)
        try:
            one, two = (has(place.base_fd, str(place.vm)) for place in (self._directory, other))
            bases = [os.fstat(place.base_fd) for place in (self._directory, other)]
            same = alike(*bases) or bool(one and two and alike(one, two))
            names: List[str] = []
            if two:
                other.fd = open_directory(other.base_fd, str(other.vm), other.path)
                names = [name for name in list_names(other.fd) if "\n" not in name]
                # What does not fit is cut off, and that must not be the disks: they decide what may be removed.
                names = sorted(names, key=lambda name: (not name.startswith("disk."), name))[:MAX_ENTRIES]
            return said.Looked(same, "\n".join(names)[:_MOST_NAMES])
        finally:
            other.leave()

    def _take_guard(self, message: said.TakeGuard) -> Message:
        name, base = str(self._directory.vm), self._directory.base_fd
        if not message.create and has(base, name) is None:
            return Missing()
        self._made = message.create
        self._directory.enter(message.create, self._opened.driver, alive=self._alive)
        self._guarded = True
        return Done()

    def _guard(self) -> VmDirectory:
        if not self._guarded:
            raise ProtocolError("the directory is not guarded")
        return self._directory

    # --- the source ------------------------------------------------------------------------------------------------

    def _begin_leaving(self, _: said.BeginLeaving) -> Message:
        self._departure = Departure(self._files, self._guard())
        return said.Listing.make(self._departure.entries)

    def _leaving(self) -> Departure:
        if self._departure is None:
            raise ProtocolError("nothing leaves here")
        return self._departure

    def _read_file(self, message: said.ReadFile) -> Message:
        if self._source:
            raise ProtocolError("a file is open for reading already")
        self._source = self._leaving().open(message.number)
        entry = self._source.entry
        self._door.hand_out({"do": "fetch", "shown": f"reading {self._directory.path}/{entry.path}"}, [self._source.fd])
        return Source(entry.size, entry.data, entry.mode)

    def _reading(self) -> SourceFile:
        if self._source is None:
            raise ProtocolError("no file is open for reading")
        return self._source

    def _scan(self, message: Scan) -> Message:
        page = self._reading().scan(message.first, message.count, message.chunk)
        return Offer.make(page.first, page.digests, page.runs)

    def _get(self, message: Get) -> Message:
        return read_chunk(self._reading().fd, message)

    def _close_source(self, _: CloseSource) -> Message:
        source = self._reading()
        self._door.close_and_wait()
        try:
            self._leaving().manifests[source.entry.path] = source.manifest()
        finally:
            self._source = None
            source.close()
        return Done()

    def _depart(self, message: said.Depart) -> Message:
        if not self._alive():
            raise Superseded(f"the front-end went away, so {self._directory.path} stays")
        self._leaving().depart(Receipt.decode(message.receipt))
        return Done()

    # --- the target ------------------------------------------------------------------------------------------------

    def _begin_arriving(self, message: said.BeginArriving) -> Message:
        if self._arrival:
            raise ProtocolError("something arrives here already")
        entries, guarded = message.entries, self._guard()
        self._arrival = Arrival(self._files, guarded, entries, message.source, self._options, self._alive)
        self._arrival.begin()
        return Done()

    def _arriving(self) -> Arrival:
        if self._arrival is None:
            raise ProtocolError("nothing arrives here")
        return self._arrival

    def _has_arrived(self, message: said.HasArrived) -> Message:
        return Done() if arrived(self._directory, message.source) else Missing()

    def _write_file(self, message: said.WriteFile) -> Message:
        file = self._arriving().write(message.number, message.chunk, message.full)
        offer = {
            "do": "store",
            "size": file.entry.size,
            "chunk": message.chunk,
            "fresh": file.staging.fresh,
            "shown": f"writing {self._directory.path}/{file.entry.path}"[:1024],
        }
        self._door.hand_out(offer, [file.table.fd, file.staging.fd])
        return Done()

    def _offer(self, message: Offer) -> Message:
        self.stay()
        wanted = bytearray(message.count)
        for index in self._arriving().writing().assembly.offer(message.first, message.digests, message.runs):
            wanted[index - message.first] = 1
        return Wants(bytes(wanted))

    def _put(self, message: Put) -> Message:
        sink = self._arriving().writing().sink(self._files)
        store_chunk(sink, message.index, message.length, message.codec, message.blob)
        return Stored(message.index)

    def _commit(self, message: Commit) -> Message:
        self._door.close_and_wait()
        self._arriving().commit(message.manifest)
        return Done()

    def _arrive(self, _: said.Arrive) -> Message:
        self._door.close_and_wait()
        arrival = self._arriving()
        return Published(arrival.arrive().encode(), f"{arrival.reused // 2**20} MiB were there")

    # --- both, and neither -----------------------------------------------------------------------------------------

    def _relocate(self, message: said.Relocate) -> Message:
        if self._relocation is None:
            full = set(message.full.split("\n"))
            target = self._place(message.target, create=True)
            self._relocation = Relocation(
                self._files, self._directory, target, self._opened.driver, message.source, full, self._options,
                self._alive,
            )  # fmt: skip
        return said.Relocated(self._relocation.turn())

    def _clear(self, message: said.Clear) -> Message:
        """Remove the directory: what is left of an earlier attempt where a VM will come, or what a VM has left."""
        directory = self._directory
        if has(directory.base_fd, str(directory.vm)) is not None:
            directory.enter(create=False, driver="", alive=self._alive)
            if message.prepare:  # afterwards it is the hypervisor who has said that the VM has gone
                directory.check_unused()
            remove_directory(self._files, directory)
        else:
            remove_moved(self._files, directory)
        if message.prepare:
            directory.name_driver(self._opened.driver)
        return Done()

    def end(self) -> None:
        """The conversation is over: release everything, what the guards protect first."""
        if self._source:
            self._source.close()
        if self._arrival:
            self._arrival.end()
        if self._relocation:
            self._relocation.end()
        self._drop_token(said.DropToken())
        if self._guarded and self._made:
            self._directory.drop_empty()
        self._directory.leave()


def sees(base: str, token: str) -> bool:
    """Whether the token lies in the datastore that has the path *base* on this machine."""
    try:
        fd = open_datastore(base)
    except FastcopyError:
        return False
    try:
        return has(fd, token) is not None
    finally:
        os.close(fd)
