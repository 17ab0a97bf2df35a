"""Persistent images to a host and back (ln, mvds), and disks that are saved as new images (cpds), while the VM is off.

The seed that a write-back leaves on its host is what the next `ln` there needs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.images.mutate import mutate
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, HOSTS, Cloud, Image, Vm, rate, settle, traffic, wait_for_bytes
from tests.e2e.test_bad_hosts import filled
from tests.support import qemu_img

pytestmark = pytest.mark.root

SIZE = 24 * MIB
LANES = 2
FRESH = 4 * MIB  # incompressible, of what `guest` writes
on_every_fs = pytest.mark.parametrize("fs", HOSTS)


def guest(disk: Path, seed: int) -> None:
    """Write what a guest might, with some MiB that do not compress."""
    mutate(disk, seed, contiguous=FRESH, scattered=8, zeroed=MIB, punched=MIB)


def round_trip(cloud: Cloud, image: Image, host: str, seed: int, rest: bool) -> str:
    """A VM's life with a persistent disk: ln, the guest writes, mvds, delete.  Return the SHA-256 of its last state."""
    vm = cloud.vm(image, host)
    cloud.ln(image, vm).succeeded()
    assert look.same_content(image.file, vm.path / "disk.0")
    look.is_disk(vm.path / "disk.0", 0o660)
    guest(vm.path / "disk.0", seed)
    if rest:
        settle()
    last = look.sha256(vm.path / "disk.0")
    cloud.mvds(vm, image).succeeded()
    assert look.sha256(vm.path / "disk.0") == last
    cloud.delete(vm).succeeded()
    assert not vm.path.exists()
    cloud.wait_for_quiet(host)
    assert look.leftovers(cloud.cache(host)) == []
    assert [path.name for path in cloud.cache(host).iterdir() if path.suffix == ".kept"] == []
    return last


@on_every_fs
@pytest.mark.parametrize("rest", [True, False], ids=["rested", "just written"])
def test_what_mvds_brought_back_is_on_the_host_when_it_comes_again(cloud: Cloud, fs: str, rest: bool) -> None:
    host = HOSTS[fs]
    control = cloud.control_bytes(host)
    image = cloud.image(lambda path: random_data(path, SIZE, seed=21), mode=0o660)
    last = round_trip(cloud, image, host, 31, rest)
    assert look.sha256(image.file) == last
    vm = cloud.vm(image, host)
    with traffic(cloud.node(vm)) as seen:  # at once: the front-end knows its own image, though it is seconds old
        log = cloud.ln(image, vm).succeeded().log[-1]
    assert f"cache, {'copied' if fs == 'ext4' else 'reflink'}" in log, log
    assert seen.rx + seen.tx <= 2 * control
    assert look.sha256(vm.path / "disk.0") == last

    # Meanwhile the image was changed elsewhere: what the host kept is the seed.
    cloud.delete(vm).succeeded()
    changed = cloud.lab.dir / "nodes" / "changed"
    shutil.copyfile(image.file, changed)
    old = cloud.lab.dir / "nodes" / "old"
    shutil.copyfile(image.file, old)
    guest(changed, 32)
    shutil.copyfile(changed, image.file)
    settle()
    again = cloud.vm(image, host)
    with traffic(cloud.node(again)) as seen:
        cloud.ln(image, again).succeeded()
    assert FRESH <= seen.rx <= 1.1 * look.changed_chunks(old, changed) + (1 + LANES) * control
    assert look.same_content(again.path / "disk.0", changed)


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_a_qcow2_disk_is_kept_as_well(cloud: Cloud, fs: str) -> None:
    host = HOSTS[fs]
    image = cloud.image(lambda path: qcow2(path, 41), mode=0o660, format="qcow2")
    vm = cloud.vm(image, host)
    cloud.ln(image, vm).succeeded()
    qcow2_write(vm.path / "disk.0.snap/0")
    cloud.mvds(vm, image).succeeded()
    cloud.delete(vm).succeeded()
    cloud.wait_for_quiet(host)
    again = cloud.vm(image, host)
    assert "cache, " in cloud.ln(image, again).succeeded().log[-1]
    assert look.same_content(again.path / "disk.0.snap/0", image.file)
    assert os.readlink(again.path / "disk.0") == "disk.0.snap/0"


def qcow2(path: Path, seed: int) -> None:
    """Write a qcow2 image with some data."""
    raw = path.with_name(".raw")
    random_data(raw, 8 * MIB, seed=seed)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()


