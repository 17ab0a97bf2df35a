"""postmigrate: after the hypervisor has moved a running VM: removes what it left at the source.

    postmigrate SOURCE_HOST TARGET_HOST <system datastore>/<VM>  VM  DATASTORE  [DRIVER THAT CALLS]

On standard input the VM's XML in base64.
"""

from __future__ import annotations

from ...core.errors import FastcopyError
from ..arguments import exactly
from ..call import Call
from ..live_migration import NAMES, clear, places
from ..other_drivers import call_others


async def run(call: Call) -> None:
    """Remove it; raise `FastcopyError` if it may still be there."""
    if len(call.argv) == 6:
        return
    source, target, seq = await places(call, exactly(call.argv, NAMES))
    if source == target:
        call.log(f"the VM stays in {target}, so there is nothing to remove")
        return
    try:
        await clear(call, source, target, seq, remove=False)  # a driver that we call may remove it, and asks nothing
        await call_others(call, "postmigrate")
        how = await clear(call, source, target, seq)
    except FastcopyError as error:
        raise type(error)(f"cannot remove {source}, which a VM has left: {error}") from error
    call.log(f"{target}: {how}")
