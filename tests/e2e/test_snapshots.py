"""Snapshots of disks on hosts on XFS, btrfs and ext4: a life with them, by this driver and by the stock `local` one.

What `local` leaves is written down as `Listing`.  Where FASTCOPY_OPENNEBULA names a checkout of OpenNebula, its own
scripts go through the same life, so that what is written down is true; and the two drivers take turns on one disk.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Optional

import pytest

from bench.images.edge import MIB
from tests.e2e import look
from tests.e2e.cloud import SYSTEM, Cloud, Outcome, Running, Vm
from tests.e2e.conftest import CHECKOUT
from tests.e2e.test_bad_hosts import filled
from tests.e2e.test_qcow2 import check, image_of, on_every_fs, qemu_io, virtual
from tests.support import qemu_img

pytestmark = pytest.mark.root

Listing = dict[str, Optional[str]]
"""Files of a disk's tree, and what each rests on; "->" is what the disk's link says (None: it is a file)."""

DRIVERS = ["fastcopy", *(["local", "by turns"] if CHECKOUT else [])]


class Life:
    """A disk, and what happens to it; *driver* does it."""

    def __init__(self, cloud: Cloud, vm: Vm, driver: str) -> None:
        self.cloud, self.vm = cloud, vm
        self.drivers = itertools.cycle(["fastcopy", "local"] if driver == "by turns" else [driver])

    def snap(self, action: str, number: int) -> Outcome:
        """One action on a snapshot."""
        return snap(self.cloud, self.vm, action, number, next(self.drivers))

    def put(self, value: int, at: int) -> None:
        """Write as the guest would, at a place of its own and at one that all share."""
        for place in (at, 11):
            self.write(value, place)

    def write(self, value: int, place: int) -> None:
        """Fill a MiB but for its last quarter."""
        disk = active(self.vm)
        if os.path.islink(self.vm.path / "disk.0"):
            qemu_io(disk, f"write -q -P {value} {place}M 768k")
        else:
            with disk.open("r+b") as file:
                os.pwrite(file.fileno(), bytes([value]) * (768 * 1024), place * MIB)

    def seen(self, name: str = "") -> list[int]:
        """What a guest sees at places 8 to 11, of the disk or of a file in its tree."""
        file = self.vm.path / "disk.0.snap" / name if name else active(self.vm)
        if file.read_bytes()[:4] != b"QFI\xfb":
            return [file.read_bytes()[place * MIB] for place in range(8, 12)]
        raw = self.vm.path.parent / "seen"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", file, raw)
        data = raw.read_bytes()
        raw.unlink()
        return [data[place * MIB] for place in range(8, 12)]


def active(vm: Vm) -> Path:
    """The disk's file."""
    link = vm.path / "disk.0"
    return vm.path / os.readlink(link) if link.is_symlink() else link


def snap(cloud: Cloud, vm: Vm, action: str, number: int, driver: str = "fastcopy") -> Outcome:
    """Run the entry point of a snapshot action."""
    entry = cloud.lab.one_location / "var/remotes/tm" / driver / f"snap_{action}"
    argv = [entry, vm.argument(), str(number), str(vm.id), str(SYSTEM)]
    done = Running(cloud.lab.fe.popen(argv, env=cloud.environment), frozenset([str(vm.id)])).outcome()
    return done if driver == "fastcopy" else Outcome(done.code, "" if done.code == 0 else done.stderr, "")


def listing(vm: Vm) -> Listing:
    """See `Listing`; every qcow2 file is found sound, and nothing else lies about."""
    link = vm.path / "disk.0"
    found: Listing = {"->": os.readlink(link) if link.is_symlink() else None}
    for path in sorted((vm.path / "disk.0.snap").iterdir()):
        found[path.name] = None
        if link.is_symlink():
            check(path)
            found[path.name] = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", path)).get(
                "backing-filename"
            )
    assert sorted(path.name for path in vm.path.iterdir()) == ["disk.0", "disk.0.snap"]
    return found


def a_disk(cloud: Cloud, host: str, format: str) -> Vm:
    """A VM that was deployed by this driver and is powered off."""
    if format == "qcow2":
        image = image_of(cloud, "plain")
    else:
        image = cloud.image(lambda path: look_like_a_disk(path), mode=0o644)
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    cloud.wait_for_quiet(host)
    return vm


def look_like_a_disk(path: Path) -> None:
    """A sparse raw image of 12 MiB."""
    with path.open("xb") as file:
        file.truncate(12 * MIB)
        os.pwrite(file.fileno(), os.urandom(MIB), 0)


