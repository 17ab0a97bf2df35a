"""Whole lives of VMs: prolog, guest, snapshots, resize, stop, resume elsewhere, migration, save-as, undeploy, epilog.

Scripts go through one_tm, in oned's words, with the datastore that oned names; a context is asked for as the VMM asks.
What every disk must hold is kept in the test, and all of it is compared after every step.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Iterator, Optional

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import Lab
from bench.testbed.node import UID
from bench.testbed.tm import Transfers
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, HOSTS, SYSTEM, Cloud, Image, give
from tests.e2e.conftest import lab_of_three
from tests.e2e.test_qcow2 import check, qemu_io
from tests.e2e.test_volatile import context_files, inside, listed
from tests.support import qemu_img
from tm_fastcopy.core.listing import RECEIPT

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[Lab]:
    """A lab of its own: a whole life meets nothing that other tests have left."""
    with lab_of_three() as lab:
        yield lab

SIZE = 8  # MiB of an image
GROWN = 11  # MiB after the resize
PIECE = 192 * 1024  # bytes that a guest writes at a place
FE, FIRST, SECOND = "fe", HOSTS["xfs"], HOSTS["ext4"]

# oned's LCM_STATE
PROLOG, PROLOG_MIGRATE_POWEROFF, PROLOG_RESUME, EPILOG_STOP, EPILOG, EPILOG_UNDEPLOY = 1, 43, 9, 10, 11, 30
SAVEAS_POWEROFF, SNAPSHOT, REVERT, DELETE_SNAPSHOT, RESIZE, SAVEAS_UNDEPLOYED = 27, 51, 52, 53, 63, 67
BOOT = 2


@dataclasses.dataclass
class Disk:
    """A disk: what it is to oned, and (`model`, `snapshots`) the bytes that a guest must find in it.

    `driver` is what oned wrote down for it when its VM was created; disks without an image have their VM's.
    """

    number: int
    format: str
    image: Optional[Image] = None
    persistent: bool = False
    swap: bool = False
    model: bytearray = dataclasses.field(default_factory=bytearray)
    snapshots: dict[int, bytes] = dataclasses.field(default_factory=dict)
    driver: str = "fastcopy"

    @property
    def name(self) -> str:
        return f"disk.{self.number}"

    @property
    def attributes(self) -> dict[str, object]:
        """What the VM's template says of it."""
        if self.image:
            return {"IMAGE_ID": self.image.id}
        if self.swap:
            return {"TYPE": "swap", "SIZE": SIZE}
        return {"TYPE": "fs", "SIZE": 2 * SIZE, "FORMAT": self.format, "FS": "ext4"}

    @property
    def store(self) -> int:
        """The datastore that oned names when it speaks of this disk."""
        return DEFAULT if self.image else SYSTEM

    def file(self, directory: Path, snapshot: Optional[int] = None) -> Path:
        """The file in which the guest's bytes are."""
        link = directory / self.name
        if snapshot is not None:
            return directory / f"{self.name}.snap" / str(snapshot)
        return directory / os.readlink(link) if link.is_symlink() else link


def system(path: Path, format: str, seed: int) -> None:
    """Write an image of `SIZE` MiB: data, and a hole at its end."""
    raw = path.with_name(".raw")
    random_data(raw, 3 * MIB, seed)
    os.truncate(raw, SIZE * MIB)
    if format == "raw":
        raw.rename(path)
        return
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()


def seen(file: Path, format: str, scratch: Path) -> bytes:
    """What a guest finds in a disk or an image."""
    if format == "raw":
        return file.read_bytes()
    check(file)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", file, scratch / "seen")
    return (scratch / "seen").read_bytes()


