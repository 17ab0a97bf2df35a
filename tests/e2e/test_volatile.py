"""Disks without an image: made, made larger; beside what the stock `local` driver leaves, where it is at hand.

What that driver leaves is written down below (`STOCK`); where FASTCOPY_OPENNEBULA names a checkout, its scripts are run
as well, and must leave the same.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, NUMBERS, SYSTEM, Cloud, Outcome, Running, Vm, give
from tests.e2e.conftest import CHECKOUT
from tests.support import qemu_img

pytestmark = pytest.mark.root

on_both = pytest.mark.parametrize("host", ["host1", "host3"], ids=["xfs", "ext4"])
DISK_RESIZE, DISK_RESIZE_POWEROFF = 62, 63  # LCM_STATE

CONF = """\
SUPPORTED_FS="ext2,ext3,ext4,xfs"
FS_OPTS_ext2="-L mine"
"""

# What oned says of the disks, and what the stock driver leaves of each: what it is, the bytes its guest sees, what is
# in it.  All are regular files of oneadmin with the mode 0644, also the qcow2 ones.
DISKS: list[dict[str, Any]] = [
    {"TYPE": "fs", "SIZE": 10, "FORMAT": "raw"},
    {"TYPE": "fs", "SIZE": 12, "FORMAT": "raw", "FS": "ext4"},
    {"TYPE": "fs", "SIZE": 11, "FORMAT": "qcow2"},
    {"TYPE": "fs", "SIZE": 16, "FORMAT": "qcow2", "FS": "ext2"},
    {"TYPE": "swap", "SIZE": 9},
    {"TYPE": "fs", "SIZE": 310, "FORMAT": "raw", "FS": "xfs"},
]
STOCK = {
    "disk.0": ("raw", 10 * MIB, ""),
    "disk.1": ("raw", 12 * MIB, "ext4"),
    "disk.2": ("qcow2", 11 * MIB, ""),
    "disk.3": ("qcow2", 16 * MIB, "ext2 mine"),
    "disk.4": ("raw", 9 * MIB, "swap swap"),
    "disk.5": ("raw", 310 * MIB, "xfs"),
}


@pytest.fixture(autouse=True)
def configured(cloud: Cloud) -> None:
    """OpenNebula's configuration of file systems, which both drivers read."""
    place = cloud.lab.one_location / "var/remotes/etc/datastore"
    place.mkdir(exist_ok=True)
    (place / "datastore.conf").write_text(CONF)


def new_vm(cloud: Cloud, host: str, disks: Sequence[Mapping[str, Any]], state: int = 1) -> Vm:
    """A VM with such disks, in an LCM_STATE."""
    number = next(NUMBERS)
    cloud.lab.oned.add_vm(number, host=host, ds_id=SYSTEM, disks=disks, extra={"LCM_STATE": state})
    directory = f"{cloud.system}/{number}"
    return Vm(number, host, directory, cloud.lab.hosts[host].path(directory))


def lines(vm: Vm, disks: Sequence[Mapping[str, Any]], driver: str = "fastcopy") -> list[str]:
    """The lines of a prolog, as oned writes them."""
    made = []
    for number, disk in enumerate(disks):
        end = f"{vm.argument(f'disk.{number}')} {vm.id} {SYSTEM}"
        if disk["TYPE"] == "swap":
            made.append(f"MKSWAP {driver} {disk['SIZE']} {end}")
        else:
            made.append(f"MKIMAGE {driver} {disk['SIZE']} {disk['FORMAT']} {end}")
    return made


def raw_of(path: Path, format: str, scratch: Path) -> Path:
    """A disk as its guest sees it."""
    if format == "raw":
        return path
    qemu_img("check", "-q", "-f", "qcow2", path)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, scratch)
    return scratch


def inside(path: Path) -> str:
    """What blkid finds: type and label."""
    argv = ["/sbin/blkid", "-p", "-s", "TYPE", "-s", "LABEL", "-o", "export", path]
    found = dict(
        line.split("=", 1)
        for line in subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout.splitlines()
    )
    return " ".join(found[key] for key in ("TYPE", "LABEL") if key in found)


def format_of(path: Path) -> str:
    return "qcow2" if path.read_bytes()[:4] == b"QFI\xfb" else "raw"


def described(vm: Vm, scratch: Path) -> dict[str, tuple[str, int, str]]:
    """What is in a VM's directory; every file is asserted to be what all disks here are."""
    found = {}
    for path in sorted(vm.path.iterdir()):
        look.is_disk(path, 0o644)
        format = format_of(path)
        raw = raw_of(path, format, scratch / "raw")
        found[path.name] = format, raw.stat().st_size, inside(raw)
    return found