@on_every_fs
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_life_of_a_qcow2_disk(cloud: Cloud, host: str, driver: str) -> None:
    life = Life(cloud, a_disk(cloud, host, "qcow2"), driver)
    life.write(7, 11)
    life.put(1, 8)
    life.snap("create", 0).succeeded()
    assert listing(life.vm) == {"->": "disk.0.snap/1", "0": None, "1": "0"}
    life.put(2, 9)
    life.snap("create", 1).succeeded()
    life.put(3, 10)
    assert listing(life.vm) == {"->": "disk.0.snap/2", "0": None, "1": "0", "2": "1"}
    assert [life.seen(name)[0] for name in "012"] == [1, 1, 1]
    assert life.seen() == [1, 2, 3, 3] and life.seen("1")[3] == 2

    life.snap("revert", 0).succeeded()
    assert listing(life.vm) == {"->": "disk.0.snap/2", "0": None, "1": "0", "2": "0"}
    assert life.seen()[0] == 1 and life.seen()[3] == 1
    life.put(4, 10)
    life.snap("create", 2).succeeded()
    life.put(5, 9)
    assert listing(life.vm) == {"->": "disk.0.snap/3", "0": None, "1": "0", "2": "0", "3": "2"}
    assert life.seen() == [1, 5, 4, 5]

    life.snap("delete", 1).succeeded()
    assert listing(life.vm) == {"->": "disk.0.snap/3", "0": None, "2": "0", "3": "2"}
    life.snap("delete", 2).succeeded()
    assert listing(life.vm) == {"->": "disk.0.snap/3", "0": None, "3": "0"}
    life.snap("delete", 0).succeeded()
    assert listing(life.vm) == {"->": "disk.0.snap/3", "3": None}
    assert life.seen() == [1, 5, 4, 5]
    assert virtual(active(life.vm)) == 12 * MIB
    cloud.delete(life.vm).succeeded()
    assert not life.vm.path.exists()


@on_every_fs
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_life_of_a_raw_disk(cloud: Cloud, host: str, driver: str) -> None:
    life = Life(cloud, a_disk(cloud, host, "raw"), driver)
    life.put(1, 8)
    life.snap("create", 0).succeeded()
    life.put(2, 9)
    life.snap("create", 1).succeeded()
    life.put(3, 10)
    assert listing(life.vm) == {"->": None, "0": None, "1": None}
    assert (life.seen("0"), life.seen("1"), life.seen()) == ([1, 0, 0, 1], [1, 2, 0, 2], [1, 2, 3, 3])
    if driver == "fastcopy":
        snapshot, shares = life.vm.path / "disk.0.snap/1", host != "host3"
        assert (look.shared_bytes(snapshot) > 0) == shares
        assert look.allocated(snapshot) < 6 * MIB
    life.snap("revert", 0).succeeded()
    assert life.seen() == [1, 0, 0, 1]
    look.is_disk(life.vm.path / "disk.0", 0o644)
    life.snap("delete", 0).succeeded()
    life.snap("delete", 1).succeeded()
    assert listing(life.vm) == {"->": None}
    assert life.seen() == [1, 0, 0, 1]


@on_every_fs
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_full_host_keeps_the_disk(cloud: Cloud, host: str, format: str) -> None:
    """Going back begins with a new disk, not with the old one's end."""
    life = Life(cloud, a_disk(cloud, host, format), "fastcopy")
    life.put(1, 8)
    life.snap("create", 0).succeeded()
    life.put(2, 9)
    before, content = listing(life.vm), look.sha256(active(life.vm))
    with filled(life.vm.path.parent, 64 * 1024):
        done = life.snap("revert", 0)
        if done.code:  # where blocks are shared, a raw disk needs no room
            done.failed("disk.0", "go back to snapshot 0")
            assert listing(life.vm) == before and look.sha256(active(life.vm)) == content
        else:
            assert format == "raw" and host != "host3"
    life.snap("revert", 0).succeeded()
    assert life.seen()[0] == 1 and life.seen()[3] == 1


def test_what_cannot_be_done_is_one_sentence(cloud: Cloud) -> None:
    vm = a_disk(cloud, "host1", "qcow2")
    snap(cloud, vm, "revert", 3).failed("cannot go back to snapshot 3", "has no snapshot 3")
    snap(cloud, vm, "delete", 0).failed("cannot remove snapshot 0", "is the disk itself")
    snap(cloud, vm, "create_live", 0).failed("does not say what VM")
    argv = [vm.argument(), "x", str(vm.id), str(SYSTEM)]
    cloud.run("snap_create", *argv).failed("'x' is not the id of a snapshot")
    cloud.run("snap_create", vm.argument("kernel"), "0", *argv[2:]).failed("kernel has no snapshots")
    cloud.run("snap_create", vm.argument("disk.7"), "0", *argv[2:]).failed("no disk 7")
    cloud.run("snap_create", *argv[:1]).failed("SNAPSHOT_ID")
    assert [path.name for path in (vm.path / "disk.0.snap").iterdir()] == ["0"]


def test_a_running_vm_on_a_host_without_libvirt(cloud: Cloud) -> None:
    image = image_of(cloud, "plain")
    vm = cloud.vm(image, "host1", TARGET="vda")
    cloud.clone(image, vm).succeeded()
    disks, runs = [{"IMAGE_ID": image.id, "TARGET": "vda"}], {"LCM_STATE": 57, "DEPLOY_ID": "one-42"}
    cloud.lab.oned.add_vm(vm.id, host=vm.host, ds_id=SYSTEM, disks=disks, extra=runs)
    snap(cloud, vm, "create_live", 0).failed("make snapshot 0", "virsh")
    assert [path.name for path in (vm.path / "disk.0.snap").iterdir()] == ["0"]
    assert os.readlink(vm.path / "disk.0") == "disk.0.snap/0"
