"""failmigrate: after a live migration that failed.  The VM runs where it ran, and its directory is there.

    failmigrate SOURCE_HOST TARGET_HOST <system datastore>/<VM>  VM  DATASTORE  [DRIVER THAT CALLS]

Nothing is removed: what is left at the target is removed by the next premigrate or mv there, when it is known again
that it is not the VM's own.  The drivers of other disks may have something to undo, and are called.
"""

from __future__ import annotations

from ..arguments import exactly
from ..call import Call
from ..live_migration import NAMES
from ..other_drivers import call_others


async def run(call: Call) -> None:
    """Have other drivers undo what they did."""
    if len(call.argv) == 6:
        return
    exactly(call.argv, NAMES)
    await call_others(call, "failmigrate")