def stock(cloud: Cloud, action: str, *arguments: str) -> Outcome:
    """Run a script of the stock `local` driver."""
    script = cloud.lab.one_location / "var/remotes/tm/local" / action
    return Running(cloud.lab.fe.popen([script, *arguments])).outcome()


@on_both
def test_a_prolog_makes_what_the_stock_driver_makes_and_makes_it_again(
    cloud: Cloud, host: str, tmp_path: Path
) -> None:
    vm = new_vm(cloud, host, DISKS)
    inodes = []
    for _ in ("first", "replayed"):
        result = cloud.lab.tm(lines(vm, DISKS), vm.id)
        assert (result.success, result.info) == (True, "-")
        assert len([line for line in result.log if line.startswith(("INFO: mkimage: /", "INFO: mkswap: /"))]) == 6
        assert described(vm, tmp_path) == STOCK
        inodes.append((vm.path / "disk.1").stat().st_ino)
        assert sum(look.allocated(path) for path in vm.path.iterdir()) < 80 * MIB  # 64 are XFS's log
    assert inodes[0] != inodes[1]
    assert look.monitor(vm.path.parent) == "fastcopy\n"
    subprocess.run(["/sbin/e2fsck", "-fn", vm.path / "disk.1"], check=True, capture_output=True, timeout=60)
    if CHECKOUT:
        other = new_vm(cloud, host, DISKS)
        for line in lines(other, DISKS):
            action, _, *arguments = line.split()
            done = stock(cloud, action.lower(), *arguments)
            assert done.code == 0, done.stderr
        assert described(other, tmp_path) == STOCK


@on_both
def test_sparse_no_allocates_all_of_it(cloud: Cloud, host: str, tmp_path: Path) -> None:
    disks = [{**disk, "SPARSE": "NO"} for disk in DISKS[:5]]
    vm = new_vm(cloud, host, disks)
    assert cloud.lab.tm(lines(vm, disks), vm.id).success
    for name, (_, size, _) in described(vm, tmp_path).items():
        assert look.allocated(vm.path / name) >= size, name


@on_both
def test_what_cannot_be_made_is_one_sentence_and_leaves_nothing(cloud: Cloud, host: str) -> None:
    def make(disk: Mapping[str, Any]) -> tuple[Vm, Outcome]:
        vm = new_vm(cloud, host, [disk])
        action, _, *arguments = lines(vm, [disk])[0].split()
        return vm, cloud.run(action.lower(), *arguments)

    disk = {"TYPE": "fs", "SIZE": 10, "FORMAT": "raw"}
    for change, *words in (
        ({"FS": "reiserfs"}, "'reiserfs'", "SUPPORTED_FS", "datastore.conf"),
        ({"FORMAT": "vmdk"}, "'vmdk'", "use raw or qcow2"),
        ({"SIZE": 0}, "'0'", "number of MiB"),
        ({"SIZE": 10, "FS": "xfs"}, "mkfs.xfs cannot make a file system in"),
        ({"SIZE": 102400, "SPARSE": "NO"}, "needs 102400 MiB", "MiB free", "make room there"),
        ({"SIZE": 102400, "SPARSE": "NO", "FORMAT": "qcow2"}, "needs 102400 MiB"),
    ):
        vm, outcome = make({**disk, **change})
        outcome.failed(*words)
        assert not vm.path.exists() or list(vm.path.iterdir()) == []
    node = cloud.lab.hosts[host]
    node.run(["/bin/mount", "--bind", "/dev/null", "/usr/sbin/mkfs.xfs"], user="root", check=True)
    try:
        vm, outcome = make({**disk, "SIZE": 310, "FS": "xfs"})
    finally:
        node.run(["/bin/umount", "/usr/sbin/mkfs.xfs"], user="root", check=True)
    outcome.failed("mkfs.xfs", "cannot be run on this host", "install xfsprogs there", host)
    assert list(vm.path.iterdir()) == []


# --- larger ------------------------------------------------------------------------------------------------------


def virtual(path: Path) -> int:
    return int(json.loads(qemu_img("info", "--output=json", "-f", "qcow2", path))["virtual-size"])


def resize_line(vm: Vm, size: int, store: int = DEFAULT, name: str = "disk.0") -> str:
    """The line that oned writes; for a disk with an image, the datastore is the image's."""
    return f"RESIZE fastcopy {vm.argument(name)} {size} {vm.id} {store}"


