"""Live snapshots: what is asked of the hypervisor when a disk of a VM that runs is kept, and in which order.

A reflink needs the VM to stand still for a moment.  A tree's new file is laid over the active one, and the disk's link
leads to it, *before* the VM is told to write there: as long as nothing was written into it, both ways through the tree
give the same content, so that a crash between the two loses nothing.  (The other way round, the link would lead past
what the VM has written since.)
"""

from __future__ import annotations

import contextlib
import os
import time
import xml.etree.ElementTree as ElementTree
from typing import Callable, ContextManager, Dict, List, Optional, Protocol, Sequence

from ..core.chain import is_number
from ..core.errors import FastcopyError, Refused
from ..core.files import Files
from ..core.snapshot_messages import SnapCreateLive
from .containers import Lxc
from .copies import Copies
from .directory import VmDirectory
from .hypervisor import Hypervisor
from .overlays import Overlays
from .program import execute
from .standstill import standstill

VIRSH = "virsh"
URI = "qemu:///system"
_BRIEF = 60.0  # seconds for what changes a state, or asks for one
_STILL = 30.0  # seconds that a VM may stand still for a reflink, or for its disk's new file
_LONG = 3000.0  # seconds for what copies a disk. The front-end waits for 3600
_BUSY, _TRIES, _PAUSE = "active block job", 3, 5.0  # a copy of the same disk that is about to end, seconds


class Guest(Protocol):
    """A VM that runs, as far as its snapshots need it."""

    def at_rest(self, how: str, bound: float = _STILL) -> ContextManager[None]:
        """Its file systems are at rest ("agent"), or it stands still ("suspend"), or nothing is done ("none").

        It goes on after *bound* seconds whatever happens.
        """

    def sources(self, target: str) -> List[str]:
        """The paths of the files that it has open as the disk *target*: the active one, and what it rests on."""

    def overlay(self, target: str, path: str) -> None:
        """Have it write into *path* from now on, which rests on what *target* is."""

    def copy(self, target: str, path: str) -> None:
        """Copy the disk, as it is at the end of the copy, to *path*."""

    def pull(self, target: str, base: Optional[str]) -> None:
        """Copy into the active file what it needs of the files down to *base*, on which it rests then."""


class Virsh:
    """A VM of libvirt."""

    def __init__(self, files: Files, directory: VmDirectory, domain: str, alive: Callable[[], bool]) -> None:
        self._files, self._directory, self._domain, self._alive = files, directory, domain, alive

    def at_rest(self, how: str, bound: float = _STILL) -> ContextManager[None]:
        """See `Guest`."""
        if how not in ("agent", "suspend"):
            return contextlib.nullcontext()
        return standstill(self._files, self._directory, Hypervisor(URI, _BRIEF), self._domain, bound, how)

    def sources(self, target: str) -> List[str]:
        """See `Guest`."""
        found = self._disks().get(target)
        if found is None:
            raise Refused(f"the VM {self._domain} that runs here has no disk {target}")
        return [source.get("file", "") for source in found.iter("source")]

    def overlay(self, target: str, path: str) -> None:
        """See `Guest`.  Disks that are not named would get a snapshot as well."""
        disks = [f"{disk},snapshot=no" for disk in self._disks() if disk != target]
        disks.append(f"{target},snapshot=external,file={path.replace(',', ',,')}")
        specs = [word for disk in disks for word in ("--diskspec", disk)]
        options = ["--disk-only", "--atomic", "--no-metadata", "--reuse-external"]
        self._ask("snapshot-create-as", self._domain, *options, *specs)

    def copy(self, target: str, path: str) -> None:
        """See `Guest`."""
        for left in range(_TRIES, 0, -1):
            try:
                self._ask("blockcopy", self._domain, target, path, "--wait", "--finish", bound=_LONG)
                return
            except FastcopyError as error:
                if _BUSY not in str(error) or left == 1:
                    raise
            time.sleep(_PAUSE)

    def pull(self, target: str, base: Optional[str]) -> None:
        """See `Guest`."""
        options = ["--base", base, "--keep-relative"] if base else []
        self._ask("blockpull", self._domain, target, *options, "--wait", bound=_LONG)

    def _disks(self) -> Dict[str, ElementTree.Element]:
        """The description of each disk, by its target."""
        try:
            root = ElementTree.fromstring(self._ask("dumpxml", self._domain))
        except ElementTree.ParseError as error:
            raise FastcopyError(f"{VIRSH} describes {self._domain} in a way that cannot be read") from error
        found = {}
        for disk in root.iterfind("devices/disk"):
            target = disk.find("target")
            if target is not None:
                found[target.get("dev", "")] = disk
        return found

    def _ask(self, *words: str, bound: float = _BRIEF) -> str:
        argv = [VIRSH, "--connect", URI, "--quiet", *words]
        return run(argv, " ".join((VIRSH, *words[:2])), self._alive, bound)


