"""`fastcopy cancel`: what it ends leaves nothing, nowhere, and what was there before is as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import processes
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.cloud import HOSTS, SYSTEM, Cloud, Running, Vm, give, rate, settle, traffic, wait_for_bytes
from tests.e2e.household import survey
from tests.e2e.test_command import fastcopy
from tests.e2e.test_mv import arguments, at, house
from tests.e2e.test_mv import moving as moving
from tests.support import qemu_img

pytestmark = pytest.mark.root

SIZE = 24 * MIB  # as the gallery's image of that content
LINK = "30mbit"  # seven seconds for all of it
SLOW_LINK = "20mbit"  # ten, where a second action begins meanwhile


@pytest.fixture(autouse=True)
def by_the_daemon(cloud: Cloud) -> Iterator[None]:
    """Which is what `cancel` asks."""
    cloud.end_daemons()
    yield


def staged(*directories: Path) -> list[str]:
    """Staging files, at any depth."""
    return [str(path) for top in directories if top.exists() for path in top.rglob(".*.fastcopy.part")]


def ended(cloud: Cloud, vm: Vm, running: Running, *words: object) -> str:
    """Cancel, and return what that said."""
    said = fastcopy(cloud, "cancel", vm.id, *words).well()
    running.outcome().failed("ended by `fastcopy cancel`", "as it was")
    assert "left: nothing" in said
    assert f"onevm recover --retry {vm.id}" in said
    return str(said)


@pytest.mark.parametrize(("fs", "format"), [*((fs, "raw") for fs in HOSTS), ("ext4", "qcow2")])
def test_nothing_is_left_of_a_clone(cloud: Cloud, fs: str, format: str) -> None:
    """Neither in the VM's directory, nor in the cache.  The same clone, repeated, succeeds."""
    host = HOSTS[fs]
    image = cloud.known("random")
    if format == "qcow2":
        image = cloud.image(lambda path: look.random_qcow2(path, SIZE), format=format)
        settle()
    vm = cloud.vm(image, host)
    with rate(cloud.lab, host, LINK):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(cloud.node(vm), SIZE // 3)
        assert staged(vm.path, cloud.cache(host)) != []
        assert "clone of disk.0" in ended(cloud, vm, running, "0")
    assert staged(vm.path, cloud.cache(host)) == []
    assert not vm.path.exists()
    cloud.clone(image, vm).succeeded()
    file = vm.path / ("disk.0" if format == "raw" else "disk.0.snap/0")
    assert look.same_content(file, image.file)
    assert staged(vm.path, cloud.cache(host)) == []


def test_another_disk_of_the_vm_stays(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(cloud.known("like"))
    cloud.clone(cloud.known("like"), vm).succeeded()
    cloud.lab.oned.add_vm(vm.id, host=vm.host, ds_id=SYSTEM, disks=[{"IMAGE_ID": cloud.known("like").id},
                                                                   {"IMAGE_ID": image.id}])  # fmt: skip
    with rate(cloud.lab, vm.host, LINK):
        running = cloud.start_clone(image, vm, "disk.1")
        wait_for_bytes(cloud.node(vm), SIZE // 3)
        ended(cloud, vm, running)
    assert [path.name for path in vm.path.iterdir()] == ["disk.0"]
    assert staged(cloud.cache(vm.host)) == []


def test_what_has_arrived_is_for_others_who_wait_for_it(cloud: Cloud) -> None:
    """Two VMs get the same image, the first is ended: the second goes on with what the first has brought."""
    image = cloud.known("random")
    one, other = cloud.vm(image), cloud.vm(image)
    with rate(cloud.lab, one.host, SLOW_LINK), traffic(cloud.node(one)) as seen:
        first = cloud.start_clone(image, one)
        wait_for_bytes(cloud.node(one), SIZE // 2)
        second = cloud.start_clone(image, other)
        phases = lambda: [row["phase"] for row in fastcopy(cloud, "status", "--json").well()["transfers"]]  # noqa: E731
        processes.wait_for(lambda: "flight" in phases(), 60, "the second clone to wait for the first one's transfer")
        assert "others are waiting for" in fastcopy(cloud, "cancel", one.id).well()
        first.outcome().failed("ended by `fastcopy cancel`")
        second.outcome().succeeded()
    assert not one.path.exists()
    assert look.same_content(other.path / "disk.0", image.file)
    assert seen.rx < 1.6 * SIZE  # beside what was on its way when the first was ended
    assert staged(other.path, cloud.cache(one.host)) == []


def test_the_last_of_those_who_want_an_image_takes_away_what_has_arrived(cloud: Cloud) -> None:
    """Two VMs get the same image, and both are ended, one after the other."""
    image = cloud.known("random")
    one, other = cloud.vm(image), cloud.vm(image)
    with rate(cloud.lab, one.host, SLOW_LINK):
        first = cloud.start_clone(image, one)
        wait_for_bytes(cloud.node(one), SIZE // 3)
        second = cloud.start_clone(image, other)
        phases = lambda: [row["phase"] for row in fastcopy(cloud, "status", "--json").well()["transfers"]]  # noqa: E731
        processes.wait_for(lambda: "flight" in phases(), 60, "the second clone to wait for the first one's transfer")
        said = fastcopy(cloud, "cancel", one.id).well()
        assert "left: what has arrived on host1 of an image that others are waiting for" in said
        ended(cloud, other, second)
        first.outcome().failed("ended by `fastcopy cancel`")
    assert staged(one.path, other.path, cloud.cache(one.host)) == []


@pytest.mark.parametrize("keep", [False, True])
def test_that_an_image_has_new_snapshots_already_is_said(cloud: Cloud, keep: bool) -> None:
    """Of a raw one these come first; ended between them and the disk, the image is neither the old nor the new one."""

    def snapshots(top: Path, seed: int) -> None:
        tree = top.with_name(f"{top.name}.snap")
        tree.mkdir()
        shutil.chown(tree, UID, UID)
        random_data(tree / "0", MIB, seed)
        give(tree / "0", 0o640)

    image = cloud.image(lambda path: random_data(path, SIZE))
    vm = cloud.vm(image, CLONE="NO", SAVE="YES")
    settle()
    cloud.ln(image, vm).succeeded()
    cloud.wait_for_quiet(vm.host)
    random_data(vm.path / "disk.0", SIZE, seed=2)
    give(vm.path / "disk.0", 0o640)
    snapshots(vm.path / "disk.0", 3)
    snapshots(image.file, 4)
    wanted = look.sha256(vm.path / "disk.0"), look.sha256(vm.path / "disk.0.snap/0")
    with rate(cloud.lab, vm.host, LINK):
        running = cloud.start_mvds(vm, image)
        wait_for_bytes(cloud.node(vm), SIZE // 3, sent=True)
        said = fastcopy(cloud, "cancel", vm.id, *(["--keep"] if keep else []))
        running.outcome().failed("the image's snapshots have been replaced, and the rest not", "repeat the action")
    assert said.code == 1 and "the image's snapshots have been replaced" in said.out
    assert ("what has arrived" in said.out) == keep
    cloud.mvds(vm, image).succeeded()
    snapshot = image.file.with_name(f"{image.file.name}.snap") / "0"
    assert (look.sha256(image.file), look.sha256(snapshot)) == wanted
    assert staged(image.file.parent) == []


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_nothing_is_left_beside_an_image_that_a_disk_was_brought_back_to(cloud: Cloud, format: str) -> None:
    def write(path: Path, seed: int = 1) -> None:
        random_data(path, SIZE, seed)
        if format == "qcow2":
            qemu_img("convert", "-f", "raw", "-O", "qcow2", path, path.with_name(".made"))
            path.with_name(".made").replace(path)

    image = cloud.image(write, format=format)
    vm = cloud.vm(image, CLONE="NO", SAVE="YES")
    settle()
    cloud.ln(image, vm).succeeded()
    cloud.wait_for_quiet(vm.host)
    disk = vm.path / ("disk.0" if format == "raw" else "disk.0.snap/0")
    write(disk, 2)
    give(disk, 0o640)
    before, changed = look.sha256(image.file), look.sha256(disk)
    with rate(cloud.lab, vm.host, LINK):
        running = cloud.start_mvds(vm, image)
        wait_for_bytes(cloud.node(vm), SIZE // 3, sent=True)
        assert staged(image.file.parent) != []
        assert "mvds of disk.0" in ended(cloud, vm, running)
    assert staged(image.file.parent) == []
    assert (look.sha256(image.file), look.sha256(disk)) == (before, changed)
    cloud.mvds(vm, image).succeeded()
    assert look.sha256(image.file) == changed


def test_nothing_is_left_of_an_image_that_a_disk_was_to_be_saved_as(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    random_data(vm.path / "disk.0", SIZE, seed=2)
    give(vm.path / "disk.0", 0o640)
    path = f"{cloud.store}/saved"
    with rate(cloud.lab, vm.host, LINK):
        running = cloud.start_cpds(vm, path)
        wait_for_bytes(cloud.node(vm), SIZE // 3, sent=True)
        assert staged(cloud.lab.fe.path(cloud.store)) != []
        ended(cloud, vm, running)
    assert not cloud.lab.fe.path(path).exists()
    assert staged(cloud.lab.fe.path(cloud.store)) == []
    cloud.cpds(vm, path).succeeded()


@pytest.mark.parametrize("target", ["host3", "fe"])
def test_nothing_is_left_where_a_vm_was_to_move_to(moving: Cloud, target: str) -> None:
    vm, wanted = house(moving, "host1")
    if target != "fe":
        moving.lab.oned.move_vm(vm.id, target)
    here = at(moving, vm, target)
    words = arguments(moving, vm, "host1", target, (SYSTEM, SYSTEM))
    with rate(moving.lab, "host1", LINK):
        running = moving.start("mv", words)
        wait_for_bytes(moving.node(vm), SIZE // 3, sent=True)
        assert staged(here.parent) != []
        assert "mv of the directory" in ended(moving, vm, running)
    assert [path.name for path in here.parent.iterdir() if str(vm.id) in path.name] == []
    assert survey(vm.path) == wanted
    moving.run("mv", *words).succeeded()
    assert survey(here) == wanted


def test_what_could_not_be_removed_is_said(cloud: Cloud) -> None:
    """A host that has gone keeps what it has; the exit code tells."""
    image = cloud.known("random")
    vm = cloud.vm(image)
    with rate(cloud.lab, vm.host, LINK):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(cloud.node(vm), SIZE // 3)
        with rate(cloud.lab, vm.host, "8kbit"):
            said = fastcopy(cloud, "cancel", vm.id)
        assert said.code == 1 and "left: perhaps what has arrived: it could not be removed" in said.out, said.out
        running.outcome().failed("ended by `fastcopy cancel`")
    cloud.delete(vm).succeeded()
