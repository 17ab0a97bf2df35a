"""premigrate, postmigrate and failmigrate: what is removed around a live migration, and what is not."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cloud import SYSTEM, Cloud, Outcome, Vm
from tests.e2e.household import furnish, survey
from tests.e2e.test_mv import OTHER, at, belong, house, shared  # noqa: F401 (a fixture)

pytestmark = pytest.mark.root

STRANGER = """#!/bin/sh
# A driver of another disk: notes how it was called.
here="${0%/*}"
echo "INFO: stranger: called"
{ echo "${0##*/} $*"; cat; echo; } >> "$here/calls"
test ! -e "$here/fails" || { echo "the volume is busy" >&2; exit 1; }
"""


@pytest.fixture
def moving(cloud: Cloud) -> Iterator[Cloud]:
    """The cloud, which has one driver more."""
    stranger = cloud.lab.one_location / "var/remotes/tm/stranger"
    stranger.mkdir()
    for name in ("premigrate", "postmigrate", "failmigrate"):
        (stranger / name).write_text(STRANGER)
        (stranger / name).chmod(0o755)
    belong(stranger)
    yield cloud
    shutil.rmtree(stranger)


def given(*drivers: str) -> bytes:
    """What oned sends on standard input for a VM whose disks have these drivers."""
    disks = "".join(f"<DISK><TM_MAD>{driver}</TM_MAD></DISK>" for driver in drivers)
    return base64.b64encode(f"<VM><ID>1</ID><TEMPLATE>{disks}</TEMPLATE></VM>".encode())


GIVEN = given("fastcopy", "stranger", "shared", "stranger")


def call(
    cloud: Cloud, action: str, vm: Vm, one: str, other: str, *more: str, store: int = SYSTEM,
    stdin: bytes = GIVEN, **environment: str,
) -> Outcome:  # fmt: skip
    """Call an action as the VMM driver does."""
    entry = cloud.lab.one_location / "var/remotes/tm/fastcopy" / action
    argv = [entry, one, other, f"{cloud.lab.datastores}/{store}/{vm.id}", str(vm.id), str(store), *more]
    done = cloud.lab.fe.run([str(word) for word in argv], env={**cloud.environment, **environment}, input=stdin)
    return Outcome(done.returncode, done.stderr.decode(), done.stdout.decode(), frozenset([str(vm.id)]))


def calls(cloud: Cloud) -> list[str]:
    """How the other driver was called: lines of its arguments and of its standard input."""
    path = cloud.lab.one_location / "var/remotes/tm/stranger/calls"
    return path.read_text().split("\n") if path.exists() else []


def left(path: Path) -> None:
    """Leave a directory as a failed attempt does."""
    path.mkdir()
    (path / "disk.0").write_bytes(b"stale")
    belong(path)


@pytest.mark.parametrize("daemon", ["yes", "no"])
def test_there_and_back(moving: Cloud, daemon: str) -> None:
    """The place is freed, and what the VM left is removed when its disks are there."""
    vm, wanted = house(moving, "host1", "empty")
    moving.lab.oned.move_vm(vm.id, "host3")
    here = at(moving, vm, "host3")
    left(here)
    monitor = here.parent / ".monitor"
    monitor.unlink(missing_ok=True)
    outcome = call(moving, "premigrate", vm, "host1", "host3", FASTCOPY_DAEMON=daemon).succeeded()
    assert "the place is free" in outcome.log[-1]
    assert not here.exists() and monitor.read_text() == "fastcopy\n"
    assert survey(vm.path) == wanted
    words = f"host1 host3 {moving.lab.datastores}/0/{vm.id} {vm.id} 0 fastcopy"
    assert calls(moving) == [f"premigrate {words}", GIVEN.decode(), ""]

    call(moving, "postmigrate", vm, "host1", "host3", FASTCOPY_DAEMON=daemon).failed("is not there", "not removed")
    left(here)
    call(moving, "postmigrate", vm, "host1", "host3", FASTCOPY_DAEMON=daemon).failed("disk.1, disk.2", "not removed")
    assert survey(vm.path) == wanted
    furnish(here)
    call(moving, "postmigrate", vm, "host1", "host3", FASTCOPY_DAEMON=daemon).succeeded()
    assert not vm.path.exists() and (here / "disk.1.snap/3").exists()
    assert [line.split()[0] for line in calls(moving) if line.startswith("p")] == ["premigrate", "postmigrate"]


def test_nothing_is_removed_where_both_hosts_have_one_directory(moving: Cloud, shared: tuple[str, str]) -> None:  # noqa: F811
    """Defect B6 of the stock drivers."""
    one, other = shared
    vm, wanted = house(moving, one, "empty")
    moving.lab.oned.move_vm(vm.id, other)
    assert "which stays" in call(moving, "premigrate", vm, one, other).succeeded().log[-1]
    assert "which stays" in call(moving, "postmigrate", vm, one, other).succeeded().log[-1]
    assert survey(vm.path) == wanted


def test_nothing_is_removed_on_the_strength_of_names(moving: Cloud) -> None:
    """One machine with two names; a source that is not there; a call of another driver; a migration that failed.

    Defect B6 of the stock drivers.
    """
    vm, wanted = house(moving, "host1", "empty")
    alias = moving.node(vm).address
    for action in ("premigrate", "postmigrate"):
        assert "which stays" in call(moving, action, vm, "host1", alias).succeeded().log[-1]
    call(moving, "premigrate", vm, "host2", "host1").failed("nothing is removed", "host2")
    at(moving, vm, "host2").mkdir()
    call(moving, "premigrate", vm, "host2", "host1").failed("has no disk", "nothing is removed")
    at(moving, vm, "host2").rmdir()
    for action in ("premigrate", "postmigrate", "failmigrate"):
        call(moving, action, vm, "host2", "host1", "ceph", stdin=b"").succeeded()
    call(moving, "failmigrate", vm, "host1", "host2").succeeded()
    assert calls(moving)[-3].startswith("failmigrate host1 host2 ")
    assert survey(vm.path) == wanted


def test_to_another_datastore_of_the_same_host(moving: Cloud) -> None:
    vm, wanted = house(moving, "host1", "empty")
    moving.lab.oned.move_vm(vm.id, "host1", OTHER)
    here = at(moving, vm, "host1", OTHER)
    assert "stays on host1" in call(moving, "premigrate", vm, "host1", "host1", store=OTHER).succeeded().log[-1]
    call(moving, "postmigrate", vm, "host1", "host1", store=OTHER).failed("is not there")
    assert survey(vm.path) == wanted
    here.mkdir()
    belong(here)
    furnish(here)
    call(moving, "postmigrate", vm, "host1", "host1", store=OTHER).succeeded()
    assert not vm.path.exists() and (here / "disk.0").exists()


def test_what_oned_sends_is_looked_at_and_other_drivers_may_fail(moving: Cloud) -> None:
    vm, _ = house(moving, "host1", "empty")
    moving.lab.oned.move_vm(vm.id, "host2")
    call(moving, "premigrate", vm, "host1", "host2", stdin=b"").failed("standard input")
    call(moving, "premigrate", vm, "host1", "host2", stdin=given("../../evil")).failed("not the name of a driver")
    call(moving, "premigrate", vm, "host1", "host2", stdin=given("nobody")).failed("nobody", "has no premigrate")
    (moving.lab.one_location / "var/remotes/tm/stranger/fails").touch()
    call(moving, "premigrate", vm, "host1", "host2").failed("stranger failed", "the volume is busy")
