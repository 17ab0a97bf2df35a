"""qcow2 disks there and back, on hosts on XFS, btrfs and ext4, with images that qemu-img made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.images import debian_like
from bench.images.edge import MIB
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, HOSTS, SYSTEM, Cloud, Image, Vm, give, traffic
from tests.support import make_encrypted, qcow2_header, qemu_img

pytestmark = pytest.mark.root

LANES = 2
SIZE = 12 * MIB
on_every_fs = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


def convert(path: Path, *options: str) -> None:
    """Write a qcow2 image of a small system."""
    raw = path.with_name(".raw")
    debian_like.write(raw, SIZE)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, path)
    raw.unlink()


def with_snapshot(path: Path, *options: str) -> None:
    """Write an image with an internal snapshot."""
    convert(path, *options)
    qemu_img("snapshot", "-c", "before", path)
    qemu_io(path, "write -P 0x77 1M 1M")


def encrypted(path: Path) -> None:
    """Write an image that is encrypted with LUKS, and has data in it."""
    make_encrypted(path, str(SIZE))
    qemu_io(f"{SECRET}file.filename={path}", "write -P 0x33 2M 3M", secret=True)


KINDS: dict[str, Callable[[Path], object]] = {
    "plain": convert,
    "compressed": lambda path: convert(path, "-c"),
    "version 2": lambda path: convert(path, "-o", "compat=0.10"),
    "internal snapshot": with_snapshot,
    "encrypted": encrypted,
    "empty": lambda path: qemu_img("create", "-q", "-f", "qcow2", path, "5G"),
}
SECRET = "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,"


def qemu_io(path: Path | str, command: str, secret: bool = False) -> None:
    """Write into an image as a guest would."""
    how = ["--object", "secret,id=s,data=geheim", "--image-opts"] if secret else ["-f", "qcow2"]
    subprocess.run(["qemu-io", *how, "-c", command, path], check=True, capture_output=True, timeout=60)


def check(path: Path, kind: str = "") -> None:
    """Assert that qemu-img finds nothing wrong with an image."""
    if kind == "encrypted":
        qemu_img("check", "-q", "--object", "secret,id=s,data=geheim", "--image-opts", f"{SECRET}file.filename={path}")
    else:
        qemu_img("check", "-q", "-f", "qcow2", path)


def virtual(path: Path) -> int:
    """Bytes that a guest sees."""
    return int(json.loads(qemu_img("info", "--output=json", "-f", "qcow2", path))["virtual-size"])


def image_of(cloud: Cloud, kind: str) -> Image:
    """An image in datastore 1."""
    return cloud.image(KINDS[kind], mode=0o644, format="qcow2")


def assert_layout(vm: Vm, mode: int = 0o644) -> Path:
    """Assert that the disk is laid out as the stock `local` driver does it, and nothing else; return its file."""
    link, tree = vm.path / "disk.0", vm.path / "disk.0.snap"
    assert sorted(path.name for path in vm.path.iterdir()) == ["disk.0", "disk.0.snap"]
    assert os.readlink(link) == "disk.0.snap/0"
    assert [path.name for path in tree.iterdir()] == ["0"]
    look.is_disk(tree / "0", mode)
    for path in (link, tree):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (UID, UID)
    assert oct(tree.stat().st_mode & 0o777) == oct(0o755)
    assert look.monitor(vm.path.parent) == "fastcopy\n"
    return tree / "0"


def assert_nothing_there(vm: Vm) -> None:
    assert not vm.path.exists() or list(vm.path.iterdir()) == []


@on_every_fs
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_arrives_cold_and_warm(cloud: Cloud, host: str, kind: str) -> None:
    image = image_of(cloud, kind)
    for _ in ("cold", "warm"):
        vm = cloud.vm(image, host)
        said = cloud.clone(image, vm).succeeded()
        file = assert_layout(vm)
        assert look.same_content(file, image.file), said
        check(file, kind)
        cloud.wait_for_quiet(host)


@on_every_fs
@pytest.mark.parametrize("kind", ["plain", "compressed", "version 2", "internal snapshot", "empty"])
def test_a_disk_that_is_larger_than_its_image(cloud: Cloud, host: str, kind: str) -> None:
    image = image_of(cloud, kind)
    for _ in ("cold", "warm"):
        vm = cloud.vm(image, host, SIZE=8192, ORIGINAL_SIZE=12)
        cloud.clone(image, vm).succeeded()
        file = assert_layout(vm)
        assert virtual(file) == 8192 * MIB
        check(file)
        same = ["compare", "-q", "-f", "qcow2", "-F", "qcow2", image.file, file]  # what is added reads as zeros
        qemu_img(*same)
        cloud.wait_for_quiet(host)


def with_old_snapshot(path: Path) -> None:
    """Write an image that qemu-img cannot make larger."""
    with_snapshot(path, "-o", "compat=0.10")


@on_every_fs
@pytest.mark.parametrize("write", [encrypted, with_old_snapshot])
def test_what_qemu_img_cannot_make_larger_is_one_sentence(
    cloud: Cloud, host: str, write: Callable[[Path], object]
) -> None:
    image = cloud.image(write, mode=0o644, format="qcow2")
    for _ in ("cold", "warm"):
        vm = cloud.vm(image, host, SIZE=64, ORIGINAL_SIZE=12)
        cloud.clone(image, vm).failed("cannot be made larger", f"{vm.directory}/disk.0", "in the size of its image")
        cloud.wait_for_quiet(host)
        assert_nothing_there(vm)
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    assert look.same_content(assert_layout(vm), image.file)


@on_every_fs
def test_a_disk_that_may_not_be_sparse_is_allocated_and_its_own(cloud: Cloud, host: str) -> None:
    image = image_of(cloud, "plain")
    for _ in ("cold", "warm"):
        vm = cloud.vm(image, host, SPARSE="NO", SIZE=32, ORIGINAL_SIZE=12)
        cloud.clone(image, vm).succeeded()
        file = assert_layout(vm)
        check(file)
        assert look.allocated(file) >= 20 * MIB  # what was added
        assert look.allocated(file) >= file.stat().st_size
        assert look.shared_bytes(file) == 0
        cloud.wait_for_quiet(host)


@on_every_fs
def test_a_clone_over_what_stands_there(cloud: Cloud, host: str) -> None:
    image = image_of(cloud, "plain")
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    snapshot_on_host(vm)
    cloud.clone(image, vm).succeeded()
    assert look.same_content(assert_layout(vm), image.file)
    flatten_on_host(vm)
    cloud.clone(image, vm).succeeded()
    assert look.same_content(assert_layout(vm), image.file)


def active(vm: Vm) -> Path:
    """The file that the disk's link leads to.  (`resolve` would lead out of the host.)"""
    return vm.path / os.readlink(vm.path / "disk.0")


