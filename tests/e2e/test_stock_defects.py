"""Defects of the stock drivers that docs/STOCK_DEFECTS.md lists, and that no other test builds.

The situation is built once, and this driver has the right outcome in it.  Where FASTCOPY_OPENNEBULA names a checkout of
OpenNebula, the stock script meets the same situation, and what it does there is what the table says: should a release
of OpenNebula have mended it, the test fails, and the table gets another line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed.errors import program
from bench.testbed.node import UID, Node
from tests.e2e import look
from tests.e2e.cloud import (
    DEFAULT,
    FILES,
    SYSTEM,
    Cloud,
    Image,
    Outcome,
    Running,
    Vm,
    clone_arguments,
    rate,
    settle,
    traffic,
    wait_for_bytes,
)
from tests.e2e.conftest import CHECKOUT
from tests.e2e.test_bad_hosts import filled
from tests.e2e.test_mv import belong
from tests.e2e.test_qcow2 import image_of, qemu_io
from tests.e2e.test_snapshots import active
from tests.e2e.test_trees import contents, image_contents, with_snapshots
from tests.support import qemu_img

pytestmark = pytest.mark.root

SIZE = 24 * MIB  # of the gallery's image `random`
stock_at_hand = pytest.mark.skipif(not CHECKOUT, reason="needs FASTCOPY_OPENNEBULA: a source checkout of OpenNebula")


# -- situations ------------------------------------------------------------------------------------------------------


def stock(cloud: Cloud, entry: str, *arguments: str, timeout: float = 60.0) -> Outcome:
    """Run a stock script, `<driver>/<action>`, as one_tm does."""
    path = cloud.lab.one_location / "var/remotes/tm" / entry
    return Running(cloud.lab.fe.popen([path, *arguments])).outcome(timeout)


def stock_clone(cloud: Cloud, image: Image, vm: Vm) -> Outcome:
    """The clone of the stock `local` driver."""
    return stock(cloud, "local/clone", *clone_arguments(image, vm))


@contextmanager
def attributes(cloud: Cloud, **template: str) -> Iterator[None]:
    """Have the image datastore say more."""
    cloud.lab.oned.add_datastore(DEFAULT, "default", template=template)
    try:
        yield
    finally:
        cloud.lab.oned.add_datastore(DEFAULT, "default")


def caching(cloud: Cloud, percent: int = 50) -> dict[str, str]:
    """Attributes that switch the cache on and limit it; those of the stock driver, which this one reads too."""
    place = f"{cloud.lab.datastores}/.stock-cache"
    return {"CACHE_ENABLE": "YES", "CACHE_PATH": place, "CACHE_MAX_SIZE": str(percent)}


@contextmanager
def without_key(node: Node) -> Iterator[None]:
    """Have a host log in nowhere: whatever it would fetch by itself fails."""
    key = node.path("/var/lib/one/.ssh/id_ed25519")
    away = key.with_name("put-away")
    key.rename(away)
    try:
        yield
    finally:
        away.rename(key)


def looped(node: Node) -> int:
    """Bytes that a host has sent to itself."""
    lines = node.run(["cat", "/proc/net/dev"], check=True).stdout.decode().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def is_clone(vm: Vm, image: Image) -> bool:
    return look.same_content(vm.path / "disk.0", image.file)


def stock_mvds(cloud: Cloud, driver: str, vm: Vm, image: Image) -> Outcome:
    return stock(cloud, f"{driver}/mvds", vm.argument(), image.path, str(vm.id), str(DEFAULT))


def stock_replica(cloud: Cloud, image: Image, vm: Vm) -> Outcome:
    """The clone of the stock `ssh` driver by way of a replica, host2."""
    return stock(cloud, "ssh/clone.replica", *clone_arguments(image, vm), "host2")


# -- A: the cache of `local` -----------------------------------------------------------------------------------------


def test_a1_a_hit_in_a_nearly_full_cache(cloud: Cloud) -> None:
    image = cloud.known("random")
    with attributes(cloud, **caching(cloud, percent=4)):  # some 38 MiB: not twice the image
        cloud.clone(image, cloud.vm(image)).succeeded()
        cloud.wait_for_quiet("host1")
        vm = cloud.vm(image)
        assert "cache, reflink" in cloud.clone(image, vm).succeeded().stderr
    assert is_clone(vm, image)


@stock_at_hand
def test_a1_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.known("random")
    with attributes(cloud, **caching(cloud, percent=4)):
        assert stock_clone(cloud, image, cloud.vm(image)).code == 0
        again = stock_clone(cloud, image, cloud.vm(image))
    assert again.code != 0 and "wrong number of arguments" in again.stderr


def test_a2_a_host_that_can_fetch_nothing_is_deployed_to_at_once(cloud: Cloud) -> None:
    image = cloud.known("like")
    vm = cloud.vm(image)
    with attributes(cloud, **caching(cloud)), without_key(cloud.node(vm)):
        cloud.clone(image, vm).succeeded()
    assert is_clone(vm, image)


@stock_at_hand
def test_a2_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.known("like")
    vm = cloud.vm(image)
    with attributes(cloud, **caching(cloud)), without_key(cloud.node(vm)):
        failed = stock_clone(cloud, image, vm)
    assert failed.code != 0 and "No such file or directory" in failed.stderr
    assert not (vm.path / "disk.0").exists()


def test_a3_an_image_whose_refresh_failed_is_cached_the_next_time(cloud: Cloud) -> None:
    """The new version's transfer is cut off; the repetition completes it, and it is in the cache."""
    image = cloud.image(lambda path: random_data(path, SIZE, seed=51))
    settle()
    cloud.clone(image, cloud.vm(image)).succeeded()
    cloud.wait_for_quiet("host1")
    random_data(image.file, SIZE, seed=52)
    settle()
    vm = cloud.vm(image)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start("clone", clone_arguments(image, vm), FASTCOPY_DAEMON="no")
        wait_for_bytes(cloud.node(vm), SIZE // 3)
        running.kill()
    assert not (vm.path / "disk.0").exists()
    cloud.wait_for_quiet("host1")
    cloud.clone(image, vm).succeeded()
    cloud.wait_for_quiet("host1")
    again = cloud.vm(image)
    assert "cache, reflink" in cloud.clone(image, again).succeeded().stderr
    assert is_clone(vm, image) and is_clone(again, image)


@stock_at_hand
def test_a3_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, 3 * MIB))
    vm = cloud.vm(image)
    with attributes(cloud, **caching(cloud)):
        assert stock_clone(cloud, image, vm).code == 0
        cloud.lab.oned.add_image(image.id, DEFAULT, image.path, 3, extra={"MODTIME": 1_800_000_000})
        with without_key(cloud.node(vm)):
            assert stock_clone(cloud, image, vm).code == 0  # past the cache
        failed = stock_clone(cloud, image, vm)
    assert failed.code != 0 and "undefined method" in failed.stderr


