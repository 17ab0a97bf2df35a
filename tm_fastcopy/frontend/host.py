"""Host: one conversation with the agent on a host, about one VM directory."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

from async_timeout import timeout

from ..core.errors import FastcopyError, LinkLost
from ..core.messages import Discard, Join, Missing, Open, Opened, Remove
from ..core.move_messages import OpenMove
from ..core.paths import DiskPath
from ..core.wire import Done, Message
from .agents import Agent, orderly
from .bandwidth import Meter
from .channel import Channel
from .connections import Connections
from .hops import Hops

DRIVER = "fastcopy"

_JOINED = 5.0  # seconds for a lane that is there already; one that was silently cut off is dialled anew
_ENDING = 2.0  # seconds for the other end to end by itself


class Host:
    """The guard of a VM directory on a host, held from `open` to the end of the `async with`.

    *meter*: what its transfers are paid with, if bandwidth is limited.
    """

    def __init__(self, connections: Connections, name: str, meter: Optional[Meter] = None) -> None:
        self.name, self._connections, self._meter = name, connections, meter
        self._agent: Optional[Agent] = None
        self._before = 0
        self.opened = Opened(False, "", "", "")
        self.is_open = False
        self._lanes: Dict[Channel, int] = {}  # and what they had moved before they were ours
        self._moved = 0

    async def __aenter__(self) -> Host:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._meter:
            self._meter.charge(self.wire_bytes)  # what was sent last: the next transfer waits for it
        self._let_go(orderly(error))

    async def remove(self, disk: DiskPath, seq: int, action: int) -> None:
        """Remove a disk, or (its name is "") the whole directory."""
        try:
            await self._begin(Remove(disk.base, disk.vm, disk.name, seq, action), Done, urgent=True)
        except FastcopyError as error:
            raise type(error)(f"{self.name}: {error}") from error

    async def discard(self, disk: DiskPath, seq: int, action: int, key: str) -> bool:
        """Remove what that action has staged of a disk, or (its name is "") of the whole directory in a move; and of
        the image *key* in the cache, but for "".  False if somebody is at it."""
        try:
            message = Discard(disk.base, disk.vm, disk.name, seq, action, key)
            return isinstance(await self._begin(message, Done, Missing, urgent=True), Done)
        except FastcopyError as error:
            raise type(error)(f"{self.name}: {error}") from error

    async def open(self, disk: DiskPath, seq: int, action: int, create: bool) -> None:
        """Take an agent and the guard; *seq* and *action* are the fence."""
        message = Open(disk.base, disk.vm, disk.name, seq, action, create, DRIVER)
        try:
            self.opened = await self._begin(message, Opened)
            self.is_open = True
        except FastcopyError as error:
            raise type(error)(f"{self.name}: {error}") from error

    async def open_move(self, directory: DiskPath, seq: int, action: int, create: bool = False) -> None:
        """Take an agent for one side of a move of a VM's directory; no guard is taken yet.

        *create*: the VM will come there, so the datastore's directory is made if it is missing.
        """
        message = OpenMove(directory.base, directory.vm, seq, action, DRIVER, create)
        try:
            self.opened = await self._begin(message, Opened)
            self.is_open = True
        except FastcopyError as error:
            raise type(error)(f"{self.name}: {error}") from error

    async def _begin(self, message: Message, *answers: Type[Message], urgent: bool = False) -> Any:
        agent = self._take(await self._connections.agents.take(self.name, urgent=urgent))
        used = agent.used
        try:
            return await self.ask(message, *answers)
        except LinkLost:
            if not used:
                raise
            # It was kept from an earlier conversation, and its connection has broken since: nothing has happened yet.
            self._let_go(False)
            self._take(await self._connections.agents.take(self.name, fresh=True, urgent=urgent))
            return await self.ask(message, *answers)

    def _take(self, agent: Agent) -> Agent:
        self._agent, self._before = agent, agent.channel.sent + agent.channel.received
        return agent

    def _let_go(self, usable: bool) -> None:
        if self._agent:
            self._connections.agents.give_back(self._agent, usable)
            self._agent = None

    async def ask(self, message: Message, *answers: Type[Message]) -> Any:
        """Send a message and return its answer."""
        assert self._agent is not None
        return await self._agent.ask(message, *answers)

    async def ask_all(self, messages: Sequence[Message]) -> List[Message]:
        """Send messages one after another and return their answers."""
        assert self._agent is not None
        return await self._agent.ask_all(messages)

    def transfer(self, *others: str) -> AbstractAsyncContextManager[None]:
        """Hold one of the transfers that may run at once; *others* are hosts that have a part in it."""
        return self._connections.limits.transfer(self.name, *others)

    async def pay(self) -> None:
        """Wait until the bandwidth that is allowed lets more be sent, or asked for."""
        if self._meter:
            await self._meter.pay(self.wire_bytes)

    async def broken(self) -> None:
        """Wait until the agent is of no more use, and raise the reason."""
        assert self._agent is not None
        reason = await asyncio.shield(self._agent.broken)
        raise type(reason)(str(reason))

    async def lane(self, onward: bool = False) -> Channel:
        """One more stream to this host, joined to the conversation; `release` must get it.

        *onward*: it shall dial another host from there.
        """
        join = Join(self.opened.socket, self.opened.token)
        spare = self._connections.spare
        while spare and not onward:
            lane = spare.take(self.name)
            if lane is None:
                break
            self._lanes[lane] = lane.sent + lane.received
            try:
                async with timeout(_JOINED):
                    await lane.ask(join, Done)
                return lane
            except (LinkLost, asyncio.TimeoutError):
                await self.release(lane, usable=False)  # it has broken while nobody used it
            except BaseException:
                await self.release(lane, usable=False)
                raise
        lane = await self._connections.lane(self.name, onward)
        self._lanes[lane] = 0
        try:
            await lane.ask(join, Done)
            return lane
        except BaseException:
            await self.release(lane, usable=False)
            raise

    async def release(self, lane: Channel, usable: bool) -> None:
        """Be done with a lane: it writes no more.  *usable*: nothing is on its way in it, and it dials nobody."""
        try:
            if usable and self._connections.spare:
                await self._connections.spare.put(lane)
            else:
                await lane.close(wait=_ENDING)
        finally:
            self._moved += lane.sent + lane.received - self._lanes.pop(lane)

    @property
    def packs(self) -> Optional[bool]:
        """Whether chunks travel faster packed (`Compression.learned`), as far as an earlier transfer has learned."""
        return self._connections.packs.get(self.name)

    def note_packing(self, learned: Optional[bool]) -> None:
        """Remember what a transfer has learned of that."""
        if learned is not None:
            self._connections.packs[self.name] = learned

    @property
    def hops(self) -> Hops:
        """Which hosts are known to reach each other."""
        return self._connections.hops

    @property
    def bundle(self) -> Tuple[str, int]:
        """Digest and size of the bundle that the agent was started from."""
        assert self._agent is not None
        return self._agent.channel.bundle

    @property
    def wire_bytes(self) -> int:
        """Bytes of our messages in both directions, on all streams; what ssh adds is not counted."""
        control = self._agent.channel.sent + self._agent.channel.received - self._before if self._agent else 0
        lanes = sum(lane.sent + lane.received - before for lane, before in self._lanes.items())
        return control + lanes + self._moved
