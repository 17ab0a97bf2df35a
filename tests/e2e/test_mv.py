"""Moves of a VM's directory: between hosts, datastores and the front-end, and what must not be lost on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed.errors import program
from bench.testbed.node import UID, Node
from tests.e2e import look
from tests.e2e.cloud import HOSTS, SYSTEM, Cloud, Outcome, Vm, rate, traffic, wait_for_bytes
from tests.e2e.household import furnish, survey
from tm_fastcopy.core.listing import RECEIPT

pytestmark = pytest.mark.root

OTHER = 100  # another system datastore of the lab
SIZE = 24 * MIB


@pytest.fixture
def moving(cloud: Cloud) -> Iterator[Cloud]:
    """The cloud, whose front-end holds nothing of a VM before and after."""
    yield cloud
    for store in (SYSTEM, OTHER):
        shutil.rmtree(cloud.lab.fe.path(cloud.lab.datastores / str(store)))
        cloud.lab.fe.run(["mkdir", cloud.lab.datastores / str(store)], check=True)


def node_of(cloud: Cloud, host: str) -> Node:
    return cloud.lab.node(host)


def at(cloud: Cloud, vm: Vm, host: str, store: int = SYSTEM) -> Path:
    """The directory of a VM at another place, as root reaches it."""
    return node_of(cloud, host).path(cloud.lab.datastores / str(store) / str(vm.id))


def house(cloud: Cloud, host: str, image: str = "random") -> tuple[Vm, dict[str, tuple[object, ...]]]:
    """A VM with a disk of an image, and everything else that a VM has; and what must be the same elsewhere."""
    vm = cloud.vm(cloud.known(image), host)
    cloud.clone(cloud.known(image), vm).succeeded()
    cloud.wait_for_quiet(host)
    furnish(vm.path)
    return vm, survey(vm.path)


def arguments(cloud: Cloud, vm: Vm, source: str, target: str, stores: tuple[int, int], name: str = "") -> list[str]:
    places = [f"{host}:{cloud.lab.datastores}/{store}/{vm.id}{name}" for host, store in zip((source, target), stores)]
    return [*places, str(vm.id), str(stores[1])]


def move(cloud: Cloud, vm: Vm, source: str, target: str, stores: tuple[int, int] = (SYSTEM, SYSTEM)) -> Outcome:
    """All lines of oned's script."""
    for disk in range(3):
        cloud.run("mv", *arguments(cloud, vm, source, target, stores, f"/disk.{disk}")).succeeded()
    return cloud.run("mv", *arguments(cloud, vm, source, target, stores))


def assert_moved(cloud: Cloud, vm: Vm, wanted: dict[str, tuple[object, ...]], *, away: Path, here: Path) -> None:
    """Assert that all is in its new place, and nothing in the old one, nor beside either."""
    assert survey(here) == wanted
    assert not away.exists()
    for place in (away.parent, here.parent):
        assert [p.name for p in place.iterdir() if p.name.startswith((f".{vm.id}.", ".fastcopy.token"))] == []
    assert (here.parent / ".monitor").read_text() == "fastcopy\n"
    assert (here / RECEIPT).lstat().st_uid == UID


def belong(top: Path) -> None:
    """Make everything oneadmin's."""
    for path in [top, *top.rglob("*")]:
        os.lchown(path, UID, UID)


