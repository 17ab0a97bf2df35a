"""mvds, from hosts on XFS, btrfs and ext4 to a front-end on XFS, and to one on ext4."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.images.mutate import mutate
from bench.testbed import Lab, LabConfig
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, HOSTS, SYSTEM, Cloud, Image, Vm, rate, traffic, wait_for_bytes
from tests.e2e.conftest import hang_gallery, lab_directory
from tm_fastcopy.core.manifest import DEFAULT_CHUNK, MAX_CHUNKS

pytestmark = pytest.mark.root

LANES = 2
SIZE = 24 * MIB
NOTHING = {"contiguous": 0, "scattered": 0, "zeroed": 0, "punched": 0}

# What the guest did; how much incompressible new data there is at least, and how much room becomes free.
CHANGES: dict[str, tuple[Callable[[Path], object], int, int]] = {
    "contiguous": (lambda path: mutate(path, 1, **{**NOTHING, "contiguous": 4 * MIB}), 4 * MIB, 0),
    "scattered": (lambda path: mutate(path, 2, **{**NOTHING, "scattered": 8}), 8 * 4096, 0),
    "zeroed": (lambda path: mutate(path, 3, **{**NOTHING, "zeroed": 4 * MIB}), 0, 3 * MIB),
    "punched": (lambda path: mutate(path, 4, **{**NOTHING, "punched": 4 * MIB}), 0, 3 * MIB),
    "grown": (lambda path: mutate(path, 5, **NOTHING, grown=3 * MIB + 4096), 3 * MIB, 0),
    "grown by a hole": (lambda path: os.truncate(path, SIZE + 8 * MIB), 0, 0),
    "all at once": (lambda path: mutate(path, 6, grown=12_345), 2 * MIB, 0),
    "nothing": (lambda path: None, 0, 0),
}


@pytest.fixture(scope="module")
def ext4_frontend() -> Iterator[Lab]:
    config = LabConfig(hosts=1, fs=("xfs",), fe_fs="ext4", dir=lab_directory(), disk_size="1G")
    with Lab.up(config) as lab:
        hang_gallery(lab)
        yield lab


@pytest.fixture
def ext4_cloud(ext4_frontend: Lab) -> Iterator[Cloud]:
    cloud = Cloud(ext4_frontend)
    cloud.wait_for_quiet("host1")
    cloud.clear()
    yield cloud
    assert ext4_frontend.oned.unknown_calls == []


def deploy(cloud: Cloud, host: str = "host1") -> tuple[Image, Vm]:
    """A persistent image of random data, and a VM that has a disk of it."""
    image = cloud.image(lambda path: random_data(path, SIZE, seed=11), mode=0o644)
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    cloud.wait_for_quiet(host)
    return image, vm


def fingerprint(path: Path) -> tuple[int, int, int, str]:
    """What must not change in a file that is only read."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_mode, look.sha256(path)


def bring_back(cloud: Cloud, host: str, change: str) -> None:
    """Deploy, let the guest change the disk, bring it back, and assert all that mvds promises."""
    write, travels, freed = CHANGES[change]
    control = cloud.control_bytes(host)
    image, vm = deploy(cloud, host)
    old = cloud.lab.dir / "nodes" / "old-image"
    shutil.copyfile(image.file, old)
    disk = vm.path / "disk.0"
    write(disk)
    before, room = fingerprint(disk), look.allocated(image.file)
    with traffic(cloud.node(vm)) as seen:
        cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, disk)
    assert fingerprint(disk) == before
    look.is_disk(image.file, 0o644)
    assert look.leftovers(image.file.parent) == []
    assert look.leftovers(vm.path) == []
    changed = look.changed_chunks(old, disk)
    assert travels <= changed
    assert travels <= seen.tx <= 1.1 * changed + (1 + LANES) * control
    assert seen.rx <= (1 + LANES) * control + 0.05 * changed  # acknowledgements
    if freed:
        assert look.allocated(image.file) <= room - freed
    if change == "grown by a hole":
        assert look.allocated(image.file) <= room + MIB // 2


@pytest.mark.parametrize("change", CHANGES)
def test_only_changed_chunks_travel_and_the_image_is_the_disk(cloud: Cloud, change: str) -> None:
    bring_back(cloud, HOSTS["xfs"], change)