def run(argv: Sequence[str], shown: str, alive: Callable[[], bool], bound: float) -> str:
    """Run a program of the hypervisor's; return what it prints.  `FastcopyError` with what it says if it fails.

    *shown* is the call in the words of an error, *bound* how many seconds it may take.

    A change of state is never cut short because the front-end went away: half of it would be worse.
    """
    try:
        ended = execute(argv, bound, alive if bound > _BRIEF else lambda: True, gently=True)
    except TimeoutError:
        raise FastcopyError(f"`{shown}` did not end within {bound:.0f} s: look at the VM") from None
    except OSError as error:
        raise FastcopyError(f"`{shown}` cannot be run on this host: {error.strerror}") from error
    if ended.status:
        raise FastcopyError(f"`{shown}` failed: {ended.problem}")
    return ended.out


# --- what is done with it ----------------------------------------------------------------------------------------


def copy_live(copies: Copies, message: SnapCreateLive, source: int, guest: Guest) -> str:
    """Snapshot of a flat disk, open as *source*, of a VM that runs."""

    def copy(path: str, target: int) -> None:
        with guest.at_rest(message.freeze, _LONG):
            guest.copy(message.target, path)

    how = message.freeze if message.freeze == "agent" else "suspend"
    return copies.create_live(message.id, source, lambda: guest.at_rest(how), copy)


def copy_of_container(
    files: Files, directory: VmDirectory, copies: Copies, message: SnapCreateLive, source: int
) -> str:
    """Snapshot of the disk, open as *source*, of a container that runs: it stands still also for a copy."""

    def still(bound: float = _STILL) -> ContextManager[None]:
        return standstill(files, directory, Lxc(_BRIEF), message.domain, bound, "suspend")

    def copy(path: str, target: int) -> None:
        with still(_LONG):
            copies.fill(target, source, path)

    return copies.create_live(message.id, source, still, copy)


def lay_over_live(overlays: Overlays, message: SnapCreateLive, guest: Guest) -> str:
    """Snapshot of a disk in a tree, of a VM that runs."""
    following = str(message.id + 1)
    path = f"{overlays.shown}/{following}"
    if os.path.basename(guest.sources(message.target)[0]) == following:  # all but the link was done before
        if overlays.active != following:
            overlays.lead_to(following)
        return "it was made already"
    before = overlays.chain.headers[overlays.active].backing
    if not overlays.is_next(message.id):
        before = overlays.prepare(message.id)
        overlays.lead_to(following)
    assert before is not None

    def writes_there() -> bool:
        return os.path.basename(guest.sources(message.target)[0]) == following

    try:
        with guest.at_rest(message.freeze):
            try:
                guest.overlay(message.target, path)
            except FastcopyError:  # perhaps only its answer was lost
                if not writes_there():
                    raise
    except FastcopyError:  # also of a VM that writes there, and does not go on
        if not writes_there():
            overlays.take_back(message.id, before)
        raise
    return f"{before} is frozen, and the VM writes to {following}"


def let_go_live(overlays: Overlays, snapshot: int, guest: Guest, target: str) -> None:
    """Have a VM that runs do without the file of a snapshot; whatever else rests on that is not its business."""
    name, sources = overlays.chain.file_of(snapshot), guest.sources(target)
    written = os.path.basename(sources[0])
    if is_number(written) and written != overlays.active:
        raise Refused(
            f"the VM that runs writes to {sources[0][:200]}, which is not where its disk leads to: power it off, look "
            "at the tree, and repeat"
        )
    open_files = {os.path.basename(path): path for path in sources[1:]}
    if name not in open_files:
        return  # it is on another branch than the one that the VM runs on
    if overlays.chain.headers[overlays.active].backing != name:
        raise Refused(
            f"snapshot {snapshot} lies between others that the running VM rests on: delete the newer ones first, or "
            "power the VM off and delete it then"
        )
    base = overlays.chain.headers[name].backing
    guest.pull(target, open_files[base] if base else None)