def snapshot_on_host(vm: Vm) -> None:
    """What the stock `local` driver's snap_create leaves."""
    tree = vm.path / "disk.0.snap"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "backing_fmt=qcow2", "-b", "0", "1"],
        cwd=tree, check=True, timeout=60,
    )
    give(tree / "1", 0o644)
    (vm.path / "disk.0").unlink()
    (vm.path / "disk.0").symlink_to("disk.0.snap/1")


def flatten_on_host(vm: Vm) -> None:
    """A flat file, as the stock `ssh` driver leaves it."""
    file = active(vm)
    (vm.path / "disk.0").unlink()
    file.rename(vm.path / "disk.0")
    shutil.rmtree(vm.path / "disk.0.snap")


# -- and back ----------------------------------------------------------------------------------------------------


@on_every_fs
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_a_disk_comes_back_as_what_changed_in_it(cloud: Cloud, host: str, kind: str, layout: str) -> None:
    control = cloud.control_bytes(host)
    image = image_of(cloud, kind)
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    cloud.wait_for_quiet(host)
    disk = active(vm)
    if layout == "flat":
        flatten_on_host(vm)
        disk = vm.path / "disk.0"
    opened = f"{SECRET}file.filename={disk}" if kind == "encrypted" else disk
    qemu_io(opened, "write -P 0x5a 4M 700k", secret=kind == "encrypted")
    old = cloud.lab.dir / "nodes" / "old-image"
    shutil.copyfile(image.file, old)
    names, before = sorted(os.listdir(vm.path)), (disk.stat().st_ino, disk.stat().st_mtime_ns, look.sha256(disk))
    with traffic(cloud.node(vm)) as seen:
        cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, disk)
    look.is_disk(image.file, 0o644)
    check(image.file, kind)
    assert seen.tx <= 1.1 * look.changed_chunks(old, disk) + (1 + LANES) * control
    assert (disk.stat().st_ino, disk.stat().st_mtime_ns, look.sha256(disk)) == before
    assert sorted(os.listdir(vm.path)) == names
    assert look.leftovers(image.file.parent) == []


def as_local_leaves_it(image: Image) -> Path:
    """Make an image a link into a tree, as the stock `local` driver's mvds does; return its file."""
    tree = image.file.with_name(image.file.name + ".snap")
    tree.mkdir()
    shutil.chown(tree, UID, UID)
    image.file.rename(tree / "0")
    image.file.symlink_to(f"{tree.name}/0")
    return tree / "0"