@pytest.mark.parametrize("change", ["scattered", "punched", "all at once", "nothing"])
@pytest.mark.parametrize("fs", ["btrfs", "ext4"])
def test_the_same_from_hosts_on_other_file_systems(cloud: Cloud, fs: str, change: str) -> None:
    bring_back(cloud, HOSTS[fs], change)


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_with_a_front_end_that_cannot_share_blocks(ext4_cloud: Cloud, change: str) -> None:
    bring_back(ext4_cloud, "host1", change)


def hash_until(done: threading.Event, path: Path, found: list[str]) -> None:
    """Open and hash a file over and over."""
    while not done.is_set():
        found.append(look.sha256(path))


def read_during_mvds(cloud: Cloud) -> None:
    """Assert that whoever opens the image during mvds sees the old content or the new, and nothing else."""
    image, vm = deploy(cloud)
    mutate(vm.path / "disk.0", 8, **{**NOTHING, "contiguous": 8 * MIB})
    old = look.sha256(image.file)
    done, found = threading.Event(), list[str]()
    reader = threading.Thread(target=hash_until, args=(done, image.file, found))
    with rate(cloud.lab, "host1", "40mbit"):  # it takes almost two seconds
        reader.start()
        try:
            cloud.mvds(vm, image).succeeded()
            seen = len(found)
        finally:
            done.set()
            reader.join(30)
    new = look.sha256(image.file)
    assert new == look.sha256(vm.path / "disk.0") != old
    assert seen >= 3
    assert found[0] == old
    assert set(found) <= {old, new}


def test_a_reader_sees_the_old_or_the_new_image(cloud: Cloud) -> None:
    """Defect B3 of the stock drivers."""
    read_during_mvds(cloud)


def test_a_reader_sees_the_old_or_the_new_image_where_blocks_cannot_be_shared(ext4_cloud: Cloud) -> None:
    read_during_mvds(ext4_cloud)


def test_a_reader_that_has_the_old_image_open_keeps_it(cloud: Cloud) -> None:
    image, vm = deploy(cloud)
    old = image.file.read_bytes()
    mutate(vm.path / "disk.0", 9)
    with image.file.open("rb") as file:
        cloud.mvds(vm, image).succeeded()
        assert file.read() == old
    assert image.file.read_bytes() != old


def test_a_repeated_mvds_changes_nothing_and_moves_nothing(cloud: Cloud) -> None:
    control = cloud.control_bytes("host1")
    image, vm = deploy(cloud)
    mutate(vm.path / "disk.0", 10)
    cloud.mvds(vm, image).succeeded()
    before = look.sha256(image.file)
    with traffic(cloud.node(vm)) as seen:
        cloud.mvds(vm, image).succeeded()
    assert seen.tx <= 2 * control
    assert look.sha256(image.file) == before
    look.is_disk(image.file, 0o644)


def test_a_disk_that_grew_past_what_its_images_chunks_can_number(cloud: Cloud) -> None:
    """4 TiB at the default chunk size.  All that is data is fetched, in larger chunks; the repeat fetches nothing."""
    image, vm = deploy(cloud)
    disk, size = vm.path / "disk.0", MAX_CHUNKS * DEFAULT_CHUNK + 5 * MIB
    with disk.open("r+b") as file:
        file.truncate(size)
        file.seek(size - 4096)
        file.write(b"the end")
    for fetched in ("25.0", "0.0"):  # 24 MiB of the old image, and the last chunk
        assert f"chunks fetched {fetched} MiB" in cloud.mvds(vm, image).succeeded().stderr
    assert image.file.stat().st_size == size
    assert look.allocated(image.file) < SIZE + MIB
    with disk.open("rb") as one, image.file.open("rb") as other:
        for start in (0, size - 8 * MIB):
            one.seek(start)
            other.seek(start)
            assert one.read(SIZE + MIB) == other.read(SIZE + MIB)


