"""snap_delete: removes a snapshot; the disk and its other snapshots stay what they are.

    snap_delete HOST:<system datastore>/<VM>/disk.<N>  SNAPSHOT_ID  VM  DATASTORE
"""

from __future__ import annotations

from ...core.errors import FastcopyError
from ...core.snapshot_messages import SnapDelete
from .. import snapshots
from ..call import Call


async def run(call: Call) -> None:
    """Remove the snapshot; raise `FastcopyError` if it may still be there."""
    await snapshots.run(call, "remove", _message)


def _message(it: snapshots.Subject) -> SnapDelete:
    # A container has raw disks only, of which nothing rests on a snapshot.
    runs = it.running and it.vm.hypervisor != "lxc"
    if runs and not (it.vm.deploy_id and it.disk.target):
        raise FastcopyError(f"oned does not say what VM {it.vm.id}, which runs, or its disk is called on the host")
    domain, target = (it.vm.deploy_id, it.disk.target) if runs else ("", "")
    return SnapDelete(it.snapshot, it.format, it.share, domain, target)
