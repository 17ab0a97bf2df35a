"""Call: one run of an entry point, with what every action needs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    Hashable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

from ..core.errors import FastcopyError, LinkLost, Refused
from ..core.files import Files
from ..core.paths import DiskPath, relative_to_any
from .arguments import Endpoint, directory_and_name
from .host import Host
from .image import ManifestStore
from .oned import Datastore, Oned, Vm
from .phases import Phases
from .places import Places
from .services import Services
from .settings import FILE, Configuration, Settings
from .threads import in_thread

_PAUSES = (1.0, 5.0)  # seconds before the connection is dialled again: sshd may be restarting, a cable be replugged
_DISCARDING = 30.0  # seconds to have what was staged removed; whoever asked for it waits for the answer
_LANES_END = 5.0  # seconds in which a transfer's own lanes have let go of what they wrote
_LOOK = 0.3  # seconds between looks whether they have

T = TypeVar("T")


@dataclass
class Call:
    """Arguments and environment of a call, and the parts that actions are made of.

    Tests give other *files*, and *phases* with a clock of their own; nobody else needs to.
    """

    argv: List[str]
    environ: Mapping[str, str]
    log: Callable[[str], None]
    services: Services
    files: Files = field(default_factory=Files)
    phases: Phases = field(default_factory=Phases)
    stdin: str = ""
    """What came on standard input, for those actions that get something there."""
    discard: bool = False
    """Whether whoever ends it, by cancelling its task, wants nothing to be left of what has arrived."""
    left: Optional[List[str]] = None
    """What is left then all the same, and why; None: it was ended before it could have left anything."""
    shared: str = ""
    """What is left then for others, who go on with it."""

    def __post_init__(self) -> None:
        self.places = Places.of(self.environ)
        self.configuration = Configuration.read(self.environ, self.places.etc / FILE)
        self.settings = self.configuration.settings()
        """What holds for the whole front-end, until the action knows its datastores and asks `settings_for` them."""
        self.store = ManifestStore(self.places.state / "manifests", self.files)
        self.action = time.time_ns() // 1000
        """A number that grows with every action on this front-end: half of the fence."""
        self.endpoint: Optional[Endpoint] = None
        """What it is about, once it waits for its turn there."""
        self.vm_id: Optional[int] = None
        """The VM, once oned has said that there is one."""

    @functools.cached_property
    def oned(self) -> Oned:
        """oned as the environment names it; `FastcopyError` if the credentials cannot be read."""
        return Oned.of(self.environ, self.places.auth)

    def host(self, name: str) -> Host:
        """A conversation with a host, not begun yet."""
        if not name:
            raise Refused("the host is missing: an argument must be of the form HOST:/PATH")
        meter = self.services.bandwidth.meter(name, self.settings.bwlimit, self.settings.bwlimit_host)
        return Host(self.services.connections(self.environ, self.places), name, meter)

    def turn(self, endpoint: Endpoint, ending: Optional[str] = None) -> AbstractAsyncContextManager[None]:
        """The turn of an action on a VM's disk or directory: taken before anything is asked, so that calls keep the
        order in which they came.  *ending* as in `Turns.turn`."""
        self.endpoint = self.endpoint or endpoint
        directory, name = directory_and_name(endpoint.path)
        return self.services.turns.turn((endpoint.host, directory), name, ending)

    async def converse(
        self,
        name: str,
        disk: DiskPath,
        seq: int,
        create: bool,
        work: Callable[[Host], Awaitable[T]],
        keys: Callable[[], Sequence[str]] = tuple,
        flight: Hashable = None,
    ) -> T:
        """Do *work* in a conversation about a disk; if the connection breaks in it, dial again and begin anew.

        Everything can be repeated, and what has arrived is found again.  A host that cannot be reached at all is not
        waited for: oned shows that at once.  *keys* says which images it may bring into the host's cache (blocking);
        *flight* is what is waited for if another brings it (`Flights`).
        """

        async def attempt(hosts: List[Host]) -> T:
            async with self.host(name) as host:
                hosts.append(host)
                await host.open(disk, seq, self.action, create)
                return await work(host)

        discarding = self.discarding(lambda: self.discard_on(name, disk, seq, keys))
        async with discarding, self.services.flights.board(flight):
            return await self.persist(attempt)

    @contextlib.asynccontextmanager
    async def discarding(self, remove: Callable[[], Awaitable[str]]) -> AsyncIterator[None]:
        """If what is done in here is ended by somebody who wants nothing to be left, have what it staged *remove*d.

        What that returns, unless "", is what is left.
        """
        try:
            yield
        except asyncio.CancelledError:
            if self.discard:
                self.phases.enter("discard")
                await self._discard(remove)
            raise

    async def _discard(self, remove: Callable[[], Awaitable[str]]) -> None:
        """In a task of its own: time limits do not work in one that has been cancelled (Python before 3.11.3)."""
        before = self.left or []
        self.left = [*before, "perhaps what has arrived: its removal was cut off"]
        removal = asyncio.ensure_future(remove())
        try:
            done, _ = await asyncio.wait([removal], timeout=_DISCARDING)
            if not done:
                stays = f"perhaps what has arrived: it could not be removed in {_DISCARDING:.0f} s"
            elif removal.exception():
                stays = f"perhaps what has arrived: it could not be removed ({removal.exception()})"
            else:
                stays = removal.result()
            self.left = [*before, stays] if stays else before
        finally:
            removal.cancel()
            await asyncio.gather(removal, return_exceptions=True)

    async def discard_on(
        self, name: str, disk: DiskPath, seq: int, keys: Callable[[], Sequence[str]] = tuple
    ) -> str:
        """Have a host remove what this action, or an earlier one, has staged there, and what of the images *keys* in
        its cache, unless others want that: they go on with it.  What stays, or ""."""
        named = [key for key in await in_thread(keys) if key]
        wanted = [key for key in named if self.services.flights.wanted((name, disk.base, key))]
        until = time.monotonic() + _LANES_END
        for key in [key for key in named if key not in wanted] or [""]:
            while not await self._discarded(name, disk, seq, key):
                if time.monotonic() > until:
                    if not key:
                        return f"what has arrived on {name}: it is still written to"
                    wanted.append(key)  # our own lanes have let go of it by now
                    break
                await asyncio.sleep(_LOOK)
        if wanted:
            self.shared = f"what has arrived on {name} of an image that others are waiting for"
        return ""

    async def _discarded(self, name: str, disk: DiskPath, seq: int, key: str) -> bool:
        async with self.host(name) as host:
            return await host.discard(disk, seq, self.action, key)

    async def persist(self, attempt: Callable[[List[Host]], Awaitable[T]]) -> T:
        """Do *attempt*, which notes the hosts that it dials; if a connection breaks when all were open, do it again."""
        for pause in (*_PAUSES, None):
            self.phases.enter("host")
            hosts: List[Host] = []
            try:
                return await attempt(hosts)
            except LinkLost as error:
                if pause is None or not hosts or not all(host.is_open for host in hosts):
                    raise
                self.log(f"{error}; trying again")
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def ask_oned(self, vm_id: int, store_id: int) -> Tuple[Vm, Dict[int, Datastore]]:
        """The VM, and all datastores, the VM's own among them; `Refused` if there is none with that id."""
        vm, stores = await asyncio.gather(
            asyncio.to_thread(self.oned.vm, vm_id), self.services.datastores(self.oned, store_id)
        )
        self.vm_id = vm.id
        if vm.store is not None and vm.store not in stores:  # younger than what is remembered
            stores = await self.services.datastores(self.oned, vm.store)
        datastore(stores, store_id)
        return vm, stores

    def settings_for(self, system: Datastore, image: Datastore) -> Settings:
        """The settings of a transfer between a host's system datastore and an image datastore."""
        return self.configuration.settings(system, image)

    def machine(self) -> str:
        """What tells this front-end's files from another's."""
        for path in ("/etc/machine-id", "/proc/sys/kernel/hostname"):
            try:
                text = Path(path).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                continue
            if text:
                return text
        return ""


def datastore(stores: Dict[int, Datastore], wanted: int) -> Datastore:
    """The datastore with this id; `Refused` if oned knows none."""
    if wanted not in stores:
        raise Refused(f"oned knows no datastore {wanted}")
    return stores[wanted]


def check_owner(disk: DiskPath, vm: Vm, shown: str) -> None:
    """Raise `FastcopyError` if the file *shown* is another VM's."""
    if disk.vm != vm.id:
        raise FastcopyError(f"{shown} belongs to VM {disk.vm}, not to VM {vm.id}")


def datastore_of(stores: Dict[int, Datastore], path: str, system: bool) -> Datastore:
    """The system datastore, or the other one, that *path* lies in; `Refused` if it lies in none."""
    by_base = {store.base_path: store for store in stores.values() if store.system == system}
    return by_base[relative_to_any(path, by_base)[0]]
