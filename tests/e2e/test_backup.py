"""Backups by OpenNebula's own scripts and its rsync datastore driver, restored by ours.

Needs a checkout of OpenNebula (FASTCOPY_OPENNEBULA): there is no equivalent of these scripts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import processes
from bench.testbed.node import UID, Node
from tests.e2e import look
from tests.e2e.cloud import SYSTEM, Cloud, Image, Outcome, Running, Vm
from tests.e2e.conftest import CHECKOUT
from tests.support import qemu_img

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not CHECKOUT, reason="needs FASTCOPY_OPENNEBULA (a source checkout of OpenNebula)"),
]

STORE = 102
SIZE = 8 * MIB


@dataclasses.dataclass
class Machine:
    """A VM that is off, with its disks on host1, and what oned knows of its backups."""

    cloud: Cloud
    vm: Vm
    disks: list[dict[str, object]]
    config: dict[str, object]
    increments: list[dict[str, object]] = dataclasses.field(default_factory=list)
    source: str = ""

    @property
    def image(self) -> int:
        """The id of the image that stands for the backups."""
        return self.vm.id + 10000

    def tell(self) -> None:
        """Let oned know the VM as it is now."""
        config = {"LAST_DATASTORE_ID": STORE, "LAST_INCREMENT_ID": len(self.increments) - 1, **self.config}
        extra = {"STATE": 3, "LCM_STATE": 70, "DEPLOY_ID": f"one-{self.vm.id}", "BACKUP_CONFIG": config}
        oned = self.cloud.lab.oned
        oned.add_vm(self.vm.id, host=self.vm.host, ds_id=SYSTEM, disks=self.disks, extra=extra)

    def arguments(self, ids: Sequence[int]) -> list[str]:
        """What the scripts of a backup are given."""
        disks = ":".join(map(str, ids))
        return [f"{self.vm.host}:{self.vm.directory}", disks, f"one-{self.vm.id}", "-", str(self.vm.id), str(SYSTEM)]

    def backup(self, ids: Sequence[int]) -> None:
        """Make one backup, as the VMM driver has it made."""
        self.tell()
        remotes, oned = self.cloud.lab.one_location / "var/remotes", self.cloud.lab.oned
        xml = oned.xml("one.vm.info", self.vm.id, False)
        assert self.step(remotes / "tm/fastcopy/prebackup", ids, xml).code == 0
        store = oned.xml("one.datastore.info", STORE, True)
        data = f"<DS_DRIVER_ACTION_DATA>{store}{xml}</DS_DRIVER_ACTION_DATA>"
        said = self.step(remotes / "datastore/rsync/backup", ids, data)
        assert said.code == 0, said.stderr
        self.source, size, _ = said.stdout.split()
        assert self.step(remotes / "tm/fastcopy/postbackup", ids, xml).code == 0
        assert not (self.vm.path / "backup").exists()
        if self.config["MODE"] == "INCREMENT":
            kind = "INCREMENT" if self.increments else "FULL"
            entry = {"ID": len(self.increments), "TYPE": kind, "SOURCE": self.source, "SIZE": size}
            self.increments.append(entry)
        extra = {"VMS": [self.vm.id], "INCREMENTS": self.increments}
        oned.add_image(self.image, STORE, self.source, int(size), type="BACKUP", extra=extra)

    def step(self, program: Path, ids: Sequence[int], text: str) -> Outcome:
        done = self.cloud.lab.fe.run([program, *self.arguments(ids)], input=text.encode(), timeout=120)
        outcome = Outcome(done.returncode, done.stderr.decode(), done.stdout.decode())
        print(program, outcome)
        return outcome

    def restore(self, increment: int = -1, disk: int = -1) -> Outcome:
        """Restore what is wanted of the backup."""
        self.tell()
        target = f"{self.vm.host}:{self.vm.directory}"
        return self.cloud.run("restore", target, str(self.vm.id), str(self.image), str(increment), str(disk))

    def content(self, disk: int) -> str:
        """The digest of what the guest sees of a disk.  On the host: stock scripts write whole paths into chains."""
        format, raw = str(self.disks[disk]["FORMAT"]), f"{self.vm.directory}/content.raw"
        self.on_host("qemu-img", "convert", "-f", format, "-O", "raw", f"{self.vm.directory}/disk.{disk}", raw)
        try:
            return look.sha256(self.vm.path / "content.raw")
        finally:
            (self.vm.path / "content.raw").unlink()

    def write(self, disk: int, pattern: int, place: int) -> None:
        """Let the guest write half a MiB."""
        format, command = str(self.disks[disk]["FORMAT"]), f"write -P {pattern} {place}M 512k"
        self.on_host("qemu-io", "-f", format, "-c", command, f"{self.vm.directory}/disk.{disk}")

    def on_host(self, *argv: str) -> None:
        """Run a program as oneadmin on the VM's host."""
        self.cloud.node(self.vm).run(argv, check=True)


