"""What a driver must refuse or report: sources, destinations, arguments, and oned itself.

After each of them a good clone to the same place succeeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed.node import HOME
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, SYSTEM, Cloud, Image, Vm, clone_arguments, give, rate, wait_for_bytes

pytestmark = pytest.mark.root


def small(cloud: Cloud, name: str = "") -> Image:
    """An image that is copied in no time."""
    return cloud.image(lambda path: random_data(path, MIB + 100), name)


def assert_nothing_there(vm: Vm, name: str = "disk.0") -> None:
    """Assert that neither a disk nor a part of one is there."""
    assert not os.path.lexists(vm.path / name)
    assert look.leftovers(vm.path) == []


def assert_good(cloud: Cloud, image: Image, vm: Vm) -> None:
    """Assert that the clone works now."""
    cloud.clone(image, vm).succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)
    assert look.leftovers(vm.path) == []


# -- sources -----------------------------------------------------------------------------------------------------


def test_a_missing_source_is_named(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    content = image.file.read_bytes()
    image.file.unlink()
    cloud.clone(image, vm).failed("no image", image.path)
    assert_nothing_there(vm)
    image.file.write_bytes(content)
    give(image.file, 0o640)
    assert_good(cloud, image, vm)


def test_an_unreadable_source_is_named(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    image.file.chmod(0)
    cloud.clone(image, vm).failed("readable", image.path)
    assert_nothing_there(vm)
    image.file.chmod(0o640)
    assert_good(cloud, image, vm)


def test_a_directory_is_no_source(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    image.file.rename(image.file.with_name("aside"))
    image.file.mkdir()
    cloud.clone(image, vm).failed("is a directory", image.path)
    assert_nothing_there(vm)
    image.file.rmdir()
    image.file.with_name("aside").rename(image.file)
    assert_good(cloud, image, vm)


def test_a_link_in_the_datastore_is_not_followed(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    image.file.rename(image.file.with_name("aside"))
    image.file.symlink_to("/etc/passwd")
    cloud.clone(image, vm).failed("symbolic link", image.path)
    assert_nothing_there(vm)
    image.file.unlink()
    image.file.with_name("aside").rename(image.file)
    assert_good(cloud, image, vm)


def test_a_source_outside_the_datastores_is_refused(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    for path in ("/etc/passwd", f"{cloud.store}/../../../etc/oned.conf", f"{cloud.system}/{vm.id}/disk.0"):
        cloud.run("clone", f"fe:{path}", vm.argument(), str(vm.id), str(DEFAULT)).failed(path)
        assert_nothing_there(vm)
    assert_good(cloud, image, vm)


def test_a_source_that_changes_while_it_is_read_gives_no_disk(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, 24 * MIB))
    vm = cloud.vm(image)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(cloud.node(vm), 6 * MIB)
        with image.file.open("r+b") as file:
            file.write(b"written while it was read")
        running.outcome().failed("was written while", image.path)
    assert not (vm.path / "disk.0").exists()
    assert_good(cloud, image, vm)


def test_a_disk_that_changes_while_it_is_read_gives_no_image(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, 24 * MIB))
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    before = look.sha256(image.file)
    disk = vm.path / "disk.0"
    random_data(disk, 24 * MIB, seed=2)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_mvds(vm, image)
        wait_for_bytes(cloud.node(vm), 6 * MIB, sent=True)
        with disk.open("r+b") as file:
            file.write(b"written while it was read")
        running.outcome().failed("was written while")
    assert look.sha256(image.file) == before
    cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, disk)
    assert look.leftovers(image.file.parent) == []


def test_a_missing_disk_cannot_be_brought_back(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    before = look.sha256(image.file)
    cloud.mvds(vm, image).failed(vm.directory)  # no VM directory
    cloud.clone(image, vm).succeeded()
    (vm.path / "disk.0").unlink()
    cloud.mvds(vm, image).failed("no ", f"{vm.directory}/disk.0")
    assert look.sha256(image.file) == before
    assert look.leftovers(image.file.parent) == []
    assert_good(cloud, image, vm)
    cloud.mvds(vm, image).succeeded()


# -- destinations ------------------------------------------------------------------------------------------------


NO_DISKS = (
    "/etc/{vm}/disk.0",
    "{system}/../0/{vm}/disk.0",
    "{system}/{vm}/../{vm}/disk.0",
    "{system}/{vm}/sub/disk.0",
    "{system}/{vm}/.ssh",
    "{system}/{vm}/disk.x",
    "{system}/x/disk.0",
    "{system}x/{vm}/disk.0",
    "{system}/disk.0",
    "{system}/{vm}/",
    "relative/{vm}/disk.0",
)


def test_a_destination_that_is_no_disk_in_the_datastore_is_refused(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    for path in NO_DISKS:
        wrong = path.format(system=cloud.system, vm=vm.id)
        cloud.run("clone", f"fe:{image.path}", f"host1:{wrong}", str(vm.id), str(DEFAULT)).failed(wrong)
        cloud.run("mvds", f"host1:{wrong}", image.path, str(vm.id), str(DEFAULT)).failed(wrong)
        assert not vm.path.exists()
    assert_good(cloud, image, vm)


def elsewhere(vm: Vm) -> Path:
    """A directory on the VM's host, beside the datastores, that oneadmin may write to."""
    path = vm.path.parents[1] / "elsewhere"
    path.mkdir()
    give(path, 0o755)
    return path