@pytest.mark.parametrize(("source", "target"), [("xfs", "ext4"), ("ext4", "btrfs"), ("btrfs", "xfs")])
def test_from_host_to_host(moving: Cloud, source: str, target: str) -> None:
    """Everything, and a replayed script is a success; then back over what is there."""
    one, other = HOSTS[source], HOSTS[target]
    vm, wanted = house(moving, one)
    moving.lab.oned.move_vm(vm.id, other)
    here = at(moving, vm, other)
    allocated = look.allocated(vm.path / "disk.0")
    outcome = move(moving, vm, one, other).succeeded()
    assert "carried" in outcome.log[-1]
    assert_moved(moving, vm, wanted, away=vm.path, here=here)
    assert look.allocated(here / "disk.0") <= allocated + MIB  # holes are holes
    assert "moved before" in move(moving, vm, one, other).succeeded().log[-1]
    assert survey(here) == wanted
    shutil.copytree(here, vm.path, symlinks=True)  # a stale copy, which the way back replaces
    (vm.path / "stale").write_text("stale")
    belong(vm.path)
    moving.lab.oned.move_vm(vm.id, one)
    move(moving, vm, other, one).succeeded()
    assert_moved(moving, vm, wanted, away=here, here=vm.path)


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_to_the_front_end_and_to_another_host_and_datastore(moving: Cloud, fs: str) -> None:
    """stop, and resume elsewhere."""
    vm, wanted = house(moving, HOSTS[fs])
    move(moving, vm, vm.host, "fe").succeeded()
    here = at(moving, vm, "fe")
    assert_moved(moving, vm, wanted, away=vm.path, here=here)
    moving.lab.oned.move_vm(vm.id, HOSTS["btrfs"], OTHER)
    move(moving, vm, "fe", HOSTS["btrfs"], (SYSTEM, OTHER)).succeeded()
    assert_moved(moving, vm, wanted, away=here, here=at(moving, vm, HOSTS["btrfs"], OTHER))


def keys_of(cloud: Cloud, host: str) -> tuple[Path, Path]:
    """The key by which a host logs into others, and where it can be put away."""
    key = node_of(cloud, host).path("/var/lib/one/.ssh/id_ed25519")
    return key, key.with_name("put-away")


def test_from_host_to_host_past_the_front_end_where_the_hosts_reach_each_other(moving: Cloud) -> None:
    """What is large goes directly; without a key it goes through the front-end, and the log says why."""
    one, other = HOSTS["btrfs"], HOSTS["ext4"]
    vm, _ = house(moving, one, "empty")
    random_data(vm.path / "disk.3", SIZE, seed=23)
    belong(vm.path)
    wanted = survey(vm.path)
    fe = node_of(moving, one)  # what leaves here goes to the other host once
    with traffic(fe) as seen:
        outcome = move(moving, vm, one, other).succeeded()
    assert "carried from host to host" in outcome.log[-1]
    assert SIZE <= seen.tx < 1.2 * SIZE
    assert_moved(moving, vm, wanted, away=vm.path, here=at(moving, vm, other))
    moving.end_daemons()
    key, away = keys_of(moving, other)
    key.rename(away)
    try:
        moving.lab.oned.move_vm(vm.id, one)
        outcome = move(moving, vm, other, one).succeeded()
    finally:
        away.rename(key)
    assert [line for line in outcome.log if "goes through the front-end" in line and one in line]
    assert "carried," in outcome.log[-1]
    assert_moved(moving, vm, wanted, away=at(moving, vm, other), here=vm.path)


def test_to_another_datastore_of_the_same_host(moving: Cloud) -> None:
    """One file system: renamed, over what an earlier attempt left.  Two of them: copied, and read."""
    vm, wanted = house(moving, "host1")
    node, inode = moving.node(vm), vm.path.stat().st_ino
    here = at(moving, vm, "host1", OTHER)
    here.mkdir()
    (here / "stale").write_text("stale")
    belong(here)
    moving.lab.oned.move_vm(vm.id, "host1", OTHER)
    assert "renamed" in move(moving, vm, "host1", "host1", (SYSTEM, OTHER)).succeeded().log[-1]
    assert_moved(moving, vm, wanted, away=vm.path, here=here)
    assert here.stat().st_ino == inode
    assert "moved before" in move(moving, vm, "host1", "host1", (SYSTEM, OTHER)).succeeded().log[-1]
    place = moving.lab.datastores / str(SYSTEM)
    node.run([program("mount"), "-t", "tmpfs", "-o", "mode=755", "store", place], user="root", check=True)
    try:
        os.chown(node.path(place), UID, UID)
        moving.lab.oned.move_vm(vm.id, "host1", SYSTEM)
        assert "copied here" in move(moving, vm, "host1", "host1", (OTHER, SYSTEM)).succeeded().log[-1]
        assert_moved(moving, vm, wanted, away=here, here=vm.path)
    finally:
        node.run([program("umount"), "-l", place], user="root", check=True)


