"""The power cut: at every arrow, the machine whose process stands there loses its power.

How: the file system is shut down by its own ioctl (XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN), which makes every later
request to the device fail, from the page cache's writeback and from the journal alike.  All processes of the machine
are killed, the file system is unmounted, which can write nothing any more, and mounted again, which replays the
journal.  So what survives is what had reached the device, and the journal decides about names and sizes: what a machine
finds after a power cut.  It is done in both ways that the ioctl knows:

* NOLOGFLUSH: nothing in memory reaches the device.  What was not synced is gone, names as well as content.
* LOGFLUSH: the journal is written first, content is not.  Every name and size is there, and content only if it was
  synced: the worst that a journal's commit at the wrong moment can do.

What it does not show: a device that lies about its cache, or tears a block (the device here is a file in memory, and
keeps all that it was given); and content that writeback had written early survives, which is always the case with real
power cuts too, and can only make a half-written staging file look more complete.
"""

from __future__ import annotations

from typing import Callable

import pytest

from .conftest import Totals
from .order import broken_rules
from .scenarios import (
    CLONE_COLD,
    CLONE_GROWN,
    CLONE_NEXT,
    CLONE_OVER_FIRST,
    CLONE_OVER_TREE,
    CLONE_TREE,
    CLONE_TREE_RESUMED,
    CLONE_TREE_WARM,
    CLONE_WARM,
    CPDS_OVER,
    CPDS_RESUMED,
    LN_AGAIN,
    MKIMAGE_QCOW2,
    MKSWAP,
    MOVES,
    MV,
    MV_OVER,
    MV_RENAMED,
    MVDS,
    MVDS_FLAT,
    MVDS_READ_ONLY,
    MVDS_TREE,
    RESTORE,
    SCENARIOS,
    SNAPSHOTS,
    TREES,
    Scenario,
)
from .site import Site
from .walk import Harness, Walk

NEEDS_MOUNTS = True
pytestmark = pytest.mark.root

# A larger disk differs by a truncate, permissions are no matter of power, ln is a clone, and the rest is walked from
# another state, with raw disks, or with a tree that has one more difference: the kills walk them.
# Of snapshots: those with most steps; a removed copy is one unlink, a first one is what going back is,
# and a tree on a host is made in the steps of one in a datastore.
_NOT_CUT = (
    CLONE_GROWN, MVDS_READ_ONLY, CLONE_TREE_WARM, CLONE_TREE_RESUMED, CLONE_OVER_FIRST, MVDS_TREE, MVDS_FLAT,
    MKIMAGE_QCOW2, MKSWAP, LN_AGAIN, CPDS_OVER, CPDS_RESUMED,
    *(s for s in (*SNAPSHOTS, *TREES) if s.name not in (
        "back to a snapshot, raw", "snapshot of a tree under another number", "a snapshot removed, tree",
        "mvds with snapshots",
    )),
)  # fmt: skip
CUT = [s for s in SCENARIOS if s not in _NOT_CUT and s not in MOVES and not s.inline]
# Raw disks on both file systems.  Trees are made of the same calls in the same order on either: they take turns.
_TREES = [scenario for scenario in CUT if scenario.format == "qcow2" or scenario is RESTORE]
ON = [(s, fs) for s in CUT for fs in ("xfs", "ext4") if s not in _TREES or fs == ("xfs", "ext4")[_TREES.index(s) % 2]]
ON += [(MV, "xfs"), (MV_OVER, "ext4"), (MV_RENAMED, "xfs")]
SHARING = [CLONE_COLD, CLONE_WARM, CLONE_NEXT, MVDS, CLONE_TREE, CLONE_OVER_TREE]


@pytest.mark.parametrize(("scenario", "fs"), ON, ids=[f"{scenario.name}-{fs}" for scenario, fs in ON])
def test_power_cut_at_every_arrow(
    harness: Harness, volumes: Callable[[str], Site], totals: Totals, fs: str, scenario: Scenario
) -> None:
    """Defect A5 of the stock drivers."""
    walk = Walk(harness, volumes(fs), scenario).without_common()
    assert broken_rules(walk.lines) == []
    report = walk.cuts()
    totals.add(walk, report)
    assert report.cuts > 2 * len(walk.arrows)
    assert report.wrong == []


@pytest.mark.parametrize("scenario", SHARING, ids=[scenario.name for scenario in SHARING])
def test_killed_where_blocks_are_shared(
    harness: Harness, volumes: Callable[[str], Site], totals: Totals, scenario: Scenario
) -> None:
    """The crash walk on XFS, where the image is staged in the cache and the disk is its reflink."""
    walk = Walk(harness, volumes("xfs"), scenario).without_common()
    assert any("clone" in line.method and line.done for line in walk.lines if "probe" not in line.change)
    report = walk.kills()
    totals.add(walk, report)
    assert report.wrong == []


@pytest.mark.parametrize("scenario", [CLONE_COLD, MVDS], ids=["clone", "mvds"])
def test_every_call_fails_once_where_blocks_are_shared(
    harness: Harness, volumes: Callable[[str], Site], totals: Totals, scenario: Scenario
) -> None:
    walk = Walk(harness, volumes("xfs"), scenario).without_common()
    report = walk.failures()
    totals.add(walk, report)
    assert report.wrong == []
