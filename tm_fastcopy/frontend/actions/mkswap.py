"""mkswap: makes a volatile disk that is swap.

    mkswap SIZE_MIB HOST:<system datastore>/<VM>/disk.<N>  VM  DATASTORE
"""

from __future__ import annotations

from ...core.volatile_messages import SWAP
from ..arguments import exactly, number
from ..call import Call
from ..sizes import mib
from ..volatile import make


async def run(call: Call) -> None:
    """Make the disk; raise `FastcopyError` with nothing new at its name otherwise."""
    size, destination, vm_id, store_id = exactly(call.argv, "SIZE_MIB HOST:DISK VM_ID DATASTORE_ID")
    await make(call, mib(size), SWAP, destination, number(vm_id, "a VM"), number(store_id, "a datastore"))