def test_a4_two_hosts_that_are_each_others_upstream(cloud: Cloud) -> None:
    """Hosts ask nobody: the front-end alone brings images, and no host holds a lock while it waits for another."""
    image = cloud.known("random")
    vms = [cloud.vm(image, host) for host in ("host1", "host3", "host1", "host3")]
    with attributes(cloud, CACHE_UPSTREAMS="host1,host3", **caching(cloud)):
        for running in [cloud.start_clone(image, vm) for vm in vms]:
            running.outcome().succeeded()
    assert all(is_clone(vm, image) for vm in vms)


def test_a7_a_cache_counts_what_an_image_holds(cloud: Cloud) -> None:
    """An image of 256 MiB, nearly all of them holes, in a cache that may have 64 MiB."""
    image = cloud.known("islands")
    cloud.environment["FASTCOPY_CACHE_MAX_SIZE"] = "64M"
    cloud.clone(image, cloud.vm(image)).succeeded()
    cloud.wait_for_quiet("host1")
    vm = cloud.vm(image)
    assert "cache, reflink" in cloud.clone(image, vm).succeeded().stderr
    assert is_clone(vm, image)


def test_a8_an_image_that_was_deleted_makes_way(cloud: Cloud) -> None:
    """What nobody can ask for any more is what was not used for the longest time, and the cache has its limit."""
    old, image = cloud.image(lambda path: random_data(path, SIZE, seed=53)), cloud.known("random")
    settle()
    cloud.clone(old, cloud.vm(old)).succeeded()
    cloud.wait_for_quiet("host1")
    gone = set(cloud.cache("host1").glob("*.img"))
    old.file.unlink()
    cloud.lab.oned.remove_image(old.id)
    cloud.environment["FASTCOPY_CACHE_MAX_SIZE"] = "40M"
    assert "1 image removed to keep its limit" in cloud.clone(image, cloud.vm(image)).succeeded().stderr
    cloud.wait_for_quiet("host1")
    left = set(cloud.cache("host1").glob("*.img"))
    assert len(gone) == len(left) == 1 and not gone & left