def in_state(cloud: Cloud, vm: Vm, state: int, **disk: object) -> None:
    """Put a VM into an LCM_STATE; *disk* is what oned says of its disk."""
    cloud.lab.oned.add_vm(vm.id, host=vm.host, ds_id=SYSTEM, disks=[disk], extra={"LCM_STATE": state})


@on_both
@pytest.mark.parametrize("sparse", ["YES", "NO"])
def test_a_raw_disk_becomes_larger_in_place(cloud: Cloud, host: str, sparse: str) -> None:
    image = cloud.image(lambda path: random_data(path, 3 * MIB))
    vm = cloud.vm(image, host, SPARSE=sparse)
    cloud.clone(image, vm).succeeded()
    disk = vm.path / "disk.0"
    inode = disk.stat().st_ino
    attributes = {"IMAGE_ID": image.id, "SPARSE": sparse, "SIZE": 40}
    in_state(cloud, vm, DISK_RESIZE, **attributes)
    result = cloud.lab.tm([resize_line(vm, 40)], vm.id)
    assert result.success and "left to the hypervisor" in result.log[0]
    assert disk.stat().st_size == 3 * MIB  # of a running VM
    in_state(cloud, vm, DISK_RESIZE_POWEROFF, **attributes)
    for size in (40, 40, 20):  # again, and never smaller
        result = cloud.lab.tm([resize_line(vm, size)], vm.id)
        assert (result.success, result.info) == (True, "-")
        assert (disk.stat().st_size, disk.stat().st_ino) == (40 * MIB, inode)
        assert (look.allocated(disk) >= 40 * MIB) is (sparse == "NO")
    assert disk.read_bytes()[: 3 * MIB] == image.file.read_bytes()
    assert not any(disk.read_bytes()[3 * MIB :])
    look.is_disk(disk, 0o640)
    if sparse == "NO":
        outcome = cloud.run("resize", vm.argument(), "102400", str(vm.id), str(DEFAULT))
        outcome.failed("needs 102360 MiB", "MiB free", f"{host}:{vm.directory}/disk.0")
        assert disk.stat().st_size == 40 * MIB
    disk.unlink()
    cloud.run("resize", vm.argument(), "50", str(vm.id), str(DEFAULT)).failed("there is no", "front-end")


@on_both
def test_a_qcow2_disk_becomes_larger_also_on_top_of_a_snapshot(cloud: Cloud, host: str) -> None:
    image = cloud.image(
        lambda path: qemu_img("create", "-q", "-f", "qcow2", path, "20M"), mode=0o644, format="qcow2"
    )
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    tree = vm.path / "disk.0.snap"
    in_state(cloud, vm, DISK_RESIZE_POWEROFF, IMAGE_ID=image.id)
    assert cloud.lab.tm([resize_line(vm, 30)] * 2, vm.id).success
    assert virtual(tree / "0") == 30 * MIB
    # As the stock snap_create leaves it.
    backing = ["-F", "qcow2", "-b", "0"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, "1"], cwd=tree, check=True, timeout=60)
    shutil.chown(tree / "1", UID, UID)
    (vm.path / "disk.0").unlink()
    (vm.path / "disk.0").symlink_to("disk.0.snap/1")
    os.lchown(vm.path / "disk.0", UID, UID)
    base = look.sha256(tree / "0")
    assert cloud.lab.tm([resize_line(vm, 50)] * 2, vm.id).success
    assert (virtual(tree / "1"), look.sha256(tree / "0")) == (50 * MIB, base)
    qemu_img("check", "-q", "-f", "qcow2", tree / "1")
    assert sorted(path.name for path in tree.iterdir()) == ["0", "1"]


# --- context -----------------------------------------------------------------------------------------------------


def context_files(cloud: Cloud, vm: Vm) -> list[str]:
    """What oned passes: context.sh, two files of a files datastore, and one of the web."""
    directory = cloud.lab.one_location / "var/vms" / str(vm.id)
    directory.mkdir(exist_ok=True)
    script = directory / "context.sh"
    script.write_text("# Context variables generated by OpenNebula\nETH0_IP='192.0.2.1'\nX='it'\\''s'\n")
    give(script, 0o640)
    first = cloud.image(lambda path: path.write_text("#!/bin/sh\n"), store=2)
    large = cloud.image(lambda path: random_data(path, 3 * MIB + 17), store=2)
    return [str(script), f"{first.path}:'init.sh'", f"{large.path}:'large one.bin'"]


