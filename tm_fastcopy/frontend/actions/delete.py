"""delete: takes a VM's disk, or its whole directory, off a host.  What still runs for it is ended first.

    delete HOST:<system datastore>/<VM>[/disk.<N>]  VM  DATASTORE
"""

from __future__ import annotations

import re

from ...core.errors import FastcopyError, Refused
from ...core.paths import DiskPath, disk_path
from ..arguments import Endpoint, exactly, number
from ..call import Call, check_owner, datastore_of


async def run(call: Call) -> None:
    """Remove it; raise `FastcopyError` if it may still be there."""
    target, vm_id, store_id = exactly(call.argv, "HOST:DISK_OR_DIRECTORY VM_ID DATASTORE_ID")
    endpoint = Endpoint.parse(target)
    ending = f"the action was ended because {endpoint.path} is being deleted"
    async with call.turn(endpoint, ending):
        await _delete(call, endpoint, number(vm_id, "a VM"), number(store_id, "a datastore"))


async def _delete(call: Call, endpoint: Endpoint, vm_id: int, store_id: int) -> None:
    target = call.argv[0]
    vm, stores = await call.ask_oned(vm_id, store_id)
    # The datastore that oned names is the image's, unless it is about the directory or a volatile disk.
    disk = _disk(endpoint.path, datastore_of(stores, endpoint.path, system=True).base_path)
    check_owner(disk, vm, endpoint.path)
    try:
        async with call.host(endpoint.host) as host:
            await host.remove(disk, vm.seq, call.action)
    except FastcopyError as error:
        raise type(error)(f"cannot delete {target}: {error}") from error
    call.log(f"{endpoint.path} on {endpoint.host} is gone")


def _disk(path: str, base: str) -> DiskPath:
    """The disk that is meant; its name is "" for the whole directory."""
    match = re.fullmatch(re.escape(base.rstrip("/")) + r"/+([0-9]{1,9})/*", path)
    if match:
        return DiskPath(base.rstrip("/"), int(match.group(1)), "")
    try:
        return disk_path(path, base)
    except Refused as error:
        raise Refused(f"{path} is neither a VM's directory in the datastore {base} nor a disk in one") from error