def qcow2_write(path: Path) -> None:
    """Write into a qcow2 disk as its guest would."""
    qemu_img("bitmap", "--add", "-f", "qcow2", path, "mark")


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_nothing_is_kept_where_the_cache_is_switched_off_or_too_small(cloud: Cloud, fs: str) -> None:
    host = HOSTS[fs]
    image = cloud.image(lambda path: random_data(path, 4 * MIB, seed=22), mode=0o660)
    for setting in ({"FASTCOPY_CACHE_ENABLE": "no"}, {"FASTCOPY_CACHE_MAX_SIZE": "1M"}):
        cloud.environment.update(setting)
        vm = cloud.vm(image, host)
        cloud.ln(image, vm).succeeded()
        random_data(vm.path / "disk.0", 4 * MIB, seed=23)
        cloud.mvds(vm, image).succeeded()
        cloud.delete(vm).succeeded()
        cloud.wait_for_quiet(host)
        cache = cloud.cache(host)
        assert [path.name for path in (cache.iterdir() if cache.exists() else ())] == []
        cloud.environment.pop(*setting)


def test_a_disk_that_was_written_after_mvds_is_not_kept_where_it_is_moved(cloud: Cloud) -> None:
    """On ext4 the disk itself would become the cached image; its guest ran once more."""
    image = cloud.image(lambda path: random_data(path, 4 * MIB, seed=24), mode=0o660)
    vm = cloud.vm(image, "host3")
    cloud.ln(image, vm).succeeded()
    random_data(vm.path / "disk.0", 4 * MIB, seed=25)
    cloud.mvds(vm, image).succeeded()
    assert len(list(cloud.cache("host3").glob("*.kept"))) == 1
    before = {path.name for path in cloud.cache("host3").glob("*.img")}
    with (vm.path / "disk.0").open("r+b") as disk:
        disk.write(b"once more")
    cloud.delete(vm, "disk.0").succeeded()
    cloud.wait_for_quiet("host3")
    assert {path.name for path in cloud.cache("host3").glob("*.img")} == before
    assert not (vm.path / "disk.0").exists()


# -- cpds --------------------------------------------------------------------------------------------------------


def used(cloud: Cloud, fs: str, seed: int) -> tuple[Image, Vm]:
    """A VM whose guest has changed a little of its disk, and the disk's image."""
    image = cloud.image(lambda path: random_data(path, SIZE, seed=seed), mode=0o640)
    settle()
    vm = cloud.vm(image, HOSTS[fs])
    cloud.clone(image, vm).succeeded()
    cloud.wait_for_quiet(HOSTS[fs])
    guest(vm.path / "disk.0", seed)
    return image, vm


def state(*paths: Path) -> list[tuple[int, int, int, str]]:
    """What must not change in files that are only read."""
    return [(path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_mode, look.sha256(path)) for path in paths]


