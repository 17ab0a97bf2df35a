"""clone, from the front-end's image datastore to hosts on XFS, btrfs and ext4, through real sshd's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.images.edge import MIB
from bench.images.mutate import mutate
from tests.e2e import look
from tests.e2e.cloud import FILES, HOSTS, Cloud, Image, Vm, rate, settle, traffic, wait_for_bytes
from tm_fastcopy.core.manifest import DEFAULT_CHUNK

pytestmark = pytest.mark.root

LANES = 2  # what a transfer uses unless it is told otherwise: each is one more login
IMAGES = ("like", "empty", "one_byte", "odd", "zeros", "hole", "random", "islands")
on_every_fs = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


def assert_cloned(vm: Vm, image: Image, name: str = "disk.0", mode: int = 0o640) -> None:
    """Assert all that holds after a clone with nothing special about it."""
    disk = vm.path / name
    assert look.is_sparse_as(disk, image.file)  # first: see there
    assert look.same_content(disk, image.file)
    look.is_disk(disk, mode)
    assert look.leftovers(vm.path) == []
    assert look.monitor(vm.path.parent) == "fastcopy\n"


@on_every_fs
def test_a_warm_clone_moves_nothing_of_the_image(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    control = cloud.control_bytes(host)
    cloud.clone(image, cloud.vm(image, host)).succeeded()
    cloud.wait_for_quiet(host)
    vm = cloud.vm(image, host)
    with traffic(cloud.node(vm)) as seen:
        cloud.clone(image, vm).succeeded()
    assert seen.rx + seen.tx <= 1.5 * control + 64 * 1024  # and what kept connections say now and then
    assert_cloned(vm, image)


@on_every_fs
def test_a_warm_clone_shares_its_blocks_where_the_file_system_can(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    for vm in (cloud.vm(image, host), cloud.vm(image, host)):
        cloud.clone(image, vm).succeeded()
        cloud.wait_for_quiet(host)
        expected = 0 if cloud.node(vm).fs == "ext4" else image.file.stat().st_size
        assert look.shared_bytes(vm.path / "disk.0") == expected


@on_every_fs
def test_a_new_version_costs_its_changed_chunks(cloud: Cloud, host: str) -> None:
    old, new = cloud.known("like"), cloud.known("second")
    control = cloud.control_bytes(host)
    cloud.clone(old, cloud.vm(old, host)).succeeded()
    cloud.wait_for_quiet(host)
    vm = cloud.vm(new, host)
    with traffic(cloud.node(vm)) as seen:
        cloud.clone(new, vm).succeeded()
    assert_cloned(vm, new)
    changed = look.changed_chunks(old.file, new.file)
    assert 2 * MIB <= seen.rx <= 1.1 * changed + (1 + LANES) * control  # the new random data does travel


@on_every_fs
def test_a_contiguous_change_of_incompressible_data_costs_what_it_is(cloud: Cloud, host: str) -> None:
    old = cloud.known("random")

    def change(path: Path) -> None:
        shutil.copyfile(old.file, path)
        mutate(path, 3, contiguous=4 * MIB, scattered=0, zeroed=0, punched=0)

    new = cloud.image(change)
    control = cloud.control_bytes(host)
    cloud.clone(old, cloud.vm(old, host)).succeeded()
    cloud.wait_for_quiet(host)
    vm = cloud.vm(new, host)
    with traffic(cloud.node(vm)) as seen:
        cloud.clone(new, vm).succeeded()
    assert_cloned(vm, new)
    changed = look.changed_chunks(old.file, new.file)
    assert 4 * MIB <= changed <= 4 * MIB + 2 * DEFAULT_CHUNK
    assert changed <= seen.rx <= 1.1 * changed + (1 + LANES) * control


@on_every_fs
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_arrives_cold_and_warm(cloud: Cloud, host: str, name: str) -> None:
    """Defect A5 of the stock drivers."""
    image = cloud.known(name)
    for vm in (cloud.vm(image, host), cloud.vm(image, host)):
        cloud.clone(image, vm).succeeded()
        assert_cloned(vm, image)
        cloud.wait_for_quiet(host)


@on_every_fs
def test_a_larger_disk_is_the_image_and_a_hole(cloud: Cloud, host: str) -> None:
    """Defect A12 of the stock drivers."""
    image = cloud.known("odd")
    whole = image.file.read_bytes()
    for _ in ("cold", "warm"):
        vm = cloud.vm(image, host, SIZE=20, ORIGINAL_SIZE=6)
        cloud.clone(image, vm).succeeded()
        disk = vm.path / "disk.0"
        assert disk.read_bytes() == whole + bytes(20 * MIB - len(whole))
        assert look.allocated(disk) < len(whole) + MIB
        look.is_disk(disk, 0o640)
        cloud.wait_for_quiet(host)


@on_every_fs
def test_a_disk_that_may_not_be_sparse_is_allocated_and_its_own(cloud: Cloud, host: str) -> None:
    """Defect A12 of the stock drivers."""
    image = cloud.known("like")
    for _ in ("cold", "warm"):
        vm = cloud.vm(image, host, SPARSE="NO", SIZE=40, ORIGINAL_SIZE=32)
        cloud.clone(image, vm).succeeded()
        disk = vm.path / "disk.0"
        assert disk.read_bytes() == image.file.read_bytes() + bytes(8 * MIB)
        assert look.allocated(disk) >= 40 * MIB
        assert look.shared_bytes(disk) == 0
        cloud.wait_for_quiet(host)


@pytest.mark.parametrize("host", [HOSTS["xfs"], HOSTS["btrfs"]], ids=["xfs", "btrfs"])  # that can share
def test_a_disk_that_may_not_be_sparse_shares_no_block_with_what_it_was_made_of(cloud: Cloud, host: str) -> None:
    """Past the cache, where the disk itself is staged, and another version in the cache is its seed."""
    old = cloud.known("like")

    def copy(path: Path) -> None:
        shutil.copyfile(cloud.known("second").file, path)
        os.utime(path, (1 << 32, 1 << 32))  # a time to come: such an image is never settled, and gets no entry

    new = cloud.image(copy)
    control = cloud.control_bytes(host)
    cloud.clone(old, cloud.vm(old, host)).succeeded()
    cloud.wait_for_quiet(host)
    vm = cloud.vm(new, host, SPARSE="NO")
    with traffic(cloud.node(vm)) as seen:
        assert "past the cache" in cloud.clone(new, vm).succeeded().stderr
    assert seen.rx <= 1.1 * look.changed_chunks(old.file, new.file) + (1 + LANES) * control  # the rest is the seed's
    disk = vm.path / "disk.0"
    assert look.shared_bytes(disk) == 0
    assert look.same_content(disk, new.file)
    assert look.allocated(disk) >= new.file.stat().st_size


@on_every_fs
@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_boot_files_are_copied(cloud: Cloud, host: str, name: str) -> None:
    """Defect A11 of the stock drivers."""
    kernel = cloud.image(lambda path: path.write_bytes(os.urandom(3 * MIB + 5)), store=FILES, mode=0o400)
    vm = cloud.vm(None, host)
    cloud.clone(kernel, vm, name).succeeded()
    assert_cloned(vm, kernel, name, mode=0o600)


@on_every_fs
def test_a_clone_over_a_disk_gives_the_image_again(cloud: Cloud, host: str) -> None:
    image = cloud.known("like")
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    (vm.path / "disk.0").write_bytes(b"what the guest of a failed deployment wrote")
    cloud.clone(image, vm).succeeded()
    assert_cloned(vm, image)


@on_every_fs
def test_a_cached_image_does_not_change_when_a_disk_is_written(cloud: Cloud, host: str) -> None:
    image = cloud.known("like")
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    cloud.wait_for_quiet(host)
    with (vm.path / "disk.0").open("r+b") as disk:
        disk.write(os.urandom(4 * MIB))
        os.fsync(disk.fileno())
    second = cloud.vm(image, host)
    cloud.clone(image, second).succeeded()
    assert_cloned(second, image)


def test_an_image_goes_to_all_hosts_at_once(cloud: Cloud) -> None:
    image = cloud.known("like")
    vms = [cloud.vm(image, host) for host in HOSTS.values()]
    for running in [cloud.start_clone(image, vm) for vm in vms]:
        running.outcome().succeeded()
    for vm in vms:
        assert_cloned(vm, image)


@on_every_fs
def test_four_clones_of_an_image_at_once_are_one_transfer(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    size = image.file.stat().st_size
    control = cloud.control_bytes(host)
    vms = [cloud.vm(image, host) for _ in range(4)]
    with traffic(cloud.lab.hosts[host]) as seen:
        said = [running.outcome().succeeded().stderr for running in [cloud.start_clone(image, vm) for vm in vms]]
    assert size <= seen.rx <= 1.1 * size + (4 + LANES) * 2 * control, said
    for vm in vms:
        assert_cloned(vm, image)


@on_every_fs
def test_a_killed_clone_leaves_no_disk_and_is_resumed(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    size = image.file.stat().st_size
    vm = cloud.vm(image, host)
    node = cloud.node(vm)
    with rate(cloud.lab, host, "50mbit"):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(node, size // 2)
        running.kill()
    assert not (vm.path / "disk.0").exists()
    with traffic(node) as seen:
        cloud.clone(image, vm).succeeded()
    assert seen.rx < 0.9 * size
    assert_cloned(vm, image)


def test_an_image_that_was_written_just_now_is_not_mistaken_for_its_old_self(cloud: Cloud) -> None:
    image = cloud.image(lambda path: path.write_bytes(os.urandom(MIB)))
    settle()
    cloud.clone(image, cloud.vm(image)).succeeded()
    for letter in (b"a", b"b"):  # each within the clock's tick of the last, and of the same size
        image.file.write_bytes(letter * MIB)
        vm = cloud.vm(image)
        cloud.clone(image, vm).succeeded()
        assert_cloned(vm, image)
