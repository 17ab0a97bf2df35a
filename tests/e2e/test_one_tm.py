"""Transfer scripts through one_tm: what oned sees of the driver, and of a script that is replayed.

With OpenNebula's own one_tm where FASTCOPY_OPENNEBULA names a checkout, with our equivalent otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import processes
from bench.testbed.tm import TmResult
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, Cloud, Image, Vm, clone_arguments, rate

pytestmark = pytest.mark.root

SIZE = 24 * MIB


def clone_line(image: Image, vm: Vm, name: str = "disk.0") -> str:
    """The line of a prolog that clones an image."""
    return " ".join(["CLONE", "fastcopy", *clone_arguments(image, vm, name)])


def mvds_line(vm: Vm, image: Image) -> str:
    """The line of an epilog that brings a disk back."""
    return f"MVDS fastcopy {vm.argument()} {image.path} {vm.id} {DEFAULT}"


def assert_failed(result: TmResult, *words: str) -> None:
    """Assert that oned is told one sentence, with `words` in it."""
    assert not result.success
    for word in words:
        assert word in result.info, result.info
    assert not result.info.startswith("-")
    assert "Traceback" not in result.info
    print(f"oned shows: {result.info}")  # seen with pytest -s


def test_a_prolog_and_an_epilog_succeed(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, 3 * MIB + 5))
    vm = cloud.vm(image)
    result = cloud.lab.tm([clone_line(image, vm)], vm.id)
    assert (result.success, result.info) == (True, "-")
    assert [line for line in result.log if line.startswith("INFO: clone: ")]
    disk = vm.path / "disk.0"
    assert look.same_content(disk, image.file)
    random_data(disk, 3 * MIB + 5, seed=2)
    result = cloud.lab.tm([mvds_line(vm, image)], vm.id)
    assert (result.success, result.info) == (True, "-")
    assert [line for line in result.log if line.startswith("INFO: mvds: ")]
    assert look.same_content(image.file, disk)


def niceness(pid: int) -> Optional[int]:
    """The nice value of a process (proc(5): field 19 of stat); None if it has just ended, as `ssh -G` does at once."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])
    except OSError:
        return None


@pytest.fixture
def without_daemon(cloud: Cloud) -> Iterator[None]:
    """As an administrator would say it: in tmrc."""
    tmrc = cloud.lab.one_location / "etc/tmrc"
    before = tmrc.read_text()
    tmrc.write_text(before + "\nFASTCOPY_DAEMON=no\n")
    yield
    tmrc.write_text(before)


@pytest.mark.usefixtures("without_daemon")
def test_the_driver_is_niced_and_so_are_its_connections(cloud: Cloud) -> None:
    cloud.end_daemons()  # one that somebody else has started is not niced, nor are the lanes that it keeps
    image = cloud.known("random")
    vm = cloud.vm(image)
    fe = cloud.lab.fe
    with rate(cloud.lab, "host1", "50mbit"), ThreadPoolExecutor(1) as pool:
        result = pool.submit(cloud.lab.tm, [clone_line(image, vm)], vm.id)
        processes.wait_for(lambda: len(fe.processes("ssh")) >= 2, 30, "the driver's connections")
        nice = {niceness(pid) for pid in fe.processes("ssh")}
        assert result.result(120).success
    assert nice - {None} == {19}
    assert look.same_content(vm.path / "disk.0", image.file)


def test_the_call_that_starts_the_daemon_shows_its_error_at_once_and_whole(cloud: Cloud) -> None:
    cloud.end_daemons()
    image = cloud.image(lambda path: random_data(path, MIB))
    vm = cloud.vm(image)
    image.file.unlink()
    # A child that kept the client's standard error would have one_tm wait for it, and lose the text.
    result = cloud.lab.tm([clone_line(image, vm)], vm.id, timeout=60)
    assert_failed(result, f"there is no image {image.path}")
    assert len(cloud.daemons()) == 1


def test_a_missing_image_is_what_oned_shows(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, MIB))
    vm = cloud.vm(image)
    image.file.unlink()
    result = cloud.lab.tm([clone_line(image, vm)], vm.id)
    assert_failed(result, f"no image {image.path}")


def test_a_refusing_host_is_what_oned_shows(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    cloud.node(vm).stop_sshd()
    try:
        result = cloud.lab.tm([clone_line(image, vm)], vm.id)
    finally:
        cloud.node(vm).start_sshd()
    assert_failed(result, "host1 cannot be reached with ssh", "Connection refused")


def test_a_read_only_host_is_what_oned_shows(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    cloud.node(vm).remount_datastores("ro")
    try:
        result = cloud.lab.tm([clone_line(image, vm)], vm.id)
    finally:
        cloud.node(vm).remount_datastores("rw")
    assert_failed(result, vm.directory, "Read-only file system")


def test_a_dead_oned_is_what_oned_shows_in_the_end(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    cloud.lab.oned.stop()
    try:
        result = cloud.lab.tm([clone_line(image, vm)], vm.id)
    finally:
        cloud.lab.oned.start()
    assert_failed(result, "oned does not answer", "is it running")


def test_a_replayed_script_runs_all_its_lines_again(cloud: Cloud) -> None:
    """oned replays all lines, also those that were done: here the second fails once."""
    first, second = cloud.known("odd"), cloud.image(lambda path: random_data(path, MIB))
    vm = cloud.vm(first)
    oned = cloud.lab.oned
    oned.add_vm(vm.id, host="host1", ds_id=0, disks=[{"IMAGE_ID": first.id}, {"IMAGE_ID": second.id}])
    second.file.rename(second.file.with_name("aside"))
    script = [clone_line(first, vm), clone_line(second, vm, "disk.1")]
    assert_failed(cloud.lab.tm(script, vm.id), "no image")
    assert look.same_content(vm.path / "disk.0", first.file)
    assert not (vm.path / "disk.1").exists()
    second.file.with_name("aside").rename(second.file)
    assert cloud.lab.tm(script, vm.id).success
    assert look.same_content(vm.path / "disk.0", first.file)
    assert look.same_content(vm.path / "disk.1", second.file)
    assert look.leftovers(vm.path) == []


def test_many_scripts_at_once_succeed(cloud: Cloud) -> None:
    image = cloud.known("like")
    vms = [cloud.vm(image, host) for host in ("host1", "host2", "host3", "host1")]
    with cloud.lab.transfers() as transfers, ThreadPoolExecutor(len(vms)) as pool:
        results = list(pool.map(lambda vm: transfers.run([clone_line(image, vm)], vm.id), vms))
    assert [result.success for result in results] == [True] * len(vms), results
    for vm in vms:
        assert look.same_content(vm.path / "disk.0", image.file)
