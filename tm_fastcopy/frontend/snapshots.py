"""Snapshots: what the four actions on a disk's snapshots have in common.

    <action> HOST:<system datastore>/<VM>/disk.<N>  SNAPSHOT_ID  VM  DATASTORE
"""

from __future__ import annotations

import re
from typing import Callable, NamedTuple

from ..core.errors import FastcopyError, Refused
from ..core.paths import disk_path, relative_to_any
from ..core.snapshot_messages import Snapped
from ..core.wire import Message
from .arguments import Endpoint, exactly, number
from .call import Call, check_owner, datastore_of
from .host import Host
from .oned import Disk, Vm, check_format

_RUNNING = (57, 59)  # DISK_SNAPSHOT and DISK_SNAPSHOT_DELETE of oned's LCM states: the VM is not powered off


class Subject(NamedTuple):
    """What a snapshot action is about: *share* says whether blocks may be shared between the disk and its snapshots."""

    vm: Vm
    disk: Disk
    format: str
    snapshot: int
    share: bool

    @property
    def running(self) -> bool:
        """Whether the VM runs meanwhile."""
        return self.vm.lcm_state in _RUNNING


async def run(call: Call, doing: str, make: Callable[[Subject], Message]) -> None:
    """Have the host do what *make* makes of the call's subject; *doing* is how an error begins ("cannot ...")."""
    target, snapshot, vm_id, store_id = exactly(call.argv, "HOST:DISK SNAPSHOT_ID VM_ID DATASTORE_ID")
    endpoint = Endpoint.parse(target)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        call.phases.enter("oned")
        vm, stores = await call.ask_oned(number(vm_id, "a VM"), number(store_id, "a datastore"))
        base, _ = relative_to_any(endpoint.path, (store.base_path for store in stores.values() if store.system))
        path = disk_path(endpoint.path, base)
        check_owner(path, vm, endpoint.path)
        home = datastore_of(stores, str(path), system=True)
        call.settings = call.settings_for(home, home)
        try:
            subject = _subject(call, vm, path.name, number(snapshot, "a snapshot"))

            async def work(host: Host) -> Snapped:
                call.phases.enter("disk")
                done: Snapped = await host.ask(make(subject), Snapped)
                return done

            done = await call.converse(endpoint.host, path, vm.seq, False, work)
        except FastcopyError as error:
            raise type(error)(f"cannot {doing} snapshot {snapshot} of {target}: {error}") from error
    how = done.how if done.how.isprintable() else "in an unprintable way"  # it goes into oned's log
    call.log(f"snapshot {snapshot} of {path} on {endpoint.host}: {how[:300]}; {call.phases}")


def _subject(call: Call, vm: Vm, name: str, snapshot: int) -> Subject:
    match = re.fullmatch(r"disk\.([0-9]+)", name)
    if match is None:
        raise Refused(f"{name} has no snapshots")
    disk = vm.disks.get(int(match.group(1)))
    if disk is None:
        raise FastcopyError(f"VM {vm.id} has no disk {match.group(1)}")
    share = disk.sparse and call.settings.clone != "copy"
    return Subject(vm, disk, check_format(disk), snapshot, share)