@stock_at_hand
def test_a9_in_the_stock_driver(cloud: Cloud) -> None:
    node = cloud.lab.hosts["host1"]
    node.run(["mkdir", f"{cloud.system}/7"], check=True)
    done = node.run(["/var/tmp/one/tm/local/monitor_ds", cloud.system])
    assert done.returncode != 0 and b"undefined local variable or method `continue'" in done.stderr


@stock_at_hand
def test_a10_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.known("random")
    with attributes(cloud, DESCRIPTION="the team's images", **caching(cloud)):
        failed = stock_clone(cloud, image, cloud.vm(image))
    assert failed.code != 0 and "unexpected EOF while looking for matching" in failed.stderr


@stock_at_hand
def test_a11_in_the_stock_driver(cloud: Cloud) -> None:
    kernel = cloud.image(lambda path: random_data(path, MIB), store=FILES)
    vm = cloud.vm(None)
    assert stock(cloud, "local/clone", *clone_arguments(kernel, vm, "kernel")).code != 0
    assert not (vm.path / "kernel").exists()


@stock_at_hand
def test_a12_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image, SIZE=64, ORIGINAL_SIZE=24)  # sparse, as nothing else is said
    assert stock_clone(cloud, image, vm).code == 0
    assert look.allocated(vm.path / "disk.0") >= 64 * MIB


def test_a13_a_hit_is_not_sent_from_the_host_to_itself(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image, "host3")  # without reflink all of it is copied
    cloud.clone(image, cloud.vm(image, "host3")).succeeded()
    cloud.wait_for_quiet("host3")
    before = looped(cloud.node(vm))
    with traffic(cloud.node(vm)) as seen:
        cloud.clone(image, vm).succeeded()
    assert looped(cloud.node(vm)) - before < MIB and seen.rx + seen.tx < MIB
    assert is_clone(vm, image)


@stock_at_hand
def test_a13_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    with attributes(cloud, **caching(cloud)):
        assert stock_clone(cloud, image, cloud.vm(image)).code == 0
        before = looped(cloud.node(vm))
        assert stock_clone(cloud, image, vm).code == 0
    assert looped(cloud.node(vm)) - before > SIZE


# -- B: loss of data -------------------------------------------------------------------------------------------------


@contextmanager
def small_store(cloud: Cloud) -> Iterator[Callable[[], None]]:
    """Have an image datastore of 24 MiB; what it gives makes it larger."""
    fe, store = cloud.lab.fe, cloud.store
    mount, umount = program("mount"), program("umount")
    options = f"mode=755,size=24m,uid={UID},gid={UID}"
    fe.run([mount, "-t", "tmpfs", "-o", options, "store", store], user="root", check=True)

    def enlarge() -> None:
        fe.run([mount, "-o", "remount,size=200m", store], user="root", check=True)

    try:
        yield enlarge
    finally:
        fe.run([umount, "-l", store], user="root", check=True)


def grown(cloud: Cloud) -> tuple[Image, Vm]:
    """A disk with snapshots that holds 27 MiB, and its image, which holds 11."""
    image = image_of(cloud, "plain")
    life = with_snapshots(cloud, image, "host1")
    qemu_io(active(life.vm), "write -q -P 9 0 12M")
    return image, life.vm


def test_b1_a_full_datastore_fails_the_write_back_of_a_tree(cloud: Cloud) -> None:
    """A failure keeps oned from what comes next: deleting the disk."""
    with small_store(cloud) as enlarge:
        image, vm = grown(cloud)
        before = look.sha256(image.file), contents(vm.path, "disk.0")
        cloud.mvds(vm, image).failed("is full", "make room", image.path)
        assert (look.sha256(image.file), contents(vm.path, "disk.0")) == before
        assert not image.file.is_symlink() and os.listdir(image.file.parent) == [image.file.name]
        enlarge()
        cloud.mvds(vm, image).succeeded()
        assert image_contents(image) == contents(vm.path, "disk.0") == before[1]
        there = cloud.vm(image, "host3")  # nor does a full host keep a part of it
        with filled(there.path.parents[1], 15 * MIB):
            cloud.clone(image, there).failed("make room", there.directory)
            cloud.wait_for_quiet("host3")
            assert not there.path.exists() or list(there.path.iterdir()) == []
        cloud.clone(image, there).succeeded()
        assert contents(there.path, "disk.0") == before[1]


