"""Disks of running guests, saved as new images (cpds in HOTPLUG_SAVEAS), on XFS and ext4, with a stand-in for virsh."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import processes
from tests.e2e import look
from tests.e2e.cloud import HOSTS, SYSTEM, Cloud, Image, Vm, settle, traffic
from tests.virsh import Guest, Virsh, is_of_one_moment

pytestmark = pytest.mark.root

SIZE = 24 * MIB
HOTPLUG_SAVEAS, ACTIVE = 26, 3
on_both = pytest.mark.parametrize("fs", ["xfs", "ext4"])


@contextmanager
def hypervisor(cloud: Cloud, fs: str) -> Iterator[tuple[Image, Vm, Virsh]]:
    """A running VM with a disk of a settled image, on a host that has virsh."""
    image = cloud.image(lambda path: random_data(path, SIZE, seed=61), mode=0o640)
    settle()
    vm = cloud.vm(image, HOSTS[fs])
    cloud.clone(image, vm).succeeded()
    cloud.lab.oned.set_vm(vm.id, STATE=ACTIVE, LCM_STATE=HOTPLUG_SAVEAS, DEPLOY_ID="one-42")
    cloud.wait_for_quiet(vm.host)
    node = cloud.node(vm)
    inside = cloud.lab.dir / "nodes" / "virsh"
    inside.parent.chmod(0o711)
    virsh = Virsh(inside, f"{vm.directory}/disk.0")
    node.run(["mount", "--bind", inside, "/usr/local/bin"], user="root", check=True)
    try:
        yield image, vm, virsh
        assert virsh.undisturbed()
    finally:
        node.run(["umount", "-l", "/usr/local/bin"], user="root", check=True)
        inside.parent.chmod(0o700)
        for path in inside.iterdir():
            path.unlink()
        inside.rmdir()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@on_both
def test_a_disk_is_saved_as_it_was_at_one_moment_and_the_guest_goes_on(cloud: Cloud, fs: str) -> None:
    control = cloud.control_bytes(HOSTS[fs])
    with hypervisor(cloud, fs) as (image, vm, virsh):
        disk, old = vm.path / "disk.0", look.sha256(image.file)
        file = cloud.lab.fe.path(f"{cloud.store}/saved-{vm.id}")
        with Guest(virsh, disk) as guest, traffic(cloud.node(vm)) as seen:
            cloud.cpds(vm, f"{cloud.store}/saved-{vm.id}").succeeded()
            written = guest.written
            processes.wait_for(lambda: guest.written > written + 50, 20, "the guest to go on")
        assert is_of_one_moment(file) and file.stat().st_size == SIZE
        look.is_disk(file, 0o660)
        assert seen.tx <= 1.1 * 3 * (256 << 10) + 3 * control  # the first chunk and the last, of 24 MiB
        assert look.sha256(image.file) == old
        if fs == "xfs":
            assert virsh.commands == ["domfsfreeze", "suspend", "resume", "domfsthaw"]
        else:
            assert virsh.commands == ["blockcopy"] and " vda " in virsh.calls[-1]
        cloud.wait_for_quiet(vm.host)
        assert names(vm.path) == ["disk.0"]


@on_both
def test_a_hypervisor_that_fails_is_one_sentence_and_nothing_is_left(cloud: Cloud, fs: str) -> None:
    with hypervisor(cloud, fs) as (_, vm, virsh):
        new = f"{cloud.store}/saved-{vm.id}"
        virsh.behave({"suspend": "fail", "blockcopy": "fail"})
        cloud.cpds(vm, new).failed("virsh suspend", "one-42", vm.argument())
        assert virsh.undisturbed() and not cloud.lab.fe.path(new).exists()
        virsh.behave({})
        cloud.lab.oned.set_vm(vm.id, DEPLOY_ID="no-such-domain")
        cloud.cpds(vm, new).failed("no-such-domain")
        cloud.lab.oned.set_vm(vm.id, DEPLOY_ID="--all")
        cloud.cpds(vm, new).failed("power the VM off")
        cloud.wait_for_quiet(vm.host)
        assert names(vm.path) == ["disk.0"]
        cloud.lab.oned.set_vm(vm.id, DEPLOY_ID="one-42")
        cloud.cpds(vm, new).succeeded()
        assert look.same_content(cloud.lab.fe.path(new), vm.path / "disk.0")


@on_both
@pytest.mark.usefixtures("own_process")
def test_whoever_is_killed_in_the_middle_leaves_a_guest_that_runs(cloud: Cloud, fs: str) -> None:
    """First the agent, between suspend and resume; then the front-end, while its agent waits for virsh."""
    with hypervisor(cloud, fs) as (_, vm, virsh):
        new = f"{cloud.store}/saved-{vm.id}"
        virsh.behave({"suspend": "vanish", "blockcopy": "fail"})
        cloud.cpds(vm, new).failed(vm.host)
        virsh.wait()
        virsh.behave({"domfsfreeze": "hang", "blockcopy": "hang"})
        virsh.forget()
        running = cloud.start_cpds(vm, new)
        # The one that wakes the first guest up may still have had to thaw it.
        processes.wait_for(lambda: {"domfsfreeze", "blockcopy"} & {*virsh.commands} != set(), 60, "virsh to hang")
        running.kill()
        processes.kill([pid for pid in cloud.node(vm).processes() if "domfsfreeze" in processes.arguments(pid)])
        virsh.wait()
        cloud.wait_for_quiet(vm.host)
        virsh.behave({})
        cloud.cpds(vm, new).succeeded()
        assert look.same_content(cloud.lab.fe.path(new), vm.path / "disk.0")
        cloud.wait_for_quiet(vm.host)
        assert names(vm.path) == ["disk.0"]
        cloud.run("delete", f"{vm.host}:{vm.directory}", str(vm.id), str(SYSTEM)).succeeded()


def test_what_is_not_kvm_is_refused_while_it_runs(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    cloud.lab.oned.set_vm(vm.id, STATE=ACTIVE, LCM_STATE=HOTPLUG_SAVEAS, HISTORY=[])
    cloud.cpds(vm, f"{cloud.store}/saved-{vm.id}").failed("kvm only", "power it off")
    for state in (27, 28):  # poweroff, suspended: nobody writes
        cloud.lab.oned.set_vm(vm.id, LCM_STATE=state)
        cloud.cpds(vm, f"{cloud.store}/saved-{vm.id}").succeeded()
    assert look.same_content(cloud.lab.fe.path(f"{cloud.store}/saved-{vm.id}"), vm.path / "disk.0")
