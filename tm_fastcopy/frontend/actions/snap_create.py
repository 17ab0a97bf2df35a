"""snap_create: keeps a disk as it is, of a VM that does not run.

    snap_create HOST:<system datastore>/<VM>/disk.<N>  SNAPSHOT_ID  VM  DATASTORE
"""

from __future__ import annotations

from ...core.snapshot_messages import SnapCreate
from .. import snapshots
from ..call import Call


async def run(call: Call) -> None:
    """Make the snapshot; raise `FastcopyError` with the disk as it was otherwise."""
    await snapshots.run(call, "make", lambda it: SnapCreate(it.snapshot, it.format, it.share))