@stock_at_hand
def test_b1_in_the_stock_driver(cloud: Cloud) -> None:
    with small_store(cloud):
        image, vm = grown(cloud)
        assert stock_mvds(cloud, "local", vm, image).code == 0
        assert not (image.file.parent / f"{image.file.name}.snap/2").exists()  # the disk: 13 MiB of the guest's


def test_b2_a_full_host_is_no_reason_to_lose_the_chain(cloud: Cloud) -> None:
    """Nothing is written to the host, and nothing is removed there."""
    image, vm = grown(cloud)
    before = contents(vm.path, "disk.0")
    with filled(vm.path.parents[1], MIB):
        cloud.mvds(vm, image).succeeded()
    assert image_contents(image) == contents(vm.path, "disk.0") == before


@stock_at_hand
def test_b2_in_the_stock_driver(cloud: Cloud) -> None:
    image = image_of(cloud, "plain")
    vm = cloud.vm(image)
    tree = vm.path / "disk.0.snap"
    cloud.node(vm).run(["mkdir", "-p", f"{vm.directory}/disk.0.snap"], check=True)
    (tree / "base").write_bytes(image.file.read_bytes())
    (tree / "disk.0.snap").symlink_to(".")  # as its clone lays it out for recovery snapshots
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "disk.0.snap/base", tree / "base.1", "12M")
    (vm.path / "disk.0").symlink_to("disk.0.snap/base.1")
    belong(vm.path)
    assert look.allocated(image.file) > 10 * MIB
    with filled(vm.path.parents[1], MIB):
        assert stock_mvds(cloud, "ssh", vm, image).code == 0
    assert not tree.exists()
    assert look.allocated(vm.path / "disk.0") < 4 * MIB  # what there was room for
    assert look.allocated(image.file) < 4 * MIB


@stock_at_hand
def test_b4_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    target = cloud.lab.hosts["host3"]
    monitor = (vm.path.parent / ".monitor").read_text()
    target.path(cloud.lab.datastores / ".monitor").write_text(monitor)  # there from the first move to this host
    target.remount_datastores("ro")
    try:
        done = stock(cloud, "ssh/mv", vm.argument("").rstrip("/"), f"host3:{vm.directory}", str(vm.id), str(SYSTEM))
    finally:
        target.remount_datastores("rw")
    assert done.code == 0 and "they are the same path" in done.stderr
    assert is_clone(vm, image) and not target.path(vm.directory).exists()


def test_b8_a_larger_disk_whose_copy_fails_is_a_failure(cloud: Cloud) -> None:
    """A good resize does not make up for it."""
    image = cloud.known("random")
    vm = cloud.vm(image, SIZE=64, ORIGINAL_SIZE=24)
    with filled(vm.path.parents[1], 10 * MIB):
        cloud.clone(image, vm).failed("make room")
    assert not (vm.path / "disk.0").exists()


@stock_at_hand
def test_b8_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, SIZE, seed=58))
    vm = cloud.vm(image, "host3", SIZE=64, ORIGINAL_SIZE=24)  # XFS would share the blocks
    node = cloud.node(vm)
    node.run(["mkdir", "-p", cloud.store], check=True)
    node.path(image.path).write_bytes(image.file.read_bytes())  # as a mount would show it
    node.path(image.path).chmod(0o644)
    with filled(vm.path.parents[1], 10 * MIB):
        assert stock(cloud, "shared/clone", *clone_arguments(image, vm)).code == 0
    disk = vm.path / "disk.0"
    assert disk.stat().st_size == 64 * MIB
    with disk.open("rb") as file:
        assert file.read(SIZE) != image.file.read_bytes()


# -- C: the replica of `ssh` -----------------------------------------------------------------------------------------


def image_with_snapshots(cloud: Cloud) -> Image:
    """An image that was brought back with snapshots 0 and 1; its own file rests on 0."""
    image = image_of(cloud, "plain")
    cloud.mvds(with_snapshots(cloud, image, "host1").vm, image).succeeded()
    return image


