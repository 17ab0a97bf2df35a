"""resize: makes a disk of a VM that is off larger.  A running VM's disk is left to its hypervisor, whom oned asks next.

    resize HOST:<system datastore>/<VM>/disk.<N>  SIZE_MIB  VM  DATASTORE
"""

from __future__ import annotations

from ...core.errors import FastcopyError
from ...core.paths import disk_path
from ...core.volatile_messages import GrowDisk, Grown
from ..arguments import Endpoint, exactly, number
from ..call import Call, check_owner, datastore_of
from ..host import Host
from ..oned import check_format
from ..sizes import mib
from ..volatile import attributes_of

_DISK_RESIZE = 62  # LCM_STATE: the disk of a running VM is made larger
_MIB = 1024 * 1024


async def run(call: Call) -> None:
    """Make the disk larger; raise `FastcopyError` with the disk as it was otherwise."""
    target, size, vm_id, store_id = exactly(call.argv, "HOST:DISK SIZE_MIB VM_ID DATASTORE_ID")
    endpoint = Endpoint.parse(target)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        await _resize(call, endpoint, mib(size), number(vm_id, "a VM"), number(store_id, "a datastore"))


async def _resize(call: Call, endpoint: Endpoint, size: int, vm_id: int, store_id: int) -> None:
    call.phases.enter("oned")
    vm, stores = await call.ask_oned(vm_id, store_id)
    # The datastore that oned names is the image's, unless the disk is volatile.
    disk = disk_path(endpoint.path, datastore_of(stores, endpoint.path, system=True).base_path)
    check_owner(disk, vm, endpoint.path)
    if vm.lcm_state == _DISK_RESIZE:
        call.log(f"{disk} is left to the hypervisor on {endpoint.host}, because its VM is running")
        return
    try:
        attributes = attributes_of(vm, disk)
        message = GrowDisk(size, check_format(attributes), attributes.sparse)

        async def work(host: Host) -> Grown:
            call.phases.enter("disk")
            grown: Grown = await host.ask(message, Grown)
            return grown

        grown = await call.converse(endpoint.host, disk, vm.seq, False, work)
    except FastcopyError as error:
        raise type(error)(f"cannot resize {endpoint.host}:{endpoint.path}: {error}") from error
    if grown.after == grown.before:
        call.log(f"{disk} on {endpoint.host} stays as it is: it has {grown.before / _MIB:.1f} MiB; {call.phases}")
        return
    call.log(
        f"{disk} on {endpoint.host} has grown from {grown.before / _MIB:.1f} to {grown.after / _MIB:.1f} MiB; "
        f"{call.phases}"
    )
