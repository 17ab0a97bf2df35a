"""Live migration: what is done to a VM's directories before and after the hypervisor moves the VM.

The hypervisor copies the disks; before it does, what an earlier attempt left at the target is removed, and afterwards
what the VM left at the source.  Neither is done before it is known that the two are not one directory, and that the
other one is there: nothing is removed on the strength of host names.
"""

from __future__ import annotations

import contextlib
import re
from typing import AsyncIterator, List, Set, Tuple

from ..core import move_messages as said
from ..core.errors import FastcopyError, Refused
from ..core.paths import vm_path
from ..core.wire import Done
from .arguments import Endpoint, number
from .call import Call, check_owner, datastore, datastore_of
from .host import Host
from .move import Side

_DISK = re.compile(r"disk\.[0-9]{1,9}")
NAMES = "SOURCE_HOST TARGET_HOST DIRECTORY VM_ID DATASTORE_ID"


async def places(call: Call, argv: List[str]) -> Tuple[Side, Side, int]:
    """Where the VM was, where it is to be, and its history sequence."""
    one, other, path, vm_id, store_id = argv
    vm, stores = await call.ask_oned(number(vm_id, "a VM"), number(store_id, "a datastore"))
    target = vm_path(path, datastore_of(stores, path, system=True).base_path)
    check_owner(target, vm, path)
    before = target.base if vm.before is None else datastore(stores, vm.before).base_path
    source = vm_path(f"{before}/{vm.id}", before)
    # Hosts as oned names them, checked as in HOST:PATH.
    names = [Endpoint.parse(f"{name}:{path}").host for name in (one, other)]
    return Side(names[0], source), Side(names[1], target), vm.seq


async def prepare(call: Call, source: Side, target: Side, seq: int) -> str:
    """Remove what is left at the target; what was done, in a few words."""
    async with _both(call, source, target, seq, create=True) as (first, second):
        seen = await _seen(first, second, target)
        if seen.same:
            return "both hosts have the same directory, which stays"
        if not seen.present:
            raise Refused(f"there is no directory {source}, so nothing is removed at {target}: where is the VM?")
        here: said.Looked = await first.ask(said.LookAt(source.directory.base), said.Looked)
        there: said.Looked = await second.ask(said.LookAt(target.directory.base), said.Looked)
        if _disks(there) and not _disks(here):
            raise Refused(f"{source} has no disk, and {target} has some, so nothing is removed there: where is the VM?")
        await second.ask(said.Clear(True), Done)
        return "the place is free"


async def clear(call: Call, source: Side, target: Side, seq: int, remove: bool = True) -> str:
    """Remove what the VM left at the source; what was done, in a few words.  Without *remove*, see if it may go."""
    if source.name == target.name:
        async with call.host(source.name) as host:
            await host.open_move(source.directory, seq, call.action)
            there: said.Looked = await host.ask(said.LookAt(target.directory.base), said.Looked)
            if there.same:
                return "it is the same directory, which stays"
            return await _clear(host, source, target, there, remove)
    async with _both(call, source, target, seq) as (first, second):
        seen = await _seen(first, second, target)
        if seen.same:
            return "both hosts have the same directory, which stays"
        there = await second.ask(said.LookAt(target.directory.base), said.Looked)
        return await _clear(first, source, target, there, remove)


async def _clear(host: Host, source: Side, target: Side, there: said.Looked, remove: bool) -> str:
    here: said.Looked = await host.ask(said.LookAt(source.directory.base), said.Looked)
    missing = _disks(here) - _disks(there)
    if not there.names or missing:
        what = f"has no {', '.join(sorted(missing))}" if there.names else "is not there"
        raise FastcopyError(
            f"{target} {what}, so {source} is not removed: find out where the VM runs, and remove the other by hand"
        )
    if remove:
        await host.ask(said.Clear(False), Done)
    return f"what the VM left at {source} is removed"


def _disks(looked: said.Looked) -> Set[str]:
    return {name for name in looked.names.split("\n") if _DISK.fullmatch(name)}


@contextlib.asynccontextmanager
async def _both(
    call: Call, source: Side, target: Side, seq: int, create: bool = False
) -> AsyncIterator[Tuple[Host, Host]]:
    """Conversations with both hosts, begun in the same order for all: a host serves a few at once.

    *create* makes the target's datastore if it is missing.
    """
    one, other = sorted((source, target), key=lambda side: side.name)
    async with call.host(one.name) as first, call.host(other.name) as second:
        await first.open_move(one.directory, seq, call.action, create and one is target)
        await second.open_move(other.directory, seq, call.action, create and other is target)
        yield (first, second) if one is source else (second, first)


async def _seen(source: Host, target: Host, side: Side) -> said.Seen:
    token: said.Token = await target.ask(said.WriteToken(), said.Token)
    seen: said.Seen = await source.ask(said.FindToken(token.name, side.directory.base), said.Seen)
    await target.ask(said.DropToken(), Done)
    return seen
