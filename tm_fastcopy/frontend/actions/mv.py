"""mv: moves a VM's directory, with all that is in it, to another host or datastore, or to or from the front-end.

    mv A:<system datastore>/<VM>/disk.<N>  B:<system datastore>/<VM>/disk.<N>  VM  DATASTORE
    mv A:<system datastore>/<VM>           B:<system datastore>/<VM>           VM  DATASTORE

oned asks for every disk and then for the directory.  Disks go with their directory, so nothing is done for them alone.
"""

from __future__ import annotations

import re
from typing import Dict, List, Set

from ...core.errors import FastcopyError
from ...core.paths import vm_path
from ..arguments import Endpoint, directory_and_name, exactly, number
from ..call import Call, check_owner, datastore_of
from ..host import Host
from ..move import Move, Moved, Side
from ..oned import Datastore, Vm

_MIB = 1024 * 1024
_MOVES_NOTHING = (60, 61)  # LCM_STATE PROLOG_MIGRATE_UNKNOWN, ..._FAILURE: nobody knows what became of the host


async def run(call: Call) -> None:
    """Move it; raise `FastcopyError` with the source as it was, or whole at the destination, otherwise."""
    origin, destination, vm_id, store_id = exactly(call.argv, "HOST:DIRECTORY HOST:DIRECTORY VM_ID DATASTORE_ID")
    source, target = Endpoint.parse(origin), Endpoint.parse(destination)
    if re.fullmatch(r"disk\.[0-9]+", directory_and_name(target.path)[1]):
        return
    call.phases.enter("turn")
    one, other = sorted((source, target))
    async with call.turn(one):
        if one == other:
            call.log(f"{origin} stays where it is")
            return
        async with call.turn(other):
            await _move(call, source, target, number(vm_id, "a VM"), number(store_id, "a datastore"))


async def _move(call: Call, source: Endpoint, target: Endpoint, vm_id: int, store_id: int) -> None:
    origin, destination, *_ = call.argv
    call.phases.enter("oned")
    vm, stores = await call.ask_oned(vm_id, store_id)
    if vm.lcm_state in _MOVES_NOTHING:
        call.log(f"the VM's host does not answer, so nothing is moved from {source.host}")
        return
    leaving, arriving = _side(source, vm, stores), _side(target, vm, stores)
    system = datastore_of(stores, target.path, system=True)
    call.settings = call.configuration.settings(system)
    move = Move(leaving, arriving, _full(vm), call.settings, call.phases, call.log)
    try:
        moved = await _converse(call, move, vm.seq, leaving, arriving)
    except FastcopyError as error:
        raise type(error)(f"cannot move {origin} to {destination}: {error}") from error
    call.log(
        f"{origin} is {destination}: {moved.how}, chunks sent {moved.sent / _MIB:.1f} MiB, "
        f"on the wire {moved.wire / _MIB:.1f} MiB; {call.phases}"
    )


def _side(endpoint: Endpoint, vm: Vm, stores: Dict[int, Datastore]) -> Side:
    directory = vm_path(endpoint.path, datastore_of(stores, endpoint.path, system=True).base_path)
    check_owner(directory, vm, endpoint.path)
    return Side(endpoint.host, directory)


def _full(vm: Vm) -> Set[str]:
    """The disks that may have no holes."""
    return {f"disk.{disk.id}" for disk in vm.disks.values() if disk.format == "raw" and not disk.sparse}


async def _converse(call: Call, move: Move, seq: int, source: Side, target: Side) -> Moved:
    """One conversation, or two.  What has arrived when one breaks is found again by the next attempt."""
    async def within(hosts: List[Host]) -> Moved:
        async with call.host(source.name) as host:
            hosts.append(host)
            await host.open_move(source.directory, seq, call.action)
            return await move.within(host)

    async def between(hosts: List[Host]) -> Moved:
        # In the same order for all: a host serves a few conversations at once, and two moves in opposite directions
        # must not wait for each other.
        one, other = sorted((source, target), key=lambda side: side.name)
        async with call.host(one.name) as first, call.host(other.name) as second:
            hosts += [first, second]
            await first.open_move(one.directory, seq, call.action, create=one is target)
            await second.open_move(other.directory, seq, call.action, create=other is target)
            return await move.between(*((first, second) if one is source else (second, first)))

    async with call.discarding(lambda: call.discard_on(move.writer, target.directory, seq)):
        return await call.persist(within if source.name == target.name else between)