def three_at_once(cloud: Cloud) -> None:
    """Three processes bring one disk back: at least one does, and the others say why not."""
    image, vm = deploy(cloud)
    mutate(vm.path / "disk.0", 13)
    outcomes = [running.outcome() for running in [cloud.start_mvds(vm, image) for _ in range(3)]]
    for outcome in outcomes:
        if outcome.code:
            outcome.failed()
        else:
            outcome.succeeded()
    assert 0 in [outcome.code for outcome in outcomes], outcomes
    assert look.same_content(image.file, vm.path / "disk.0")
    cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, vm.path / "disk.0")
    look.is_disk(image.file, 0o644)
    assert look.leftovers(image.file.parent) == []


def test_three_at_once_end_with_a_whole_image(cloud: Cloud) -> None:
    three_at_once(cloud)


def test_three_at_once_end_with_a_whole_image_where_blocks_cannot_be_shared(ext4_cloud: Cloud) -> None:
    three_at_once(ext4_cloud)


def test_an_image_that_is_missing_is_made(cloud: Cloud) -> None:
    image, vm = deploy(cloud)
    image.file.unlink()
    cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, vm.path / "disk.0")
    look.is_disk(image.file, 0o660)
    assert look.leftovers(image.file.parent) == []


def test_a_destination_with_the_front_ends_name_is_the_same(cloud: Cloud) -> None:
    image, vm = deploy(cloud)
    mutate(vm.path / "disk.0", 12)
    cloud.run("mvds", vm.argument(), f"fe:{image.path}", str(vm.id), str(DEFAULT)).succeeded()
    assert look.same_content(image.file, vm.path / "disk.0")


def killed_and_repeated(cloud: Cloud) -> None:
    """Kill mvds half-way: the image is as it was; the next one fetches less than all."""
    image, vm = deploy(cloud)
    random_data(vm.path / "disk.0", SIZE, seed=99)
    before = fingerprint(image.file)
    node = cloud.node(vm)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_mvds(vm, image)
        wait_for_bytes(node, SIZE // 2, sent=True)
        running.kill()
    assert fingerprint(image.file) == before
    with traffic(node) as seen:
        cloud.mvds(vm, image).succeeded()
    assert seen.tx < 0.9 * SIZE
    assert look.same_content(image.file, vm.path / "disk.0")
    assert look.leftovers(image.file.parent) == []


def test_a_killed_mvds_leaves_the_image_and_is_resumed(cloud: Cloud) -> None:
    killed_and_repeated(cloud)


def test_a_killed_mvds_is_resumed_where_blocks_cannot_be_shared(ext4_cloud: Cloud) -> None:
    killed_and_repeated(ext4_cloud)


def test_a_disk_that_became_shorter_than_its_image_is_not_brought_back(cloud: Cloud) -> None:
    image, vm = deploy(cloud)
    before = fingerprint(image.file)
    os.truncate(vm.path / "disk.0", SIZE - 5 * MIB - 512)
    cloud.mvds(vm, image).failed("shrink")
    assert fingerprint(image.file) == before
    assert look.leftovers(image.file.parent) == []
    # oned knows of it: the disk is what it was at a snapshot that is older than its last resize.
    disks = [{"IMAGE_ID": image.id, "SIZE": SIZE // MIB - 5}]
    cloud.lab.oned.add_vm(vm.id, host=vm.host, ds_id=SYSTEM, disks=disks)
    cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, vm.path / "disk.0")


def test_a_disk_is_saved_as_a_new_image_where_the_front_end_cannot_share_blocks(ext4_cloud: Cloud) -> None:
    """The image that it was made of is the seed, and read from; what changed travels."""
    control = ext4_cloud.control_bytes("host1")
    image, vm = deploy(ext4_cloud)
    mutate(vm.path / "disk.0", 14)
    before, changed = fingerprint(image.file), look.changed_chunks(image.file, vm.path / "disk.0")
    new = f"{ext4_cloud.store}/saved-{vm.id}"
    with traffic(ext4_cloud.node(vm)) as seen:
        ext4_cloud.cpds(vm, new).succeeded()
    assert look.same_content(ext4_cloud.lab.fe.path(new), vm.path / "disk.0")
    assert MIB <= seen.tx <= 1.1 * changed + (1 + LANES) * control
    assert fingerprint(image.file) == before
    look.is_disk(ext4_cloud.lab.fe.path(new), 0o660)