def test_one_machine_under_another_name(moving: Cloud) -> None:
    """The same place: nothing is moved, nothing removed, in whichever direction.  Another datastore: renamed.

    Defect B5 of the stock drivers.
    """
    vm, wanted = house(moving, "host3")
    alias = moving.node(vm).address
    for source, target in (("host3", alias), (alias, "host3")):
        outcome = moving.run("mv", *arguments(moving, vm, source, target, (SYSTEM, SYSTEM))).succeeded()
        assert "the same directory" in outcome.log[-1]
        assert survey(vm.path) == wanted
    node, here = moving.node(vm), moving.lab.datastores / str(OTHER) / str(vm.id)
    node.path(here).mkdir()
    belong(node.path(here))
    node.run([program("mount"), "--bind", vm.directory, here], user="root", check=True)
    for target in ("host3", alias):  # the directory itself, mounted in another datastore
        outcome = moving.run("mv", *arguments(moving, vm, "host3", target, (SYSTEM, OTHER))).succeeded()
        assert "the same directory" in outcome.log[-1]
        assert survey(vm.path) == wanted
    node.run([program("umount"), "-l", here], user="root", check=True)
    outcome = moving.run("mv", *arguments(moving, vm, alias, "host3", (SYSTEM, OTHER))).succeeded()
    assert "renamed" in outcome.log[-1]
    assert_moved(moving, vm, wanted, away=vm.path, here=at(moving, vm, "host3", OTHER))


@pytest.fixture
def shared(moving: Cloud) -> Iterator[tuple[str, str]]:
    """Two hosts that have both system datastores in common."""
    top = moving.lab.dir / "shared"
    hosts = HOSTS["xfs"], HOSTS["ext4"]
    mounted = [(node_of(moving, host), moving.lab.datastores / str(store)) for host in hosts for store in (0, 100)]
    for node, place in mounted:
        (top / place.name).mkdir(parents=True, exist_ok=True)
        belong(top)
        node.run([program("mount"), "--bind", top / place.name, place], user="root", check=True)
    yield hosts
    for node, place in mounted:
        node.run([program("umount"), "-l", place], user="root", check=True)
    shutil.rmtree(top)


def test_what_two_hosts_share_stays_or_is_moved_in_place(moving: Cloud, shared: tuple[str, str]) -> None:
    one, other = shared
    vm, wanted = house(moving, one)
    outcome = move(moving, vm, one, other).succeeded()
    assert "the same directory" in outcome.log[-1]
    assert survey(at(moving, vm, other)) == wanted
    with traffic(node_of(moving, other)) as seen:
        outcome = move(moving, vm, one, other, (SYSTEM, OTHER)).succeeded()
    assert "renamed" in outcome.log[-1] or "copied here" in outcome.log[-1]
    assert seen.rx < MIB
    assert_moved(moving, vm, wanted, away=vm.path, here=at(moving, vm, other, OTHER))


def fails_and_succeeds(
    cloud: Cloud, vm: Vm, wanted: dict[str, tuple[object, ...]], target: str, *words: str
) -> None:
    """Assert that a move fails with the source as it was."""
    outcome = cloud.run("mv", *arguments(cloud, vm, vm.host, target, (SYSTEM, SYSTEM)))
    print(outcome.failed(*words).errors[0])
    assert survey(vm.path) == wanted


def test_a_destination_that_is_full_or_read_only(moving: Cloud) -> None:
    """Defect B4 of the stock drivers."""
    vm, wanted = house(moving, "host1")
    target = node_of(moving, "host3")
    here = at(moving, vm, "host3")
    target.remount_datastores("ro")
    try:
        fails_and_succeeds(moving, vm, wanted, "host3", "Read-only file system", "host3")
    finally:
        target.remount_datastores("rw")
    filler = target.path(moving.lab.datastores / "filler")
    free = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (free.f_bavail - 1024) * free.f_frsize)
    fails_and_succeeds(moving, vm, wanted, "host3", "make room")
    assert not here.exists()
    assert look.leftovers(here.parent) == []
    filler.unlink()
    move(moving, vm, "host1", "host3").succeeded()
    assert_moved(moving, vm, wanted, away=vm.path, here=here)