def change_below(image: Image) -> None:
    """Change snapshot 1; what is on top stays as it is."""
    before = look.sha256(image.file)
    qemu_io(image.file.parent / f"{image.file.name}.snap/1", "write -q -P 77 3M 1M")
    assert look.sha256(image.file) == before
    settle()


def test_c1_a_snapshot_that_changed_below_the_same_file(cloud: Cloud) -> None:
    image = image_with_snapshots(cloud)
    settle()
    first, vm = cloud.vm(image), cloud.vm(image)
    cloud.clone(image, first).succeeded()
    cloud.wait_for_quiet("host1")
    change_below(image)
    cloud.clone(image, vm).succeeded()
    assert contents(vm.path, "disk.0") == image_contents(image) != contents(first.path, "disk.0")


@stock_at_hand
def test_c1_in_the_stock_driver(cloud: Cloud) -> None:
    image = image_with_snapshots(cloud)
    first, vm = cloud.vm(image), cloud.vm(image)
    assert stock_replica(cloud, image, first).code == 0
    change_below(image)
    Path(f"{image.file}.md5sum").unlink()  # as mvds does
    assert stock_replica(cloud, image, vm).code == 0
    name = "disk.0.snap/1"
    assert look.same_content(vm.path / name, first.path / name)
    assert not look.same_content(vm.path / name, image.file.parent / f"{image.file.name}.snap/1")


@stock_at_hand
def test_c2_in_the_stock_driver(cloud: Cloud) -> None:
    place = f"{cloud.store}/replica"
    cloud.lab.fe.run(["mkdir", place], check=True)
    for name in "abc":
        random_data(cloud.lab.fe.path(f"{place}/{name}"), 4 * MIB)
    belong(cloud.lab.fe.path(place))
    script = '. "$0"; REPLICA_MAX_SIZE_MB=1; clean_cache "$1"'
    done = cloud.lab.fe.run(["bash", "-c", script, f"{cloud.lab.one_location}/var/remotes/tm/ssh/ssh_utils.sh", place])
    assert len(os.listdir(cloud.lab.fe.path(place))) == 2, done  # all three had to go


def test_c3_a_write_back_that_was_interrupted_leaves_no_sum_behind(cloud: Cloud) -> None:
    """Other hosts are given the image as it is: the old one until the write-back is done, then the new one."""
    image = cloud.image(lambda path: random_data(path, SIZE, seed=55))
    settle()
    vm, old, new = cloud.vm(image), cloud.vm(image, "host2"), cloud.vm(image, "host2")
    cloud.clone(image, vm).succeeded()
    random_data(vm.path / "disk.0", SIZE, seed=56)
    before = look.sha256(image.file)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start("mvds", [vm.argument(), image.path, str(vm.id), str(DEFAULT)], FASTCOPY_DAEMON="no")
        wait_for_bytes(cloud.node(vm), SIZE // 2, sent=True)
        running.kill()
    cloud.clone(image, old).succeeded()
    assert look.sha256(old.path / "disk.0") == before
    cloud.mvds(vm, image).succeeded()
    cloud.clone(image, new).succeeded()
    assert look.same_content(new.path / "disk.0", vm.path / "disk.0")


def test_c4_a_cache_that_lost_an_image_makes_no_short_disk(cloud: Cloud) -> None:
    image = cloud.known("random")
    cloud.clone(image, cloud.vm(image)).succeeded()
    cloud.wait_for_quiet("host1")
    for entry in cloud.cache("host1").glob("*.img"):
        entry.unlink()  # what says that it is there stays
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    assert is_clone(vm, image)


def test_c4_an_image_that_ends_too_early_makes_no_short_disk(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, SIZE, seed=57))
    vm = cloud.vm(image)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(cloud.node(vm), SIZE // 4)
        os.truncate(image.file, SIZE // 2)
        running.outcome().failed(image.path)
    assert not (vm.path / "disk.0").exists()


@stock_at_hand
def test_c4_in_the_stock_driver(cloud: Cloud) -> None:
    image = cloud.known("random")
    assert stock_replica(cloud, image, cloud.vm(image)).code == 0
    cloud.lab.hosts["host2"].path(image.path).unlink()  # its sum stays
    vm = cloud.vm(image)
    assert stock_replica(cloud, image, vm).code == 0
    assert not (vm.path / "disk.0").exists()