@on_every_fs
def test_an_image_as_the_stock_local_driver_leaves_it(cloud: Cloud, host: str) -> None:
    image = image_of(cloud, "plain")
    file = as_local_leaves_it(image)
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    disk = assert_layout(vm)
    assert look.same_content(disk, file)
    qemu_io(disk, "write -P 0x5a 4M 700k")
    cloud.mvds(vm, image).succeeded()
    assert look.same_content(disk, file)
    look.is_disk(file, 0o644)
    assert os.readlink(image.file) == f"{image.file.name}.snap/0"
    assert [path.name for path in file.parent.iterdir()] == ["0"]


def test_a_disk_that_shrank_for_its_guest_is_not_brought_back(cloud: Cloud) -> None:
    image = image_of(cloud, "plain")
    before = look.sha256(image.file)
    vm = cloud.vm(image, SIZE=SIZE // MIB)
    cloud.clone(image, vm).succeeded()
    qemu_img("resize", "-q", "-f", "qcow2", "--shrink", vm.path / "disk.0", SIZE - MIB)
    cloud.mvds(vm, image).failed("shrink")
    assert look.sha256(image.file) == before
    assert look.leftovers(image.file.parent) == []
    # oned knows of it: the disk is what it was at a snapshot that is older than its last resize.
    disks = [{"IMAGE_ID": image.id, "SIZE": SIZE // MIB - 1}]
    cloud.lab.oned.add_vm(vm.id, host=vm.host, ds_id=SYSTEM, disks=disks)
    cloud.mvds(vm, image).succeeded()
    assert virtual(image.file) == SIZE - MIB


@pytest.mark.parametrize("name", ["/etc/passwd", "../../0/1/disk.0", "base"])
def test_a_disk_that_names_another_file_is_not_brought_back(cloud: Cloud, name: str) -> None:
    image = image_of(cloud, "plain")
    before = look.sha256(image.file)
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name, vm.path / "disk.0")
    cloud.mvds(vm, image).failed("outside its own" if "/" in name else "not in its own tree")
    assert look.sha256(image.file) == before


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (qcow2_header(backing=b"/etc/passwd"), "outside its own directory"),
        (qcow2_header(backing=b"../0/1/disk.0"), "outside its own directory"),
        (qcow2_header(backing=b"json:{}"), "outside its own directory"),
        (qcow2_header(features=4, data_file=b"nbd://host/x"), "outside its own directory"),
        (qcow2_header(backing=b"base"), "several files"),
        (b"no such thing", "no qcow2 image, though oned says so"),
    ],
)
def test_an_image_that_is_not_carried(cloud: Cloud, header: bytes, words: str) -> None:
    image = cloud.image(lambda path: path.write_bytes(header), format="qcow2")
    vm = cloud.vm(image)
    cloud.clone(image, vm).failed(words, image.path)
    assert_nothing_there(vm)
    convert(image.file)
    give(image.file, 0o644)
    cloud.clone(image, vm).succeeded()
    assert look.same_content(assert_layout(vm), image.file)


@pytest.mark.parametrize("action", ["clone", "mvds"])
def test_other_formats_are_refused(cloud: Cloud, action: str) -> None:
    image = cloud.image(lambda path: path.write_bytes(b"x"), format="vmdk")
    vm = cloud.vm(image)
    (cloud.clone(image, vm) if action == "clone" else cloud.mvds(vm, image)).failed("raw and qcow2", "vmdk")
    assert_nothing_there(vm)


def test_a_raw_image_is_not_probed(cloud: Cloud) -> None:
    """A guest may write a qcow2 header into its raw disk, to be given the file that it names."""
    image = cloud.image(lambda path: path.write_bytes(qcow2_header(backing=b"/etc/passwd")))
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    look.is_disk(vm.path / "disk.0", 0o640)
    assert look.same_content(vm.path / "disk.0", image.file)
    cloud.mvds(vm, image).succeeded()


def test_a_planted_tree_is_not_followed(cloud: Cloud) -> None:
    image = image_of(cloud, "plain")
    vm = cloud.vm(image)
    victim = vm.path.parent / "victim"
    victim.mkdir()
    (victim / "0").write_bytes(b"precious")
    vm.path.mkdir()
    for path in (victim, vm.path):
        shutil.chown(path, UID, UID)
    (vm.path / "disk.0.snap").symlink_to("../victim")
    (vm.path / "disk.0").symlink_to("disk.0.snap/0")
    cloud.mvds(vm, image).failed("link")
    cloud.clone(image, vm).succeeded()
    assert look.same_content(assert_layout(vm), image.file)
    assert (victim / "0").read_bytes() == b"precious"
    assert cloud.run("clone", f"fe:{image.path}", vm.argument(), str(vm.id), str(DEFAULT)).succeeded()
