"""Full file systems, real ones: the error names both sizes, nothing is left half, and with room the action succeeds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable

import pytest

from .arrows import read_log
from .invariants import State, left_over
from .scenarios import CLONE_COLD, MVDS, MVDS_RESUMED, OLD, OTHER_VM, VM, Run, Scenario
from .site import Site, Volume, content
from .walk import Harness, Walk

NEEDS_MOUNTS = True
pytestmark = pytest.mark.root

_SMALL = 16  # MiB, of which ext4's journal takes a part
_LEFT = 200 * 1024  # bytes: less than any of the images needs
_LOOKS, _QUIET = 100, 5  # of which a full file system is sure to be full
_MIB = 1024 * 1024  # bytes: XFS wants some to itself
_NEW = "EFGHIJKLMNOPRSTUVWXYZ"  # 21 chunks that no image has: 1.3 MiB


def _used_much(site: Site, run: Run) -> None:
    """The host has a disk of which nothing is as it was."""
    site.put_disk(VM, _NEW)


_MUCH = Scenario("mvds of much", "mvds", OLD, content(_NEW), _used_much)


def _fill(volume: Volume, left: int) -> Path:
    """Leave only so many bytes free.

    XFS gives back the blocks of removed files, and what it has reserved for files that grow, some time later: one look
    would leave more free than it has seen. So it is looked at until nothing comes back any more.
    """
    filler = volume.mount / "filler"
    with filler.open("wb") as file:
        quiet = 0  # looks in a row at which nothing had come back
        for _ in range(_LOOKS):
            os.sync()
            room = os.statvfs(volume.mount)
            more = room.f_bavail * room.f_frsize - left
            if more >= room.f_frsize:
                quiet = 0
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)
            elif quiet == _QUIET:
                return filler
            else:
                quiet += 1
                time.sleep(0.02)
    raise AssertionError(f"{volume.mount} does not come to rest with {left} bytes free")


def test_a_full_host(harness: Harness, mounts: Callable[..., Volume], tmp_path: Path) -> None:
    volume = mounts("ext4", _SMALL)
    site = Site(volume.mount, tmp_path)
    walk = Walk(harness, site, CLONE_COLD)
    site.restore(None)
    state = State(site, CLONE_COLD)
    filler = _fill(volume, _LEFT)
    outcome = harness.run(walk.spec)
    assert outcome.code == 1 and "needs 1 MiB and the file system has 0 MiB free: make room" in outcome.errors
    assert state.after_crash() == []
    filler.unlink()
    assert harness.run(walk.spec).code == 0
    assert state.after_success() + left_over(site) == []


def test_a_host_with_room_for_the_disk_and_not_for_the_cache(
    harness: Harness, mounts: Callable[..., Volume], tmp_path: Path
) -> None:
    volume = mounts("ext4", _SMALL)
    site = Site(volume.mount, tmp_path)
    walk = Walk(harness, site, CLONE_COLD)
    site.restore(None)
    state = State(site, CLONE_COLD)
    _fill(volume, len(CLONE_COLD.result) + _LEFT)
    outcome = harness.run(walk.spec)
    assert outcome.code == 0 and "past the cache" in outcome.errors, outcome.errors
    assert state.after_success() + left_over(site) == []
    assert not list(site.cache.glob("*.img"))


def test_a_datastore_that_shares_blocks_has_room_for_none_of_those_that_changed(
    harness: Harness, mounts: Callable[..., Volume], tmp_path: Path
) -> None:
    """It is found before anything is written, or asked of a lane."""
    volume = mounts("xfs")
    site = Site(tmp_path, volume.mount)
    walk = Walk(harness, site, _MUCH)
    site.restore(_MUCH.image)
    state = State(site, _MUCH)
    filler = _fill(volume, _MIB)
    harness.log.unlink()
    outcome = harness.run({**walk.spec, "log": str(harness.log)})
    assert outcome.code == 1 and "up to 2 MiB needed): make room there and repeat" in outcome.errors, outcome.errors
    changes = {line.change for line in read_log(harness.log)}
    assert "clone image staging" in changes and "write image staging" not in changes, changes
    assert state.after_crash() == []
    filler.unlink()
    assert harness.run(walk.spec).code == 0
    assert state.after_success() + left_over(site) == []


def test_a_datastore_without_room_for_the_rest(
    harness: Harness, mounts: Callable[..., Volume], tmp_path: Path
) -> None:
    """What an earlier attempt left counts; what is missing is looked at before it is fetched."""
    volume = mounts("ext4", _SMALL)
    site = Site(tmp_path, volume.mount)
    walk = Walk(harness, site, MVDS_RESUMED)
    site.restore(MVDS_RESUMED.image)
    state = State(site, MVDS_RESUMED)
    filler = _fill(volume, 32 * 1024)  # less than one chunk
    harness.log.unlink()
    outcome = harness.run({**walk.spec, "log": str(harness.log)})
    assert outcome.code == 1 and "make room there and repeat" in outcome.errors, outcome.errors
    assert "write image staging" not in {line.change for line in read_log(harness.log)}
    assert state.after_crash() == []
    filler.unlink()
    assert harness.run(walk.spec).code == 0
    assert state.after_success() + left_over(site) == []


def test_a_full_datastore(harness: Harness, mounts: Callable[..., Volume], tmp_path: Path) -> None:
    volume = mounts("ext4", _SMALL)
    site = Site(tmp_path, volume.mount)
    walk = Walk(harness, site, MVDS)
    site.restore(MVDS.image)
    site.put_disk(OTHER_VM, "Z")
    state = State(site, MVDS)
    filler = _fill(volume, _LEFT)
    outcome = harness.run(walk.spec)
    assert outcome.code == 1 and "make room there and repeat" in outcome.errors, outcome.errors
    assert state.after_crash() == []
    filler.unlink()
    assert harness.run(walk.spec).code == 0
    assert state.after_success() + left_over(site) == []
