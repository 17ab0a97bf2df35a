"""cpds: saves a VM's disk as a new image (`onevm disk-saveas`).  The disk stays, and its VM may run.

    cpds HOST:<system datastore>/<VM>/disk.<N>  SOURCE|FE:SOURCE  SNAPSHOT|-1  VM  DATASTORE
"""

from __future__ import annotations

import re

from ...core.errors import FastcopyError, Refused
from ...core.image_messages import OpenExtract, OpenLive
from ...core.paths import disk_path, relative_to_any
from ...core.wire import Message
from ..arguments import Endpoint, exactly, number
from ..call import Call, check_owner, datastore_of
from ..host import Host
from ..kvmrc import Kvmrc
from ..oned import Disk, Vm, check_format
from ..pull import Pull, Pulled, discard_pulled
from ..threads import in_thread

_MIB = 1024 * 1024
_CURRENT = "-1"
_LIVE = 26  # LCM_STATE HOTPLUG_SAVEAS: the guest runs.  In the states of that name with a suffix it does not
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")  # "one-42", a UUID; nothing that virsh takes for an option
_TARGET = re.compile(r"[A-Za-z][A-Za-z0-9]{0,31}")  # "vda"


async def run(call: Call) -> None:
    """Make the image; raise `FastcopyError` with nothing, or what was there before, at its name otherwise."""
    source, destination, snapshot, vm_id, store_id = exactly(call.argv, "HOST:DISK SOURCE SNAPSHOT VM_ID DATASTORE_ID")
    wanted = "" if snapshot == _CURRENT else str(number(snapshot, "a snapshot"))
    target = Endpoint.parse(destination).path
    endpoint = Endpoint.parse(source)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        await _save(call, endpoint, target, wanted, number(vm_id, "a VM"), number(store_id, "a datastore"))


async def _save(call: Call, endpoint: Endpoint, target: str, snapshot: str, vm_id: int, store_id: int) -> None:
    what = f"snapshot {snapshot} of " if snapshot else ""
    call.phases.enter("oned")
    vm, stores = await call.ask_oned(vm_id, store_id)
    base, _ = relative_to_any(endpoint.path, (store.base_path for store in stores.values() if store.system))
    disk = disk_path(endpoint.path, base)
    check_owner(disk, vm, endpoint.path)
    home = datastore_of(stores, target, system=False)
    call.settings = call.settings_for(datastore_of(stores, str(disk), system=True), home)
    images = [store.base_path for store in stores.values() if not store.system]
    try:
        attributes = _attributes(vm, disk.name)
        format, seed = check_format(attributes), attributes.source
        opening = _opening(call, vm, attributes, format, snapshot)

        async def pull(host: Host) -> Pulled:
            common = call.store, call.settings, call.files, format, call.phases
            made = await in_thread(lambda: Pull(host, target, images, *common, seed=seed, opening=opening))
            return await made.run()

        async with call.discarding(lambda: in_thread(discard_pulled, target, images, format, call.files)):
            pulled = await call.converse(endpoint.host, disk, vm.seq, False, pull)
    except FastcopyError as error:
        raise type(error)(f"cannot save {what}{call.argv[0]} as {target}: {error}") from error
    call.log(
        f"{what}{disk} on {endpoint.host} is saved as {target}: "
        f"chunks fetched {pulled.fetched / _MIB:.1f} MiB, on the wire {pulled.wire / _MIB:.1f} MiB; {call.phases}"
    )


def _attributes(vm: Vm, name: str) -> Disk:
    """What oned says of the disk; `Refused` if it knows none (a kernel, say)."""
    for disk in vm.disks.values():
        if name == f"disk.{disk.id}":
            return disk
    raise Refused(f"VM {vm.id} has no disk of that name")


def _opening(call: Call, vm: Vm, disk: Disk, format: str, snapshot: str) -> Message:
    """How the disk is opened: as it is, or, under a running guest, as it is at one moment.  Snapshots do not change."""
    if snapshot or vm.lcm_state != _LIVE:
        return OpenExtract(format, snapshot)
    if vm.hypervisor != "kvm":
        raise Refused(f"a disk of a running VM can be saved with kvm only, not {vm.hypervisor}: power it off first")
    if not _DOMAIN.fullmatch(vm.deploy_id) or not _TARGET.fullmatch(disk.target):
        raise Refused(
            f"oned says that the running VM is {vm.deploy_id!r:.100} on its host and its disk {disk.target!r:.40}, "
            "which virsh cannot find: power the VM off first"
        )
    kvmrc = Kvmrc.read(call.places.state.parent / "remotes" / "etc" / "vmm" / "kvm" / "kvmrc")
    return OpenLive(format, kvmrc.uri, vm.deploy_id, disk.target, kvmrc.patience)
