"""snap_create_live: keeps a disk as it is, of a VM that runs.

    snap_create_live HOST:<system datastore>/<VM>/disk.<N>  SNAPSHOT_ID  VM  DATASTORE
"""

from __future__ import annotations

from ...core.errors import FastcopyError
from ...core.snapshot_messages import FREEZES, SnapCreateLive
from .. import snapshots
from ..call import Call


async def run(call: Call) -> None:
    """Make the snapshot; raise `FastcopyError` with the disk as it was otherwise."""
    await snapshots.run(call, "make", _message)


def _message(it: snapshots.Subject) -> SnapCreateLive:
    vm, freeze = it.vm, it.vm.freeze.lower()
    if not vm.deploy_id or not it.disk.target:
        raise FastcopyError(f"oned does not say what VM {vm.id} or its disk is called on the host: is the VM running?")
    freeze = freeze if freeze in FREEZES else "none"
    container = vm.hypervisor == "lxc"
    return SnapCreateLive(
        it.snapshot, it.format, it.share, vm.deploy_id, it.disk.target, container, freeze
    )
