"""The product broken on purpose: each breakage must be reported.  How each is found is said in mutants.py."""

from __future__ import annotations

import os
from typing import Callable, List

import pytest

from .order import broken_rules
from .scenarios import CLONE_COLD, CLONE_OVER_TREE, MV, MVDS, MVDS_GROWN, Scenario
from .site import Site
from .walk import Harness, Walk

NEEDS_MOUNTS = os.geteuid() == 0

ENDS = ("sync", "sync_directory", "rename", "exchange", "unlink")


@pytest.mark.root
@pytest.mark.parametrize(
    "fs, scenario, found",
    [
        ("xfs", CLONE_COLD, "wrong: a cache image is not what its name says"),
        ("ext4", CLONE_COLD, "wrong: the disk is neither old nor new"),
        ("xfs", MVDS_GROWN, "wrong: the image is neither old nor new"),
        ("ext4", MVDS, "wrong: the image is neither old nor new"),
    ],
    ids=["xfs-clone", "ext4-clone", "xfs-mvds", "ext4-mvds"],
)
def test_rename_before_fsync(
    harness: Harness, volumes: Callable[[str], Site], fs: str, scenario: Scenario, found: str
) -> None:
    walk = Walk(harness, volumes(fs), scenario, "rename_before_fsync").around(*ENDS, until=found)
    assert _found(walk.cuts().wrong, found)
    assert _found(broken_rules(walk.lines), "before the content is durable")


@pytest.mark.root
@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_manifest_without_fsync(harness: Harness, volumes: Callable[[str], Site], fs: str) -> None:
    found = "a cache manifest cannot be read"
    walk = Walk(harness, volumes(fs), CLONE_COLD, "manifest_without_fsync").around("rename", "unlink", until=found)
    assert _found(walk.cuts().wrong, found)


def test_delete_before_receipt(harness: Harness, plain: Site) -> None:
    found = "lost: there is no image"
    walk = Walk(harness, plain, MVDS, "delete_before_receipt").around(*ENDS, until=found)
    assert _found(walk.kills().wrong, found)


def test_discard_before_directory_sync(harness: Harness, plain: Site) -> None:
    walk = Walk(harness, plain, MVDS, "discard_before_directory_sync")
    assert _found(broken_rules(walk.lines), "before the exchange is durable")


def test_manifest_before_image(harness: Harness, plain: Site) -> None:
    found = "makes an entry count that is not there"
    walk = Walk(harness, plain, CLONE_COLD, "manifest_before_image").around(*ENDS, until=found)
    assert _found(walk.kills().wrong, found)


def test_publish_in_place(harness: Harness, plain: Site) -> None:
    found = "wrong: the disk is neither old nor new"
    walk = Walk(harness, plain, CLONE_COLD, "publish_in_place").around("write", until=found)
    assert _found(walk.kills().wrong, found)


def test_link_before_tree(harness: Harness, plain: Site) -> None:
    found = "wrong: the disk is neither old nor new"
    walk = Walk(harness, plain, CLONE_OVER_TREE, "link_before_tree").around("rename", until=found)
    assert _found(walk.kills().wrong, found)


def test_depart_in_place(harness: Harness, plain: Site) -> None:
    found = "wrong: the source is torn"
    walk = Walk(harness, plain, MV, "depart_in_place").around("unlink", "remove_directory", until=found)
    assert _found(walk.kills().wrong, found)


def test_arrive_without_fsync(harness: Harness, plain: Site) -> None:
    walk = Walk(harness, plain, MV, "arrive_without_fsync")
    assert _found(broken_rules(walk.lines), "before the content is durable")


@pytest.mark.parametrize("scenario", [CLONE_COLD, MVDS], ids=["clone", "mvds"])
def test_skip_verify(harness: Harness, plain: Site, scenario: Scenario) -> None:
    """A bit that flips in a chunk on its way, one that stands but once in the image: a repeated one is read again, and
    verified, when it is copied.  The product itself sends the chunk again: see test_links.
    """
    walk = Walk(harness, plain, scenario, "skip_verify")
    direction = "out" if scenario is CLONE_COLD else "in"
    link = {"on": "lane", "once": True, "direction": direction, "flip_bit_in": 100_000}
    assert _found(walk.with_link(link)[1], "neither old nor new")


def _found(problems: List[str], text: str) -> bool:
    return any(text in problem for problem in problems)