@on_every_fs
def test_a_disk_is_saved_as_a_new_image_and_only_what_changed_travels(cloud: Cloud, fs: str) -> None:
    control = cloud.control_bytes(HOSTS[fs])
    image, vm = used(cloud, fs, 51)
    new, disk = f"{cloud.store}/saved-{vm.id}", vm.path / "disk.0"
    file = cloud.lab.fe.path(new)
    before = state(image.file, disk)
    changed = look.changed_chunks(image.file, disk)
    with traffic(cloud.node(vm)) as seen:
        cloud.cpds(vm, new).succeeded()
    assert look.same_content(file, disk)
    look.is_disk(file, 0o660)
    assert FRESH <= seen.tx <= 1.1 * changed + (1 + LANES) * control
    assert state(image.file, disk) == before
    assert look.leftovers(file.parent) == [] and look.leftovers(vm.path) == []

    # Repeated, with a host name before the path, it is the same image, and nothing travels.
    with traffic(cloud.node(vm)) as seen:
        cloud.run("cpds", vm.argument(), f"fe:{new}", "-1", str(vm.id), str(DEFAULT)).succeeded()
    assert seen.tx <= 2 * control
    assert look.same_content(file, disk)
    assert state(image.file, disk) == before

    # And it can be used at once, from what the front-end remembers of it.
    saved = Image(image.id + 100_000, new, file)
    cloud.lab.oned.add_image(saved.id, DEFAULT, new, SIZE // MIB)
    other = cloud.vm(saved, HOSTS[fs])
    cloud.clone(saved, other).succeeded()
    assert look.same_content(other.path / "disk.0", disk)


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_a_qcow2_disk_is_saved_as_one_file(cloud: Cloud, fs: str) -> None:
    image = cloud.image(lambda path: qcow2(path, 42), mode=0o640, format="qcow2")
    vm = cloud.vm(image, HOSTS[fs])
    cloud.clone(image, vm).succeeded()
    qcow2_write(vm.path / "disk.0.snap/0")
    new = f"{cloud.store}/saved-{vm.id}"
    cloud.cpds(vm, new).succeeded()
    assert look.same_content(cloud.lab.fe.path(new), vm.path / "disk.0.snap/0")
    look.is_disk(cloud.lab.fe.path(new), 0o660)


def test_a_disk_is_saved_though_its_image_is_gone_or_unknown(cloud: Cloud) -> None:
    image, vm = used(cloud, "xfs", 52)
    image.file.unlink()
    new = f"{cloud.store}/saved-{vm.id}"
    cloud.cpds(vm, new).succeeded()
    assert look.same_content(cloud.lab.fe.path(new), vm.path / "disk.0")
    other = cloud.vm(image, "host1", SOURCE="/nowhere/else")
    shutil.copytree(vm.path, other.path)
    for path in (other.path, other.path / "disk.0"):
        shutil.chown(path, UID, UID)
    cloud.cpds(other, f"{new}-2").succeeded()
    assert look.same_content(cloud.lab.fe.path(f"{new}-2"), vm.path / "disk.0")


def test_what_is_already_at_the_name_is_replaced_whole_or_not_at_all(cloud: Cloud) -> None:
    """It may be larger than the disk: what is saved is another image, not that one grown."""
    _, vm = used(cloud, "xfs", 53)
    there = cloud.image(lambda path: random_data(path, SIZE + MIB, seed=54), mode=0o640)
    cloud.cpds(vm, there.path).succeeded()
    assert look.same_content(there.file, vm.path / "disk.0")
    look.is_disk(there.file, 0o640)


def test_a_full_datastore_leaves_disk_and_images(cloud: Cloud) -> None:
    image, vm = used(cloud, "xfs", 55)
    random_data(vm.path / "disk.0", SIZE, seed=56)
    before = state(image.file, vm.path / "disk.0")
    new = f"{cloud.store}/saved-{vm.id}"
    file = cloud.lab.fe.path(new)
    with filled(image.file.parents[1], 10 * MIB):
        cloud.cpds(vm, new).failed("is full", "make room", new)
        assert not file.exists() and look.leftovers(file.parent) == []
    assert state(image.file, vm.path / "disk.0") == before
    cloud.cpds(vm, new).succeeded()
    assert look.same_content(file, vm.path / "disk.0")


def test_a_cut_link_leaves_nothing_at_the_name_and_is_gone_on_from(cloud: Cloud) -> None:
    """Defect B3 of the stock drivers."""
    image, vm = used(cloud, "xfs", 57)
    random_data(vm.path / "disk.0", SIZE, seed=58)
    before = state(image.file, vm.path / "disk.0")
    node, new = cloud.node(vm), f"{cloud.store}/saved-{vm.id}"
    file = cloud.lab.fe.path(new)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_cpds(vm, new)
        wait_for_bytes(node, SIZE // 2, sent=True)
        node.cut()
        try:
            running.outcome().failed("host1", new)
        finally:
            node.restore()
    assert not file.exists()
    with traffic(node) as seen:
        cloud.cpds(vm, new).succeeded()
    assert seen.tx < 0.9 * SIZE
    assert look.same_content(file, vm.path / "disk.0")
    assert state(image.file, vm.path / "disk.0") == before
    assert look.leftovers(file.parent) == []


def test_what_cannot_be_saved_is_one_sentence(cloud: Cloud) -> None:
    image, vm = used(cloud, "xfs", 59)
    new = f"{cloud.store}/saved-{vm.id}"
    cloud.start_cpds(vm, new, snapshot=3).outcome().failed("snapshot 3", vm.argument())
    for words in (
        ["host1:/etc/passwd", new, "-1", str(vm.id), "1"],
        [vm.argument("disk.7"), new, "-1", str(vm.id), "1"],
        [vm.argument(), "/etc/fastcopy-saved", "-1", str(vm.id), "1"],
        [vm.argument(), f"{cloud.store}/../0/x", "-1", str(vm.id), "1"],
        [vm.argument(), new, "latest", str(vm.id), "1"],
        [vm.argument(), new, "-1", str(vm.id)],
    ):
        cloud.run("cpds", *words).failed()
    (vm.path / "disk.0").unlink()
    cloud.cpds(vm, new).failed("no ", f"{vm.directory}/disk.0")
    assert not cloud.lab.fe.path(new).exists()
    assert image.file.exists()
