"""A system datastore that oned has just made: its directory is on no host, and whoever brings something makes it."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.images.edge import MIB
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.cloud import HOSTS, Cloud, Vm, clone_arguments
from tests.e2e.test_command import doctor, fastcopy

pytestmark = pytest.mark.root

NEW = 111
XFS, BTRFS, EXT4 = HOSTS["xfs"], HOSTS["btrfs"], HOSTS["ext4"]


@pytest.fixture
def new(cloud: Cloud) -> Iterator[Cloud]:
    cloud.lab.oned.add_datastore(NEW, "new", type="SYSTEM")
    for name in (*HOSTS.values(), "fe"):
        shutil.rmtree(directory(cloud, name))
    try:
        yield cloud
    finally:
        cloud.lab.oned.remove_datastore(NEW)
        for name in (*HOSTS.values(), "fe"):
            shutil.rmtree(directory(cloud, name), ignore_errors=True)


def directory(cloud: Cloud, host: str) -> Path:
    return cloud.lab.node(host).path(cloud.lab.datastores / str(NEW))


def a_vm(cloud: Cloud, host: str, *disks: dict[str, object]) -> Vm:
    number = cloud.vm(None, host).id
    cloud.lab.oned.add_vm(number, host=host, ds_id=NEW, disks=disks)
    return Vm(number, host, f"{cloud.lab.datastores}/{NEW}/{number}", directory(cloud, host) / str(number))


def test_the_first_vm_makes_its_directory(new: Cloud) -> None:
    spaces = [check["sentence"] for check in doctor(new, well=True) if check["name"] == "space"]
    assert sum(f"/{NEW} (which the first VM makes)" in sentence for sentence in spaces) == len(HOSTS)
    fastcopy(new, "cache", "ls", XFS).well()  # other datastores may have a cache
    fastcopy(new, "cache", "ls", f"{XFS}:{NEW}").badly(f"{NEW} is not on {XFS} yet", "the first VM")
    assert not directory(new, XFS).exists()  # looking makes nothing

    image = new.known("odd")
    vm = a_vm(new, XFS, {"IMAGE_ID": image.id})
    new.run("delete", f"{XFS}:{vm.directory}", str(vm.id), str(NEW))
    assert not directory(new, XFS).exists()  # nor does whoever brings nothing
    new.run("clone", *clone_arguments(image, vm)).succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)
    made = directory(new, XFS)
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (UID, 0o755)
    assert (made / ".monitor").read_text() == "fastcopy\n"

    for target in (BTRFS, "fe"):
        before = vm.path
        if target != "fe":
            new.lab.oned.move_vm(vm.id, target)
        places = f"{vm.host}:{vm.directory}", f"{target}:{vm.directory}"
        new.run("mv", *places, str(vm.id), str(NEW)).succeeded()
        vm = Vm(vm.id, target, vm.directory, directory(new, target) / str(vm.id))
        assert look.same_content(vm.path / "disk.0", image.file) and not before.exists()


def test_a_volatile_disk_and_a_live_migration_make_it_too(new: Cloud) -> None:
    vm = a_vm(new, XFS, {"TYPE": "swap", "SIZE": 8})
    new.run("mkswap", "8", vm.argument(), str(vm.id), str(NEW)).succeeded()
    assert (vm.path / "disk.0").stat().st_size == 8 * MIB
    new.lab.oned.move_vm(vm.id, EXT4)
    entry = new.lab.one_location / "var/remotes/tm/fastcopy/premigrate"
    xml = base64.b64encode(b"<VM><TEMPLATE/></VM>")
    done = new.lab.fe.run([entry, XFS, EXT4, vm.directory, str(vm.id), str(NEW)], input=xml)
    assert done.returncode == 0, done.stderr
    assert (directory(new, EXT4) / ".monitor").read_text() == "fastcopy\n"
