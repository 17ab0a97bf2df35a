"""Move: a VM's directory goes from one place to another, and is removed where it was when it has arrived.

First it is found out whether the two places are one, or whether one machine reaches both: by a token that one side
writes and the other looks for, never from names.  Then nothing is done, or the directory is renamed there, or
its files go over one by one: from host to host where the one reaches the other, through this process otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable, Set, Type

from ..core import move_messages as said
from ..core.errors import FastcopyError, Refused
from ..core.listing import FILE, Entry
from ..core.manifest import chunk_size_for
from ..core.messages import Missing, Published, Source
from ..core.paths import DiskPath
from ..core.receipt import Receipt
from ..core.wire import Done, Message
from . import lanes
from .cache_options import cache_options
from .compression import Compression
from .host import Host
from .phases import Phases
from .relay import Direct, Relay, reaches
from .settings import Settings


@dataclass(frozen=True)
class Side:
    """One side of a move: the host by its name, and the directory there."""

    name: str
    directory: DiskPath

    def __str__(self) -> str:
        return f"{self.name}:{self.directory.base}/{self.directory.vm}"


@dataclass(frozen=True)
class Moved:
    """How it went: what was done, bytes of chunks that travelled, bytes on the wire."""

    how: str
    sent: int = 0
    wire: int = 0


class Move:
    """From *source* to *target*; `within` or `between` once.

    *full* names the disks that may have no holes in the end; *log* takes what an administrator may want to know.
    """

    def __init__(
        self,
        source: Side,
        target: Side,
        full: Set[str],
        settings: Settings,
        phases: Phases,
        log: Callable[[str], None],
    ) -> None:
        self._source, self._target, self._full = source, target, full
        self._settings, self._phases, self._log = settings, phases, log
        self._sent = 0
        self._direct = False
        self.writer = target.name
        """The host that writes at the target: where one machine reaches both places, it does all."""

    # --- one machine reaches both ------------------------------------------------------------------------------------

    async def within(self, host: Host) -> Moved:
        """Move it on a host that reaches both places; its conversation is about the source."""
        self.writer = host.name
        self._phases.enter("disk")
        await _ask(host, cache_options(self._settings), Done)
        question = said.Relocate(self._target.directory.base, str(self._source), "\n".join(sorted(self._full)))
        how = ""
        while not how:
            how = (await _ask(host, question, said.Relocated)).how
        if how == said.GONE:
            raise self._lost()
        return Moved(how)

    def _lost(self) -> FastcopyError:
        return Refused(
            f"there is no directory {self._source}, and what is at {self._target} did not come from it in this move: "
            "find out where the VM's disks are before you repeat or recover it"
        )

    # --- one machine each --------------------------------------------------------------------------------------------

    async def between(self, source: Host, target: Host) -> Moved:
        """Move it from one host to another, whose conversations have been opened."""
        self._phases.enter("look")
        token: said.Token = await _ask(target, said.WriteToken(), said.Token)
        seen: said.Seen = await _ask(source, said.FindToken(token.name, self._target.directory.base), said.Seen)
        await _ask(target, said.DropToken(), Done)
        if seen.same and seen.present:
            return Moved(said.SAME)
        if seen.reached:
            return await self.within(source)
        if not seen.present:
            if isinstance(await _ask(target, said.HasArrived(str(self._source)), Done, Missing), Missing):
                raise self._lost()
            return Moved(said.BEFORE)
        await self._guard(source, target)
        return await self._carry(source, target)

    async def _guard(self, source: Host, target: Host) -> None:
        """Take both guards, in the same order for all: of two moves in opposite directions both begin with the same."""
        places = [(self._source, source, False), (self._target, target, True)]
        for side, host, create in sorted(places, key=lambda place: str(place[0])):
            if isinstance(await _ask(host, said.TakeGuard(create), Done, Missing), Missing):
                raise FastcopyError(f"{side} went away while it was waited for: repeat the action")

    async def _carry(self, source: Host, target: Host) -> Moved:
        listing: said.Listing = await _ask(source, said.BeginLeaving(), said.Listing)
        await _ask(target, cache_options(self._settings), Done)
        await _ask(target, said.BeginArriving(str(self._source), listing.blob), Done)
        self._phases.enter("wait")
        async with source.transfer(target.name):
            self._phases.enter("transfer")
            compression = Compression(self._settings.compression)
            for number, entry in enumerate(listing.entries):
                if entry.kind == FILE:
                    await self._carry_file(source, target, number, entry, compression)
        self._phases.enter("publish")
        published: Published = await _ask(target, said.Arrive(), Published)
        self._phases.enter("remove")
        await _ask(source, said.Depart(Receipt.decode(published.receipt).encode()), Done)
        how = "carried from host to host" if self._direct else "carried"
        return Moved(f"{how}, {published.how}", self._sent, source.wire_bytes + target.wire_bytes)

    async def _carry_file(
        self, source: Host, target: Host, number: int, entry: Entry, compression: Compression
    ) -> None:
        found: Source = await _ask(source, said.ReadFile(number), Source)
        chunk = chunk_size_for(found.size)
        await _ask(target, said.WriteFile(number, chunk, entry.path in self._full), Done)
        way = Direct if entry.data > lanes.INLINE and await self._hops(source, target) else Relay
        relay = way(source, target, found.size, chunk, compression, self._settings.lanes)
        await relay.run()
        self._sent += relay.sent

    async def _hops(self, source: Host, target: Host) -> bool:
        """Whether the hosts reach each other without this one, if neither is this one."""
        if os.uname().nodename in (source.name, target.name):
            return False
        known = source.hops.known(source.name, target.name)
        if known is None:
            why = await reaches(source, target)
            known = not why
            source.hops.note(source.name, target.name, known)
            if why:
                self._log(f"data goes through the front-end: {why}")
        self._direct = self._direct or known
        return known


async def _ask(host: Host, message: Message, *answers: Type[Message]) -> Any:
    """Ask an agent; its errors say which host it is on: there are two."""
    try:
        return await host.ask(message, *answers)
    except FastcopyError as error:
        text = str(error)
        raise type(error)(text if host.name in text else f"{host.name}: {text}") from error
