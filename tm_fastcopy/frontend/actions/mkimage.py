"""mkimage: makes a volatile disk, with a file system in it if the disk's FS says so.

    mkimage SIZE_MIB raw|qcow2 HOST:<system datastore>/<VM>/disk.<N>  VM  DATASTORE
"""

from __future__ import annotations

from ..arguments import exactly, number
from ..call import Call
from ..sizes import mib
from ..volatile import make


async def run(call: Call) -> None:
    """Make the disk; raise `FastcopyError` with nothing new at its name otherwise."""
    size, format, destination, vm_id, store_id = exactly(call.argv, "SIZE_MIB FORMAT HOST:DISK VM_ID DATASTORE_ID")
    await make(call, mib(size), format.lower(), destination, number(vm_id, "a VM"), number(store_id, "a datastore"))