def test_a_host_that_does_not_answer_is_named_and_an_unknown_one_is_left_alone(moving: Cloud) -> None:
    vm, wanted = house(moving, "host1")
    moving.end_daemons()
    node_of(moving, "host1").cut()
    try:
        fails_and_succeeds(moving, vm, wanted, "host2", "host1")
        moving.lab.oned.set_vm(vm.id, LCM_STATE=60)  # PROLOG_MIGRATE_UNKNOWN
        assert "nothing is moved" in move(moving, vm, "host1", "host2").succeeded().log[-1]
    finally:
        node_of(moving, "host1").restore()
    assert survey(vm.path) == wanted
    assert not at(moving, vm, "host2").exists()


def test_a_cut_link_and_a_repetition_that_sends_the_rest(moving: Cloud) -> None:
    vm, wanted = house(moving, "host1", "empty")
    random_data(vm.path / "disk.3", SIZE, seed=21)
    belong(vm.path)
    wanted = survey(vm.path)
    target = node_of(moving, "host3")
    with rate(moving.lab, "host3", "50mbit"):
        running = moving.start("mv", arguments(moving, vm, "host1", "host3", (SYSTEM, SYSTEM)), FASTCOPY_DAEMON="no")
        wait_for_bytes(target, SIZE // 2)
        target.freeze()
        try:
            running.outcome().failed("host3")
        finally:
            target.thaw()
    assert survey(vm.path) == wanted
    assert not at(moving, vm, "host3").exists() or not list(at(moving, vm, "host3").iterdir())
    moving.wait_for_quiet("host3")
    with traffic(target) as seen:
        move(moving, vm, "host1", "host3").succeeded()
    assert seen.rx < 0.9 * SIZE
    assert_moved(moving, vm, wanted, away=vm.path, here=at(moving, vm, "host3"))


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_what_the_targets_cache_has_does_not_travel(moving: Cloud, fs: str) -> None:
    source, target = ("host2", HOSTS[fs])
    image = moving.known("random")  # 24 MiB
    neighbour = moving.vm(image, target)
    moving.clone(image, neighbour).succeeded()
    moving.wait_for_quiet(target)
    vm = moving.vm(image, source)
    moving.clone(image, vm).succeeded()
    with (vm.path / "disk.0").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(os.urandom(MIB))
    wanted = survey(vm.path)
    with traffic(node_of(moving, target)) as seen:
        outcome = move(moving, vm, source, target).succeeded()
    assert seen.rx < 3 * MIB, outcome.log
    assert_moved(moving, vm, wanted, away=vm.path, here=at(moving, vm, target))


def test_what_is_not_moved(moving: Cloud) -> None:
    """A directory that was never there; one with a planted link; a stranger's; a path outside of the datastores."""
    vm, wanted = house(moving, "host1")
    (vm.path / "planted").symlink_to("/etc/passwd")
    fails_and_succeeds(moving, vm, survey(vm.path), "host2", "planted", "symbolic link")
    (vm.path / "planted").unlink()
    os.mkfifo(vm.path / "fifo")
    outcome = moving.run("mv", *arguments(moving, vm, "host1", "host2", (SYSTEM, SYSTEM)))
    outcome.failed("fifo", "neither a file nor a directory")
    (vm.path / "fifo").unlink()
    never = moving.vm(None, "host1")
    move(moving, never, "host1", "host2").failed("there is no directory", f"{never.id}")
    other = arguments(moving, vm, "host1", "host2", (SYSTEM, SYSTEM))
    moving.run("mv", *other[:2], str(never.id), "0").failed("belongs to VM")
    moving.run("mv", other[0], f"host2:/etc/{vm.id}", str(vm.id), "0").failed("datastore")
    assert survey(vm.path) == wanted
    assert not at(moving, vm, "host2").exists()


def test_a_deletion_ends_a_move(moving: Cloud) -> None:
    vm, _ = house(moving, "host1", "empty")
    random_data(vm.path / "disk.3", SIZE, seed=22)
    belong(vm.path)
    with rate(moving.lab, "host3", "40mbit"):
        running = moving.start("mv", arguments(moving, vm, "host1", "host3", (SYSTEM, SYSTEM)))
        wait_for_bytes(node_of(moving, "host3"), SIZE // 4)
        moving.run("delete", f"host3:{vm.directory}", str(vm.id), str(SYSTEM)).succeeded()
        running.outcome().failed("is being deleted")
    here = at(moving, vm, "host3")
    assert not here.exists() and look.leftovers(here.parent) == []
    assert (vm.path / "disk.3").exists()