def listed(path: Path, names: str = "-R") -> dict[str, str]:
    """Names of the files in a context, and their content."""
    found = subprocess.run(["isoinfo", names, "-f", "-i", path], check=True, capture_output=True, timeout=60)
    files = found.stdout.decode().splitlines()
    return {
        name: subprocess.run(
            ["isoinfo", names, "-x", name, "-i", path], check=True, capture_output=True, timeout=60
        ).stdout.hex()
        for name in files
    }


@on_both
def test_a_context(cloud: Cloud, host: str, tmp_path: Path) -> None:
    vm = new_vm(cloud, host, [])
    files = context_files(cloud, vm)
    (tmp_path / "from the web.txt").write_text("web")
    tmp_path.chmod(0o755)
    argv = ["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", tmp_path, "8099"]
    with cloud.lab.fe.popen(argv, user="root") as server:
        try:
            address = "http://127.0.0.1:8099/from%20the%20web.txt"
            wait = "import socket,time\nwhile socket.socket().connect_ex(('127.0.0.1',8099)): time.sleep(0.02)"
            cloud.lab.fe.run(["/usr/bin/python3", "-c", wait], timeout=30, check=True)
            line = f"CONTEXT fastcopy {' '.join([*files, address])} {vm.argument('disk.1')} {vm.id} {SYSTEM}"
            result = cloud.lab.tm([line], vm.id)
            assert (result.success, result.info) == (True, "-")
            missing = cloud.run(
                "context", files[0], address + "x", vm.argument("disk.1"), str(vm.id), str(SYSTEM)
            )
        finally:
            server.kill()
    missing.failed("cannot be fetched", "127.0.0.1:8099")
    path = vm.path / "disk.1"
    assert [found.name for found in vm.path.iterdir()] == ["disk.1"]
    look.is_disk(path, 0o644)
    assert inside(path) == "iso9660 CONTEXT"
    large = next(word for word in files if "large" in word).split(":")[0]
    expected = {
        "/context.sh": Path(files[0]).read_bytes().hex(),
        "/init.sh": b"#!/bin/sh\n".hex(),
        "/large one.bin": cloud.lab.fe.path(large).read_bytes().hex(),
        "/from the web.txt": b"web".hex(),
    }
    assert listed(path) == listed(path, "-J") == expected
    state = cloud.lab.one_location / "var/fastcopy"
    left = {found.name for found in state.iterdir() if not found.name.startswith("daemon-")}
    assert left <= {"manifests"}
    assert not (cloud.lab.datastores / ".isofiles").exists()
    inode = path.stat().st_ino
    Path(files[0]).write_text("NEW='1'\n")
    cloud.run("context", files[0], vm.argument("disk.1"), str(vm.id), str(SYSTEM)).succeeded()
    assert listed(path) == {"/context.sh": b"NEW='1'\n".hex()}
    assert path.stat().st_ino != inode  # a VM that runs keeps the one that it has open
    if CHECKOUT:
        other = new_vm(cloud, host, [])
        word = f"{files[1].split(':')[0]}:init.sh"
        arguments = [files[0], word]
        cloud.run("context", *arguments, vm.argument("disk.1"), str(vm.id), str(SYSTEM)).succeeded()
        done = stock(cloud, "context", *arguments, other.argument("disk.1"), str(other.id), str(SYSTEM))
        assert done.code == 0, done.stderr
        assert listed(other.path / "disk.1") == listed(path)
        assert listed(other.path / "disk.1", "-J") == listed(path, "-J")
        theirs, ours = (other.path / "disk.1").lstat(), path.lstat()
        assert (theirs.st_mode, theirs.st_uid) == (ours.st_mode, ours.st_uid)
        assert stat.S_ISREG(ours.st_mode)


def test_what_cannot_be_a_context_is_one_sentence(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    script = context_files(cloud, vm)[0]
    end = [str(vm.id), str(SYSTEM)]
    cloud.run("context", script, vm.argument("disk.0"), *end).failed("is a disk of VM", "no context may replace")
    cloud.run("context", script + ".no", vm.argument("disk.1"), *end).failed("No such file", "context.sh.no")
    cloud.run("context", f"{script}:../x", vm.argument("disk.1"), *end).failed("cannot be the name")
    cloud.run("context", vm.argument("disk.1"), *end).failed("4 or more are needed")
    Path(script).chmod(0)
    cloud.run("context", script, vm.argument("disk.1"), *end).failed("cannot be read")
    assert [path.name for path in vm.path.iterdir()] == ["disk.0"]
    assert look.same_content(vm.path / "disk.0", image.file)