def test_a_link_in_place_of_a_vm_directory_is_not_followed(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    target = elsewhere(vm)
    vm.path.symlink_to("../elsewhere")
    cloud.clone(image, vm).failed("symbolic link", vm.directory)
    assert list(target.iterdir()) == []
    (target / "disk.0").write_bytes(b"not a VM's")
    before = look.sha256(image.file)
    cloud.mvds(vm, image).failed("symbolic link", vm.directory)
    assert look.sha256(image.file) == before
    vm.path.unlink()
    assert_good(cloud, image, vm)


def test_a_link_in_place_of_a_disk_is_replaced_and_never_followed(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    victim = elsewhere(vm) / "victim"
    victim.write_bytes(b"precious")
    give(victim, 0o644)
    (vm.path / "disk.0").unlink()
    (vm.path / "disk.0").symlink_to("../../elsewhere/victim")
    before = look.sha256(image.file)
    cloud.mvds(vm, image).failed("symbolic link", f"{vm.directory}/disk.0")
    assert look.sha256(image.file) == before
    assert_good(cloud, image, vm)
    look.is_disk(vm.path / "disk.0", 0o640)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("level", ["disk's staging file", "monitor", "cache", "cache's root"])
def test_other_planted_links_lead_nowhere(cloud: Cloud, level: str) -> None:
    image = cloud.known("odd")
    first, vm = cloud.vm(image), cloud.vm(image)
    cloud.clone(image, first).succeeded()
    victim = elsewhere(vm)
    (victim / "file").write_bytes(b"precious")
    give(victim / "file", 0o666)
    root = vm.path.parents[1]
    link = {
        "disk's staging file": vm.path / ".disk.0.fastcopy.part",
        "monitor": root / "0/.monitor",
        "cache": root / ".fastcopy/cache",
        "cache's root": root / ".fastcopy",
    }[level]
    file = level in ("disk's staging file", "monitor")
    vm.path.mkdir()
    give(vm.path, 0o755)
    if os.path.lexists(link):
        link.rename(root / "aside")
    link.symlink_to(cloud.lab.datastores / "elsewhere" / ("file" if file else ""))
    outcome = cloud.clone(image, vm)
    assert (victim / "file").read_bytes() == b"precious"
    assert [path.name for path in victim.iterdir()] == ["file"]
    if outcome.code:
        outcome.failed("symbolic link", link.name if level == "monitor" else vm.directory)
        assert not (vm.path / "disk.0").exists()
    assert outcome.code == 0 or file, "a cache that cannot be used is no reason to fail"
    link.unlink(missing_ok=True)  # one in the staging file's place has given way
    assert_good(cloud, image, vm)


def test_a_directory_in_place_of_a_disk_is_refused_and_kept(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    (vm.path / "disk.0").unlink()
    (vm.path / "disk.0").mkdir()
    cloud.clone(image, vm).failed("is a directory")
    assert (vm.path / "disk.0").is_dir()
    (vm.path / "disk.0").rmdir()
    assert_good(cloud, image, vm)


def test_an_image_outside_the_datastores_is_not_written(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    outside = f"{cloud.lab.one_location}/var/stolen"
    for path in (outside, f"{cloud.store}/../../stolen", f"{cloud.system}/stolen"):
        cloud.run("mvds", vm.argument(), path, str(vm.id), str(DEFAULT)).failed(path)
    assert not cloud.lab.fe.path(outside).exists()
    cloud.mvds(vm, image).succeeded()


# -- arguments ---------------------------------------------------------------------------------------------------


def replaced(index: int, word: str) -> Callable[[list[str]], list[str]]:
    """A change of one argument."""
    return lambda words: [*words[:index], word, *words[index + 1 :]]


WRONG: dict[str, Callable[[list[str]], list[str]]] = {
    "none": lambda words: [],
    "one is missing": lambda words: words[:-1],
    "one too many": lambda words: [*words, "1"],
    "no VM id": replaced(2, "x"),
    "a negative VM id": replaced(2, "-1"),
    "a huge VM id": replaced(2, "9" * 30),
    "no datastore id": replaced(3, "$(id)"),
    "unknown datastore": replaced(3, "77"),
    "empty source": replaced(0, ""),
    "empty destination": replaced(1, ""),
    "a host that is an option": replaced(1, "-oProxyCommand=true:/x"),
    "no host": replaced(1, "/x/1/disk.0"),
}


def test_wrong_arguments_are_reported(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    clone, mvds = clone_arguments(image, vm), [vm.argument(), image.path, str(vm.id), str(DEFAULT)]
    for change in WRONG.values():
        cloud.run("clone", *change(clone)).failed()
        cloud.run("mvds", *change(mvds)).failed()
        assert not vm.path.exists()
    cloud.run("clone", *clone).succeeded()
    cloud.run("mvds", *mvds).succeeded()


def test_another_vms_directory_is_refused(cloud: Cloud) -> None:
    image = small(cloud)
    vm, other = cloud.vm(image), cloud.vm(image)
    cloud.clone(image, other).succeeded()
    arguments = clone_arguments(image, other)
    cloud.run("clone", *arguments[:2], str(vm.id), arguments[3]).failed(f"VM {other.id}", f"VM {vm.id}")
    cloud.run("mvds", other.argument(), image.path, str(vm.id), str(DEFAULT)).failed(f"VM {other.id}")
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


def test_a_disk_that_the_vm_does_not_have_is_refused(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    cloud.clone(image, vm, "disk.7").failed("disk 7")
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


# -- oned --------------------------------------------------------------------------------------------------------


def test_a_vm_that_oned_does_not_know_is_reported(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    cloud.lab.oned.remove_vm(vm.id)
    cloud.clone(image, vm).failed("oned refuses", str(vm.id))
    assert not vm.path.exists()
    again = cloud.vm(image)
    assert_good(cloud, image, again)


def test_a_stopped_oned_is_reported(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    cloud.lab.oned.stop()
    try:
        cloud.clone(image, vm).failed("oned does not answer", "is it running")
    finally:
        cloud.lab.oned.start()
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


def test_a_hanging_oned_is_reported_after_half_a_minute(cloud: Cloud) -> None:
    image = small(cloud)
    vm = cloud.vm(image)
    cloud.lab.oned.hang()
    try:
        cloud.clone(image, vm).failed("oned does not answer")
    finally:
        cloud.lab.oned.start()
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


# -- names that a shell would look at ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["it's", "$(touch${IFS}pwned)", '"; touch pwned #', "-rf", "ü\u2028x", "a&b|c>d"])
def test_names_and_attributes_reach_no_shell(cloud: Cloud, name: str) -> None:
    """Defect A10 of the stock drivers."""
    oned = cloud.lab.oned
    attributes = {"NOTE": f"o'neil {name} $(touch pwned) `touch pwned`", "BRIDGE_LIST": "a'b"}
    oned.add_datastore(SYSTEM, "system", type="SYSTEM", template=attributes)
    oned.add_datastore(DEFAULT, "default", template=attributes)
    try:
        image = small(cloud, name)
        vm = cloud.vm(image)
        assert_good(cloud, image, vm)
        random_data(vm.path / "disk.0", 2 * MIB, seed=5)
        cloud.mvds(vm, image).succeeded()
        assert look.same_content(image.file, vm.path / "disk.0")
    finally:
        oned.add_datastore(SYSTEM, "system", type="SYSTEM")
        oned.add_datastore(DEFAULT, "default")
    for node in (cloud.lab.fe, cloud.lab.hosts["host1"]):
        found = node.run(["find", "/", HOME, cloud.lab.one_location, "-maxdepth", "3", "-name", "pwned"], user="root")
        assert found.stdout == b""