def qcow2(path: Path) -> None:
    raw = path.with_name(".raw")
    random_data(raw, SIZE)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()


def machine(cloud: Cloud, config: dict[str, object], *disks: tuple[str, bool]) -> Machine:
    """A VM with disks of these formats, persistent or not."""
    host_can_run_ruby(cloud.lab.hosts["host1"])
    template = {"RSYNC_USER": "oneadmin", "RSYNC_HOST": "fe"}
    cloud.lab.oned.add_datastore(STORE, "backups", type="BACKUP", tm_mad="-", template=template, ds_mad="rsync")
    images: list[Image] = []
    described: list[dict[str, object]] = []
    for format, persistent in disks:
        write = qcow2 if format == "qcow2" else lambda path: random_data(path, SIZE)
        images.append(cloud.image(write, format=format))
        size = {"SIZE": SIZE // MIB, "ORIGINAL_SIZE": SIZE // MIB}
        kind = {"FORMAT": format, "DRIVER": format, "SAVE": "YES" if persistent else "NO"}
        described.append({"IMAGE_ID": images[-1].id, **kind, **size})
    made = Machine(cloud, cloud.vm(images[0]), described, config)
    made.tell()
    for number, image in enumerate(images):
        cloud.clone(image, made.vm, f"disk.{number}").succeeded()
    return made


def host_can_run_ruby(host: Node) -> None:
    """What OpenNebula's packages see to: that its Ruby programs on a host find the gems.  In a checkout they ask a file
    that only a front-end has."""
    library = host.files / "tmp/one-ruby"
    library.mkdir(exist_ok=True)
    (library / "load_opennebula_paths.rb").touch()
    (host.files / "home/.bashrc").write_text("export RUBYLIB=/var/tmp/one-ruby\n")


def test_full_backups_of_all_kinds_of_disks_are_restored(cloud: Cloud) -> None:
    made = machine(cloud, {"MODE": "FULL"}, ("qcow2", True), ("qcow2", False), ("raw", True), ("raw", False))
    everything = range(4)
    before = [made.content(disk) for disk in everything]
    made.backup(everything)
    for disk in everything:
        made.write(disk, 0x5A, 1)
    changed = [made.content(disk) for disk in everything]
    assert not set(changed) & set(before)

    outcome = made.restore(disk=2).succeeded()
    assert [made.content(disk) for disk in everything] == [*changed[:2], before[2], changed[3]]
    assert len(outcome.log) == 1 and "INFO: restore: " in outcome.log[0]
    made.restore().succeeded()
    assert [made.content(disk) for disk in everything] == before
    for disk in (0, 1):
        assert os.readlink(made.vm.path / f"disk.{disk}") == f"disk.{disk}.snap/0"
    assert (made.vm.path / "disk.3").stat().st_size == SIZE
    assert look.leftovers(made.vm.path) == []

    made.disks[1]["SIZE"] = made.disks[3]["SIZE"] = 2 * SIZE // MIB  # grown since the backup
    made.restore().succeeded()
    assert (made.vm.path / "disk.3").stat().st_size == 2 * SIZE
    assert f"virtual size: {2 * SIZE // MIB} MiB" in qemu_img("info", "-f", "qcow2", made.vm.path / "disk.1")


@pytest.mark.parametrize("mode", ["CBT", "SNAPSHOT"])
def test_increments_are_restored(cloud: Cloud, mode: str) -> None:
    config: dict[str, object] = {"MODE": "INCREMENT", "INCREMENT_MODE": mode}
    made = machine(cloud, config, ("qcow2", True), ("qcow2", False))
    both = range(2)
    states = []
    for increment in range(3):
        if increment:
            for disk in both:
                made.write(disk, 0x50 + increment, increment)
        states.append([made.content(disk) for disk in both])
        made.backup(both)
        assert [made.content(disk) for disk in both] == states[-1]
    for disk in both:
        made.write(disk, 0x60, 4)
    for increment in (1, 0, 2):
        made.restore(increment).succeeded()
        assert [made.content(disk) for disk in both] == states[increment]
        for disk in both:
            assert os.listdir(made.vm.path / f"disk.{disk}.snap") == ["0"]
            assert "bitmaps" not in qemu_img("info", "-f", "qcow2", made.vm.path / f"disk.{disk}")
    made.increments.clear()  # as oned does after a restore
    made.backup(both)
    made.write(0, 0x77, 2)
    made.restore().succeeded()
    assert [made.content(disk) for disk in both] == states[2]


def test_what_cannot_be_restored_leaves_the_disks_alone(cloud: Cloud) -> None:
    made = machine(cloud, {"MODE": "FULL"}, ("qcow2", True), ("raw", False))
    made.backup(range(2))
    made.write(0, 0x5A, 1)
    before = [made.content(disk) for disk in range(2)]
    where = f"image {made.image}"
    made.restore(disk=5).failed(f"there is no disk 5 in the backup, {where}")
    stranger = cloud.vm(None)
    target = f"host1:{stranger.directory}"
    cloud.run("restore", target, str(stranger.id), str(made.image), "-1", "-1").failed(f"{where} is no backup of VM")
    target = f"host1:{made.vm.directory}"
    cloud.run("restore", target, str(made.vm.id), "99999", "-1", "-1").failed("one.image.info")
    cloud.run("restore", f"host1:{cloud.system}/x", "1", "2", "-1", "-1").failed("not the directory of a VM")

    extra = {"VMS": [made.vm.id]}
    cloud.lab.oned.add_image(made.image, STORE, made.source, 10**8, type="BACKUP", extra=extra)
    sizes = [disk.pop("SIZE") for disk in made.disks]
    for disk in made.disks:
        disk["SIZE"] = 10**8
    state = cloud.lab.one_location / "var/fastcopy"
    made.restore().failed(f"the backup, {where}, fetched to {state}, needs {2 * 10**8} MiB and the file system has")
    for disk, size in zip(made.disks, sizes):
        disk["SIZE"] = size

    kept = cloud.lab.fe.path(cloud.lab.datastores / f"{STORE}/{made.vm.id}/{made.source}")
    file = kept / "disk.1.0"
    file.write_bytes(file.read_bytes()[:70000])  # after disk 0 was fetched
    made.restore().failed(f"disk 1 of the backup, {where}", "damaged")
    file.write_bytes(b"no image at all")
    made.restore().failed(f"disk 1 of the backup, {where}", "no qcow2 image")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", file, "8M")
    os.chown(file, UID, UID)
    made.restore().failed("/etc/passwd")
    file.unlink()
    file.mkdir()
    made.restore(disk=1).failed("there is no disk 1")
    assert [made.content(disk) for disk in range(2)] == before
    assert look.leftovers(made.vm.path) == []


def test_a_restore_that_is_ended_has_fetched_nothing_that_stays(cloud: Cloud) -> None:
    made = machine(cloud, {"MODE": "FULL"}, ("raw", False))
    made.backup([0])
    before = made.content(0)
    state = cloud.lab.one_location / "var/fastcopy"
    free: Optional[Running] = None
    downloader = cloud.lab.one_location / "var/remotes/datastore/downloader.sh"
    whole = downloader.read_text()
    downloader.write_text("#!/bin/sh\nhead -c 1000000 /dev/zero\nsleep 300\n")
    try:
        made.tell()
        words = [f"host1:{made.vm.directory}", str(made.vm.id), str(made.image), "-1", "-1"]
        free = cloud.start("restore", words, FASTCOPY_DAEMON="no")
        processes.wait_for(lambda: cloud.lab.fe.processes("sleep") != [], 60, "the download to begin")
        free.process.terminate()
        free.outcome().failed("restore was ended by a signal")
        assert cloud.lab.fe.processes("sleep") == []
    finally:
        downloader.write_text(whole)
    assert made.content(0) == before
    assert [path.name for path in state.iterdir() if path.is_file() and path.stat().st_size > MIB] == []