def assert_same(got: bytes, wanted: bytes, what: str) -> None:
    """Compare all bytes; a failure names the MiB that differ."""
    assert len(got) == len(wanted), what
    if got != wanted:
        places = range(0, len(wanted), MIB)
        wrong = [at // MIB for at in places if got[at : at + MIB] != wanted[at : at + MIB]]
        raise AssertionError(f"{what}: {wrong} MiB")


class Life:
    """A VM's life.  `where` is the node on which its directory is, `driver` the one of its last history record."""

    def __init__(self, cloud: Cloud, transfers: Transfers, disks: Sequence[Disk], scratch: Path) -> None:
        self.cloud, self.disks, self.scratch = cloud, disks, scratch
        self._transfers = transfers
        self._writes = 0
        self._files: dict[str, bytes] = {}
        self.where = FIRST
        self.driver = "fastcopy"
        self.vm = cloud.vm(None, FIRST)
        cloud.lab.oned.add_vm(self.vm.id, host=FIRST, ds_id=SYSTEM, disks=[disk.attributes for disk in disks])

    # -- what oned does --------------------------------------------------------------------------------------

    def run(self, state: int, *lines: str) -> None:
        """Run a transfer script in a state of the VM."""
        self.cloud.lab.oned.set_vm(self.vm.id, LCM_STATE=state)
        result = self._transfers.run(list(lines), self.vm.id)
        assert (result.success, result.info) == (True, "-"), (lines, result)

    def _driver(self, disk: Disk) -> str:
        """The driver that oned names for a disk."""
        return disk.driver if disk.image else self.driver

    def at(self, name: str = "", where: str = "") -> str:
        """A file of the VM, or its directory, as an argument."""
        return f"{where or self.where}:{self.vm.directory}" + (f"/{name}" if name else "")

    def prolog(self, host: str) -> None:
        """Have all disks made on a host."""
        self.where, lines = host, []
        for disk in self.disks:
            to = f"{self.at(disk.name)} {self.vm.id} {disk.store}"
            if disk.image:
                lines.append(f"{'LN' if disk.persistent else 'CLONE'} {disk.driver} fe:{disk.image.path} {to}")
            elif disk.swap:
                lines.append(f"MKSWAP {self.driver} {SIZE} {to}")
            else:
                lines.append(f"MKIMAGE {self.driver} {2 * SIZE} {disk.format} {to}")
        self.run(PROLOG, *lines)

    def context(self) -> None:
        """Have the context made, as the VMM does when it is about to start the VM."""
        self.cloud.lab.oned.set_vm(self.vm.id, LCM_STATE=BOOT)
        files, name = context_files(self.cloud, self.vm), f"disk.{len(self.disks)}"
        self.cloud.run("context", *files, self.at(name), str(self.vm.id), str(SYSTEM)).succeeded()
        assert sorted(listed(self.path / name)) == ["/context.sh", "/init.sh", "/large one.bin"]
        self._files[name] = (self.path / name).read_bytes()

    def each(self, state: int, action: str, end: str, disks: Sequence[Disk]) -> None:
        """Have an action done on each of some disks, in a script of its own."""
        for disk in disks:
            self.run(state, f"{action} {self._driver(disk)} {self.at(disk.name)} {end} {self.vm.id} {disk.store}")

    def snapshot(self, number: int, disks: Sequence[Disk]) -> None:
        """Keep the disks as they are."""
        self.each(SNAPSHOT, "SNAP_CREATE", str(number), disks)
        for disk in disks:
            disk.snapshots[number] = bytes(disk.model)

    def revert(self, number: int, disks: Sequence[Disk]) -> None:
        """Have the disks what they were; oned notes that they are as large as they were then."""
        self.each(REVERT, "SNAP_REVERT", str(number), disks)
        for disk in disks:
            disk.model[:] = disk.snapshots[number]
        self._note_sizes()

    def forget(self, number: int, disks: Sequence[Disk]) -> None:
        """Remove a snapshot."""
        self.each(DELETE_SNAPSHOT, "SNAP_DELETE", str(number), disks)
        for disk in disks:
            del disk.snapshots[number]

    def resize(self, disks: Sequence[Disk]) -> None:
        """Have the disks made larger."""
        for disk in disks:
            disk.model.extend(bytes(GROWN * MIB - len(disk.model)))
        self._note_sizes()
        self.each(RESIZE, "RESIZE", str(GROWN), disks)

    def _note_sizes(self) -> None:
        known = self.cloud.lab.oned.state()["vms"][str(self.vm.id)]["DISKS"]
        sizes = {str(disk.number): str(len(disk.model) // MIB) for disk in self.disks}
        self.cloud.lab.oned.set_vm(self.vm.id, DISKS=[{**disk, "SIZE": sizes[disk["DISK_ID"]]} for disk in known])

    def move(self, state: int, target: str) -> None:
        """Have the directory moved; nothing of it may be left where it was."""
        lines = [
            f"MV {self._driver(disk)} {self.at(disk.name)} {self.at(disk.name, target)} {self.vm.id} {disk.store}"
            for disk in self.disks
        ]
        if target != FE:
            self.cloud.lab.oned.move_vm(self.vm.id, target)
        self.run(state, *lines, f"MV {self.driver} {self.at()} {self.at('', target)} {self.vm.id} {SYSTEM}")
        assert not self.path.exists()
        self.where = target

    def save_as(self, state: int, disk: Disk, snapshot: int = -1) -> tuple[Path, str, bytes]:
        """Have a disk, or its snapshot, saved as an image; its file, its format, and what must be in it."""
        path = f"{self.cloud.store}/saved-{self.vm.id}-{disk.number}-{snapshot}-{self.where}"
        self.run(state, f"CPDS {self._driver(disk)} {self.at(disk.name)} {path} {snapshot} {self.vm.id} {DEFAULT}")
        content = disk.model if snapshot == -1 else disk.snapshots[snapshot]
        return self.cloud.lab.fe.path(path), disk.format, bytes(content)

    def epilog(self) -> None:
        """Have persistent disks brought back, and everything else removed."""
        lines = []
        for disk in self.disks:
            if disk.image and disk.persistent:
                lines.append(f"MVDS {disk.driver} {self.at(disk.name)} {disk.image.path} {self.vm.id} {DEFAULT}")
            else:
                lines.append(f"DELETE {self._driver(disk)} {self.at(disk.name)} {self.vm.id} {disk.store}")
        self.run(EPILOG, *lines, f"DELETE {self.driver} {self.at()} {self.vm.id} {SYSTEM}")
        assert not self.path.exists()

    # -- what the guest and the hypervisor do ----------------------------------------------------------------

    def write(self) -> None:
        """Let the guest write into every disk: where it wrote before, at a place of its own, and at the end."""
        for disk in self.disks:
            self._writes += 1
            ends = len(disk.model) - PIECE - 512
            for at in (MIB + 4096, (self._writes * 7 % SIZE) * MIB + 512, ends):
                value = 1 + (self._writes + at) % 255
                self._put(disk, at, value)
                disk.model[at : at + PIECE] = bytes([value]) * PIECE

    def _put(self, disk: Disk, at: int, value: int) -> None:
        file = disk.file(self.path)
        if disk.format == "qcow2":
            qemu_io(file, f"write -q -P {value} {at} {PIECE}")
            return
        with file.open("r+b") as opened:
            os.pwrite(opened.fileno(), bytes([value]) * PIECE, at)

    def suspend(self) -> None:
        """Let the hypervisor write what it needs to go on."""
        random_data(self.path / "checkpoint", 3 * MIB + 17, seed=self.vm.id)
        (self.path / "vm.xml").write_text("<VM/>")
        for name in ("checkpoint", "vm.xml"):
            give(self.path / name, 0o600)
            self._files[name] = (self.path / name).read_bytes()

    def restored(self) -> None:
        """Let the hypervisor remove the checkpoint."""
        (self.path / "checkpoint").unlink()
        del self._files["checkpoint"]

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The VM's directory, as root reaches it."""
        return self.cloud.lab.node(self.where).path(self.vm.directory)

    def born(self) -> None:
        """Take over what the prolog has made of nothing."""
        for disk in self.disks:
            if not disk.image:
                file = self.path / disk.name
                look.is_disk(file, 0o644)
                disk.model[:] = seen(file, disk.format, self.scratch)
                made = self.scratch / "seen" if disk.format == "qcow2" else file
                assert inside(made).split()[0] == ("swap" if disk.swap else "ext4")

    def check(self, step: str) -> None:
        """Assert that all disks, snapshots and other files hold what they must, and that there is nothing else."""
        wanted = {*self._files, *(disk.name for disk in self.disks)}
        for disk in self.disks:
            what = f"{disk.name} ({disk.format}) of VM {self.vm.id} after the {step}"
            assert_same(seen(disk.file(self.path), disk.format, self.scratch), disk.model, what)
            for number, content in disk.snapshots.items():
                file = disk.file(self.path, number)
                assert_same(seen(file, disk.format, self.scratch), content, f"snapshot {number} of {what}")
            tree = self.path / f"{disk.name}.snap"
            if disk.image and (disk.snapshots or disk.format == "qcow2"):
                wanted.add(tree.name)
                active = {disk.file(self.path).name} if disk.format == "qcow2" else set()
                assert {path.name for path in tree.iterdir()} == {*active, *map(str, disk.snapshots)}, what
        for name, content in self._files.items():
            assert_same((self.path / name).read_bytes(), content, f"{name} after the {step}")
        assert {path.name for path in self.path.iterdir()} - {RECEIPT} == wanted
        for path in [self.path, *self.path.rglob("*")]:
            assert (path.lstat().st_uid, path.lstat().st_gid) == (UID, UID), path


def variant(cloud: Cloud, kinds: Sequence[tuple[str, bool]], seed: int, volatile: str) -> list[Disk]:
    """Disks of new images, by format and whether they are persistent; a volatile one, and one for swap."""
    disks = []
    for number, (format, persistent) in enumerate(kinds):
        write = functools.partial(system, format=format, seed=seed + number)
        image = cloud.image(write, mode=0o660, format=format)
        cloud.lab.oned.add_image(image.id, DEFAULT, image.path, SIZE, format=format, persistent=persistent)
        disks.append(Disk(number, format, image, persistent))
    return [*disks, Disk(len(disks), volatile), Disk(len(disks) + 1, "raw", swap=True)]


@pytest.mark.parametrize(
    ("kinds", "volatile"),
    [
        ((("raw", True), ("qcow2", False), ("raw", False)), "qcow2"),
        ((("qcow2", True), ("raw", False), ("qcow2", False)), "raw"),
    ],
    ids=["persistent raw", "persistent qcow2"],
)
def test_a_life(cloud: Cloud, tmp_path: Path, kinds: Sequence[tuple[str, bool]], volatile: str) -> None:
    disks = variant(cloud, kinds, 70, volatile)
    images = [disk for disk in disks if disk.image]
    for disk in images:
        assert disk.image
        disk.model[:] = seen(disk.image.file, disk.format, tmp_path)
    originals = [look.sha256(disk.image.file) for disk in images if disk.image]
    snapped = images[:2]
    with cloud.lab.transfers() as transfers:
        life = Life(cloud, transfers, disks, tmp_path)
        life.prolog(FIRST)
        life.born()
        life.check("prolog")
        life.context()
        life.write()
        life.check("context")
        life.snapshot(0, snapped)
        life.write()
        life.snapshot(1, snapped)
        life.write()
        life.check("snapshots")
        life.revert(0, snapped)
        life.check("revert")
        life.write()
        life.resize(images)
        life.check("resize")
        life.write()

        life.suspend()
        life.check("suspend")
        life.move(EPILOG_STOP, FE)
        life.check("stop")
        life.move(PROLOG_RESUME, SECOND)
        life.check("resume")
        life.restored()
        life.write()
        life.snapshot(2, snapped[:1])
        life.forget(1, snapped)
        life.check("removal of a snapshot")
        life.move(PROLOG_MIGRATE_POWEROFF, FIRST)
        life.check("migration")
        life.context()
        life.write()
        life.check("second context")
        saved = [life.save_as(SAVEAS_POWEROFF, disk) for disk in images]
        saved += [life.save_as(SAVEAS_POWEROFF, disk, number) for disk in snapped for number in disk.snapshots]
        life.check("save-as")
        life.write()
        life.move(EPILOG_UNDEPLOY, FE)
        life.check("undeploy")
        saved += [life.save_as(SAVEAS_UNDEPLOYED, disk) for disk in images]
        life.check("save-as of what is undeployed")
        life.epilog()

        for file, format, content in saved:
            assert_same(seen(file, format, tmp_path), content, file.name)
        for disk, original in zip(images, originals):
            assert_brought_back(disk, original, tmp_path)
        assert_tidy(cloud, [*(disk.image.file for disk in images if disk.image), *(file for file, *_ in saved)])

        persistent = images[0]
        again = [reborn(cloud, persistent, number=0), taken_over(cloud, saved[1], number=1)]
        life = Life(cloud, transfers, again, tmp_path)
        life.prolog(SECOND)
        life.check("second prolog")
        life.revert(0, again[:1])
        life.write()
        life.check("second revert")
        life.epilog()
        assert_brought_back(again[0], "", tmp_path)


def assert_brought_back(disk: Disk, original: str, scratch: Path) -> None:
    """Assert that an image holds what its VM left, with all snapshots, or, if it is not persistent, what it held."""
    assert disk.image
    if not disk.persistent:
        assert look.sha256(disk.image.file) == original
        return
    directory, name = disk.image.file.parent, disk.image.file.name
    tree = directory / f"{name}.snap"
    link = disk.image.file
    active = directory / os.readlink(link) if link.is_symlink() else link
    assert_same(seen(active, disk.format, scratch), disk.model, name)
    for number, content in disk.snapshots.items():
        assert_same(seen(tree / str(number), disk.format, scratch), content, f"{name}, snapshot {number}")
    extra = {active.name} if link.is_symlink() else set()
    names = {path.name for path in tree.iterdir()} if tree.exists() else set()
    assert names == {*extra, *map(str, disk.snapshots)}


def reborn(cloud: Cloud, disk: Disk, number: int) -> Disk:
    """A persistent disk in its next VM; its image is as large as the disk was made, as oned notes it."""
    assert disk.image
    size = len(disk.model) // MIB
    cloud.lab.oned.add_image(disk.image.id, DEFAULT, disk.image.path, size, format=disk.format, persistent=True)
    return dataclasses.replace(disk, number=number, model=bytearray(disk.model), snapshots=dict(disk.snapshots))


def taken_over(cloud: Cloud, saved: tuple[Path, str, bytes], number: int) -> Disk:
    """A disk of an image that was saved."""
    file, format, content = saved
    image = Image(90_000 + cloud.vm(None).id, f"{cloud.store}/{file.name}", file)
    cloud.lab.oned.add_image(image.id, DEFAULT, image.path, len(content) // MIB, format=format)
    return Disk(number, format, image, model=bytearray(content))


def assert_tidy(cloud: Cloud, images: Sequence[Path]) -> None:
    """Assert that nothing of any VM is on any node, and nothing but images, and their trees, in their datastore."""
    for name in (FE, *HOSTS.values()):
        system = cloud.lab.node(name).path(cloud.lab.datastores / str(SYSTEM))
        assert {path.name for path in system.iterdir()} <= {".monitor"}, name
    store = cloud.lab.fe.path(cloud.store)
    wanted = {"gallery", *(path.name for path in images)}
    names = {path.name for path in store.iterdir()}
    assert names - {f"{path.name}.snap" for path in images} == wanted
    for path in store.rglob("*"):
        assert path.lstat().st_uid == UID, path
        assert ".fastcopy" not in path.name, path
