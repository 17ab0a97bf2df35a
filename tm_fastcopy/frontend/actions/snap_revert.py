"""snap_revert: makes a disk what it was at a snapshot; what was written since is given up.

    snap_revert HOST:<system datastore>/<VM>/disk.<N>  SNAPSHOT_ID  VM  DATASTORE
"""

from __future__ import annotations

from ...core.snapshot_messages import SnapRevert
from .. import snapshots
from ..call import Call


async def run(call: Call) -> None:
    """Go back; raise `FastcopyError` with the disk as it was otherwise."""
    await snapshots.run(
        call, "go back to", lambda it: SnapRevert(it.snapshot, it.format, it.share, it.disk.sparse)
    )
