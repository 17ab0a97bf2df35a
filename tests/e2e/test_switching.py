"""A `local` datastore that is in use is switched to this driver, and back: every byte of every VM stays as it must be.

oned writes down a driver for each disk when its VM is created, and one for the directory whenever the VM is placed on a
host; switching a datastore changes neither. So VMs of both drivers live side by side, and some have both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.testbed import Lab
from bench.testbed.tm import Transfers
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, SYSTEM, Cloud
from tests.e2e.conftest import CHECKOUT, lab_of_three
from tests.e2e.test_life_cycle import (
    EPILOG_STOP,
    EPILOG_UNDEPLOY,
    FE,
    FIRST,
    PROLOG_MIGRATE_POWEROFF,
    PROLOG_RESUME,
    SAVEAS_POWEROFF,
    SECOND,
    Disk,
    Life,
    assert_brought_back,
    assert_same,
    reborn,
    seen,
    taken_over,
    variant,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not CHECKOUT, reason="needs FASTCOPY_OPENNEBULA: the stock driver of a source checkout"),
]

LOCAL, OURS = "local", "fastcopy"
KINDS = (("raw", True), ("qcow2", True), ("raw", False), ("qcow2", False))


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[Lab]:
    """A lab of its own, as its datastores change."""
    with lab_of_three() as lab:
        place = lab.one_location / "var/remotes/etc/datastore"
        place.mkdir(exist_ok=True)
        (place / "datastore.conf").write_text('SUPPORTED_FS="ext4"\n')  # the stock driver makes no others
        yield lab


class Household:
    """VMs, and the driver of the datastores in which new ones are made."""

    def __init__(self, cloud: Cloud, transfers: Transfers, scratch: Path) -> None:
        self.cloud, self._transfers, self._scratch = cloud, transfers, scratch
        self.driver = ""
        self.vms: list[Life] = []

    def switch(self, driver: str) -> None:
        """What `onedatastore update` does with both datastores."""
        self.driver = driver
        self.cloud.lab.oned.add_datastore(SYSTEM, "system", type="SYSTEM", tm_mad=driver)
        self.cloud.lab.oned.add_datastore(DEFAULT, "default", tm_mad=driver)
        self.check(f"switch to {driver}")

    def create(self, disks: Sequence[Disk], host: str) -> Life:
        """A VM of the datastores' driver."""
        for disk in disks:
            disk.driver = self.driver
            if disk.image and not disk.model:
                disk.model[:] = seen(disk.image.file, disk.format, self._scratch)
        life = Life(self.cloud, self._transfers, disks, self._scratch)
        life.driver = self.driver
        life.prolog(host)
        life.born()
        life.write()
        self.vms.append(life)
        self.check("prolog")
        return life

    def place(self, life: Life, state: int, host: str) -> None:
        """Move a VM: to a host with a new history record, which names the datastore's driver."""
        if host != FE:
            life.driver = self.driver
        life.move(state, host)
        self.check("move")
        if host != FE:
            life.write()

    def check(self, step: str) -> None:
        """All disks of all VMs."""
        for life in self.vms:
            life.check(step)


def keep(life: Life) -> None:
    """Take a snapshot, with the next number that oned has not used, and go on."""
    for disk in snapshots_of(life):
        life.snapshot(max(disk.snapshots, default=-1) + 1, [disk])
    life.write()


def digests(life: Life) -> dict[str, str]:
    """Of a VM's images, by path."""
    return {disk.image.path: look.sha256(disk.image.file) for disk in life.disks if disk.image}


def snapshots_of(life: Life) -> list[Disk]:
    """Disks that are snapshotted here: `local` does not bring the snapshots of a raw disk back."""
    return [disk for disk in life.disks if disk.image and not (disk.format == "raw" and disk.persistent)]


def test_a_datastore_that_is_switched_and_switched_back(cloud: Cloud, tmp_path: Path) -> None:
    with cloud.lab.transfers() as transfers:
        house = Household(cloud, transfers, tmp_path)
        house.switch(LOCAL)
        elders = [house.create(variant(cloud, KINDS, 300 + 10 * number, "qcow2"), FIRST) for number in range(3)]
        originals = {path: digest for life in elders for path, digest in digests(life).items()}
        for life in elders:
            keep(life)

        house.switch(OURS)
        ended, moved, stopped = elders
        for life in elders:  # restarted: nothing moves, and their disks have their old driver
            life.write()
            keep(life)
        house.check("snapshots")
        house.place(moved, PROLOG_MIGRATE_POWEROFF, SECOND)
        house.place(stopped, EPILOG_STOP, FE)
        house.place(stopped, PROLOG_RESUME, SECOND)
        for life in (moved, stopped):
            assert life.driver == OURS
            life.revert(0, snapshots_of(life))
            life.write()
            life.resize([disk for disk in life.disks if disk.format == "raw" and disk.image])  # stock fails on qcow2
            life.write()
        house.check("life with both drivers")
        young = house.create([*variant(cloud, KINDS, 400, "raw")], FIRST)
        originals |= digests(young)
        keep(young)
        young.resize([disk for disk in young.disks if disk.image])
        young.write()
        saved = [young.save_as(SAVEAS_POWEROFF, disk) for disk in young.disks if disk.image]
        epilog(house, ended, originals, tmp_path)
        again = house.create([reborn(cloud, ended.disks[0], 0), reborn(cloud, ended.disks[1], 1)], SECOND)
        house.place(again, PROLOG_MIGRATE_POWEROFF, FIRST)
        keep(again)
        house.check("second life")

        house.switch(LOCAL)
        for life in (young, again, moved):
            life.write()
            keep(life)
        house.check("snapshots after the way back")
        house.place(young, PROLOG_MIGRATE_POWEROFF, SECOND)
        house.place(moved, EPILOG_UNDEPLOY, FE)
        house.place(moved, PROLOG_RESUME, FIRST)
        house.place(again, PROLOG_MIGRATE_POWEROFF, SECOND)
        for life in (young, moved):
            life.revert(0, snapshots_of(life)[:1])
            life.write()
        house.check("life after the way back")
        heir = house.create([taken_over(cloud, saved[0], 0), taken_over(cloud, saved[1], 1)], FIRST)
        for file, format, content in saved:
            assert_same(seen(file, format, tmp_path), content, file.name)

        house.switch(OURS)  # what `local` has moved and written is nothing that this driver remembers wrongly
        house.place(moved, PROLOG_MIGRATE_POWEROFF, SECOND)
        house.place(again, PROLOG_MIGRATE_POWEROFF, FIRST)
        house.place(heir, PROLOG_MIGRATE_POWEROFF, SECOND)
        for life in list(house.vms):
            epilog(house, life, originals, tmp_path)


def epilog(house: Household, life: Life, originals: dict[str, str], scratch: Path) -> None:
    """A VM's end: its persistent images hold what it left, the others what they held."""
    life.epilog()
    house.vms.remove(life)
    house.check("epilog of another VM")
    for disk in life.disks:
        if disk.image and (disk.persistent or disk.image.path in originals):
            assert_brought_back(disk, originals.get(disk.image.path, ""), scratch)
