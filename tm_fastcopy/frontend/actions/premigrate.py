"""premigrate: before the hypervisor moves a running VM: frees its place at the target.

    premigrate SOURCE_HOST TARGET_HOST <system datastore>/<VM>  VM  DATASTORE  [DRIVER THAT CALLS]

On standard input the VM's XML in base64.  Another system datastore's driver may call us for one of its VM's disks: what
lies in its datastore is its own, and nothing is done.
"""

from __future__ import annotations

from ...core.errors import FastcopyError
from ..arguments import exactly
from ..call import Call
from ..live_migration import NAMES, places, prepare
from ..other_drivers import call_others


async def run(call: Call) -> None:
    """Make ready; raise `FastcopyError` with nothing removed that a VM may still need."""
    if len(call.argv) == 6:
        return
    argv = exactly(call.argv, NAMES)
    if argv[0] == argv[1]:
        call.log(f"the VM stays on {argv[0]}, so there is nothing to prepare")
        return
    source, target, seq = await places(call, argv)
    try:
        how = await prepare(call, source, target, seq)
        await call_others(call, "premigrate")
    except FastcopyError as error:
        raise type(error)(f"cannot prepare {target} for a VM from {source.name}: {error}") from error
    call.log(f"{target}: {how}")
