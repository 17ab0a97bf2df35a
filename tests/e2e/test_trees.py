"""Disks with snapshots, to hosts on XFS, btrfs and ext4 and back: all their files, or nothing of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.images.edge import MIB
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, Cloud, Image, Outcome, Running, settle, traffic
from tests.e2e.conftest import CHECKOUT
from tests.e2e.test_qcow2 import active, check, virtual
from tests.e2e.test_snapshots import Life, image_of, listing, look_like_a_disk, snap
from tests.support import qemu_img

pytestmark = pytest.mark.root


def contents(top: Path, name: str) -> dict[str, str]:
    """Digests of a disk's or an image's files, by their names in the tree; and what its link says, or its digest."""
    link, tree = top / name, top / f"{name}.snap"
    found = {path.name: look.sha256(path) for path in sorted(tree.iterdir())}
    return {**found, "->": os.path.basename(os.readlink(link)) if link.is_symlink() else look.sha256(link)}


def image_contents(image: Image) -> dict[str, str]:
    """See `contents`."""
    return contents(image.file.parent, image.file.name)


def with_snapshots(cloud: Cloud, image: Image, host: str) -> Life:
    """A disk of the image on which two snapshots rest, one of them on another branch."""
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    cloud.wait_for_quiet(host)
    life = Life(cloud, vm, "fastcopy")
    for number, action in enumerate(("create", "create", "revert")):
        life.put(number + 1, 8 + number)
        life.snap(action, 0 if action == "revert" else number).succeeded()
    life.put(4, 10)
    return life


def an_image(cloud: Cloud, format: str) -> Image:
    """An image of one file."""
    return image_of(cloud, "plain") if format == "qcow2" else cloud.image(look_like_a_disk, mode=0o644)


def owned(path: Path) -> bool:
    return (path.lstat().st_uid, path.lstat().st_gid) == (UID, UID)


@pytest.mark.parametrize(
    ("format", "host"), [("qcow2", "host1"), ("qcow2", "host2"), ("qcow2", "host3"), ("raw", "host1"), ("raw", "host3")]
)
def test_there_and_back_and_there_again(cloud: Cloud, host: str, format: str) -> None:
    image = an_image(cloud, format)
    life = with_snapshots(cloud, image, host)
    on_host = contents(life.vm.path, "disk.0")
    control = cloud.control_bytes(host)
    with traffic(cloud.node(life.vm)) as seen:
        cloud.mvds(life.vm, image).succeeded()
    assert seen.tx < 11 * MIB + 3 * control  # what the guest wrote, and not what the image was
    assert contents(life.vm.path, "disk.0") == on_host
    assert image_contents(image) == on_host
    top = image.file.parent
    assert sorted(p.name for p in top.iterdir() if p.name != "gallery") == [image.file.name, f"{image.file.name}.snap"]
    if format == "qcow2":
        assert os.readlink(image.file) == f"{image.file.name}.snap/2"
        for path in (top / f"{image.file.name}.snap").iterdir():
            check(path)
    assert all(owned(path) for path in [image.file, *(top / f"{image.file.name}.snap").iterdir()])

    settle()
    for _ in ("cold", "warm"):
        vm = cloud.vm(image, host)
        said = cloud.clone(image, vm).succeeded()
        assert contents(vm.path, "disk.0") == on_host, said
        cloud.wait_for_quiet(host)
        assert look.leftovers(vm.path) == look.leftovers(vm.path / "disk.0.snap") == []
    again = Life(cloud, vm, "fastcopy")
    assert again.seen() == life.seen()
    again.snap("revert", 1).succeeded()  # the tree is as good as the one that it was made of
    assert again.seen()[:2] == [1, 2]
    again.snap("delete", 0).succeeded()
    assert again.seen()[:2] == [1, 2]
    again.put(9, 10)
    before = image_contents(image)
    with traffic(cloud.node(vm)) as seen:
        cloud.mvds(vm, image).succeeded()
    after = image_contents(image)
    assert after == contents(vm.path, "disk.0")
    assert before.keys() - after.keys() == {"0"}
    # What changed, and not all 13 MiB: half of it, or more where qemu-img, under load, wrote what it pulled from
    # snapshot 0 in another order than that had it.
    assert seen.tx < 11 * MIB + 4 * control
    assert look.leftovers(image.file.parent) == []


def test_a_disk_with_snapshots_that_is_larger_than_its_image(cloud: Cloud, host: str = "host1") -> None:
    image = image_of(cloud, "plain")
    life = with_snapshots(cloud, image, host)
    cloud.mvds(life.vm, image).succeeded()
    vm = cloud.vm(image, host, SIZE=64, ORIGINAL_SIZE=12)
    cloud.clone(image, vm).succeeded()
    assert virtual(active(vm)) == 64 * MIB
    assert listing(vm) == listing(life.vm)
    same = ["compare", "-q", "-f", "qcow2", "-F", "qcow2", active(life.vm), active(vm)]
    qemu_img(*same)


def test_large_files_go_over_lanes(cloud: Cloud) -> None:
    image = cloud.image(lambda path: look.random_qcow2(path, 24 * MIB), mode=0o644, format="qcow2")
    life = with_snapshots(cloud, image, "host1")
    image.file.unlink()  # nothing there is a seed
    cloud.mvds(life.vm, image).succeeded()
    vm = cloud.vm(image, "host2")
    cloud.clone(image, vm).succeeded()
    assert contents(vm.path, "disk.0") == image_contents(image) == contents(life.vm.path, "disk.0")


def test_an_image_that_loses_its_snapshots(cloud: Cloud) -> None:
    for format in ("qcow2", "raw"):
        image = an_image(cloud, format)
        life = with_snapshots(cloud, image, "host1")
        cloud.mvds(life.vm, image).succeeded()
        for number in (1, 0):
            life.snap("delete", number).succeeded()
        cloud.mvds(life.vm, image).succeeded()
        assert image_contents(image) == contents(life.vm.path, "disk.0")
        assert len(image_contents(image)) == (2 if format == "qcow2" else 1)


@pytest.mark.parametrize("where", ["host", "image"])
@pytest.mark.parametrize("wrong", ["outside", "elsewhere", "stranger", "link"])
def test_a_tree_that_is_not_carried(cloud: Cloud, where: str, wrong: str) -> None:
    image = image_of(cloud, "plain")
    life = with_snapshots(cloud, image, "host1")
    tree = life.vm.path / "disk.0.snap"
    if where == "image":
        cloud.mvds(life.vm, image).succeeded()
        tree = image.file.parent / f"{image.file.name}.snap"
    if wrong in ("outside", "elsewhere"):
        name = "/etc/passwd" if wrong == "outside" else "9"
        qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw" if wrong == "outside" else "qcow2", "-b", name, tree / "1")
    elif wrong == "stranger":
        (tree / "notes").write_text("x")
    else:
        (tree / "1").unlink()
        (tree / "1").symlink_to("/etc/passwd")
    said = {"outside": "outside its own", "elsewhere": "not in its own tree", "stranger": "notes", "link": "link"}
    if where == "host":
        before = look.sha256(image.file)
        cloud.mvds(life.vm, image).failed(said[wrong])
        assert look.sha256(image.file) == before
        assert look.leftovers(image.file.parent) == []
    else:
        vm = cloud.vm(image)
        cloud.clone(image, vm).failed(said[wrong])
        assert not vm.path.exists() or list(vm.path.iterdir()) == []


def stock(cloud: Cloud, action: str, *arguments: str) -> Outcome:
    """The stock `local` driver's."""
    entry = cloud.lab.one_location / "var/remotes/tm/local" / action
    done = Running(cloud.lab.fe.popen([entry, *arguments], env=cloud.environment)).outcome()
    assert done.code == 0, done.stderr
    return done


@pytest.mark.skipif(not CHECKOUT, reason="needs FASTCOPY_OPENNEBULA: a source checkout of OpenNebula")
@pytest.mark.parametrize("first", ["fastcopy", "local"])
def test_what_one_driver_brought_back_the_other_takes_out(cloud: Cloud, first: str) -> None:
    image = image_of(cloud, "plain")
    life = with_snapshots(cloud, image, "host1")
    on_host = contents(life.vm.path, "disk.0")
    ends = [life.vm.argument(), image.path, str(life.vm.id), str(DEFAULT)]
    if first == "fastcopy":
        cloud.mvds(life.vm, image).succeeded()
    else:
        stock(cloud, "mvds", *ends)
    assert image_contents(image) == on_host
    vm = cloud.vm(image)
    if first == "fastcopy":
        stock(cloud, "clone", f"fe:{image.path}", vm.argument(), str(vm.id), str(DEFAULT))
    else:
        cloud.clone(image, vm).succeeded()
    assert contents(vm.path, "disk.0") == on_host
    snap(cloud, vm, "create", 2, "local" if first == "fastcopy" else "fastcopy").succeeded()
    assert listing(vm)["->"] == "disk.0.snap/3"
