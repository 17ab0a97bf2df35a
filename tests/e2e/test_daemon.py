"""The daemon: started by the first call, shared by all, and of no consequence when it is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from pathlib import Path
from typing import Sequence

import pytest

from bench.images.edge import MIB, random_data, symbols
from bench.testbed import processes
from bench.testbed.node import UID
from tests.e2e import look
from tests.e2e.cloud import HOSTS, Cloud, Image, Running, Vm, rate, traffic, wait_for_bytes

pytestmark = pytest.mark.root

on_every_fs = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
in_both_ways = pytest.mark.parametrize("daemon", ["yes", "no"], ids=["daemon", "own process"])
LANES = 2


@pytest.fixture(autouse=True)
def no_daemon(cloud: Cloud) -> None:
    """Each test begins without a daemon."""
    cloud.end_daemons()


def state(cloud: Cloud) -> Path:
    """The daemon's directory, as root reaches it."""
    return cloud.lab.one_location / "var/fastcopy"


def assert_cloned(vm: Vm, image: Image) -> None:
    """The disk is what the image is, and nothing is left beside it."""
    assert look.same_content(vm.path / "disk.0", image.file)
    assert look.leftovers(vm.path) == []


def slowly(cloud: Cloud, image: Image, vm: Vm) -> Running:
    """Start a clone, and return when half of it has arrived; the host's link must be slow."""
    running = cloud.start_clone(image, vm)
    wait_for_bytes(cloud.node(vm), image.file.stat().st_size // 2)
    return running


def test_the_first_call_starts_it_and_the_next_ones_use_it(cloud: Cloud) -> None:
    image = cloud.known("odd")
    for _ in range(3):
        vm = cloud.vm(image)
        cloud.clone(image, vm).succeeded()
        assert_cloned(vm, image)
    (pid,) = cloud.daemons()
    assert len(set(re.findall(r"serving, pid \d+", cloud.log()))) >= 1
    assert Path(f"/proc/{pid}").stat().st_uid == UID
    # It is nobody's child and holds nothing of the client's: one_tm waits until all have closed its pipes.
    opened = [path for path in processes.open_files(pid) if path.startswith("pipe:")]
    assert opened == []
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3
    assert os.getsid(pid) != os.getsid(0)
    assert len(cloud.agents("host1")) == 1


def test_its_socket_is_closed_to_others(cloud: Cloud) -> None:
    image = cloud.known("odd")
    cloud.clone(image, cloud.vm(image)).succeeded()
    (path,) = state(cloud).glob("daemon-*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "said", [b"", b"\0", b"\xff\xff\xff\xff", b"\0\0\0\5hello", b"\0\0\0\x16fastcopy-call 1\x009\0clone\0"]
)
def test_who_talks_nonsense_to_it_does_no_harm(cloud: Cloud, said: bytes) -> None:
    image = cloud.known("odd")
    cloud.clone(image, cloud.vm(image)).succeeded()
    (path,) = state(cloud).glob("daemon-*.sock")
    before = cloud.daemons()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(20)
        stranger.connect(str(path))
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(100) == b""
    cloud.clone(image, cloud.vm(image)).succeeded()
    assert cloud.daemons() == before


def test_calls_that_start_at_once_start_one_daemon(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vms = [cloud.vm(image) for _ in range(6)]
    for running in [cloud.start_clone(image, vm) for vm in vms]:
        running.outcome().succeeded()
    for vm in vms:
        assert_cloned(vm, image)
    assert len(cloud.daemons()) == 1


@on_every_fs
@in_both_ways
def test_ten_clones_of_an_image_at_once_are_one_transfer(cloud: Cloud, host: str, daemon: str) -> None:
    image = cloud.known("random")
    size = image.file.stat().st_size
    cloud.environment["FASTCOPY_DAEMON"] = daemon
    control = cloud.control_bytes(host)
    vms = [cloud.vm(image, host) for _ in range(10)]
    with traffic(cloud.lab.hosts[host]) as seen:
        said = [running.outcome().succeeded().stderr for running in [cloud.start_clone(image, vm) for vm in vms]]
    assert size <= seen.rx <= 1.1 * size + (10 + LANES) * 2 * control, said
    for vm in vms:
        assert_cloned(vm, image)


def test_killed_in_the_middle_it_is_started_again_and_the_disk_arrives(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    with rate(cloud.lab, "host1", "50mbit"):
        running = slowly(cloud, image, vm)
        killed = cloud.daemons()
        cloud.lab.fe.signal(killed, signal.SIGKILL)
        running.outcome().succeeded()
    assert cloud.daemons() != killed
    assert_cloned(vm, image)


def test_a_killed_client_ends_its_action(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    with rate(cloud.lab, "host1", "50mbit"):
        slowly(cloud, image, vm).kill()
        cloud.wait_for_quiet("host1")
    assert not (vm.path / "disk.0").exists()
    assert "the client went away" in cloud.log()
    cloud.clone(image, vm).succeeded()
    assert_cloned(vm, image)


@in_both_ways
@pytest.mark.parametrize("name", ["", "disk.0"], ids=["directory", "disk"])
def test_a_delete_ends_the_clone_that_runs(cloud: Cloud, name: str, daemon: str) -> None:
    cloud.environment["FASTCOPY_DAEMON"] = daemon
    image = cloud.known("random")
    vm = cloud.vm(image)
    with rate(cloud.lab, "host1", "20mbit"):  # twelve seconds
        running = slowly(cloud, image, vm)
        cloud.delete(vm, name).succeeded()
        assert not (vm.path / "disk.0").exists()
        running.outcome().failed("being deleted" if daemon == "yes" else "a newer action has taken over")
    cloud.wait_for_quiet("host1")
    assert vm.path.exists() == bool(name)
    assert not name or look.leftovers(vm.path) == []
    cloud.clone(image, vm).succeeded()
    assert_cloned(vm, image)


def test_what_is_not_there_is_deleted(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    cloud.delete(vm).succeeded()
    cloud.clone(image, vm).succeeded()
    cloud.delete(vm, "disk.0").succeeded()
    assert list(vm.path.iterdir()) == []
    cloud.delete(vm).succeeded()
    assert not vm.path.exists()
    cloud.delete(vm).succeeded()


def test_a_delete_elsewhere_is_refused(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm, other = cloud.vm(image), cloud.vm(image)
    cloud.clone(image, other).succeeded()
    for target in (other.directory, f"{vm.directory}/..", f"{vm.directory}/../{other.id}", cloud.system, "/etc"):
        cloud.run("delete", f"host1:{target}", str(vm.id), "0").failed()
    assert_cloned(other, image)


def test_a_replaced_driver_is_served_by_a_new_daemon_while_the_old_one_completes(cloud: Cloud) -> None:
    image, small = cloud.known("random"), cloud.known("odd")
    vm, second = cloud.vm(image), cloud.vm(small, "host2")
    with rate(cloud.lab, "host1", "50mbit"):
        running = slowly(cloud, image, vm)
        (old,) = cloud.daemons()
        lanes = cloud.lab.fe.processes("ssh")
        cloud.lab.fe.signal(lanes, signal.SIGSTOP)  # the clone does not end before we have looked
        try:
            cloud.lab.install_driver()
            cloud.clone(small, second).succeeded()
            assert old in cloud.daemons() and len(cloud.daemons()) == 2
        finally:
            cloud.lab.fe.signal(lanes, signal.SIGCONT)
            outcome = running.outcome()
    outcome.succeeded()
    processes.wait_for(lambda: old not in cloud.daemons(), 30, "the old daemon to end")
    assert_cloned(vm, image)
    assert_cloned(second, small)


@pytest.mark.parametrize("limits", [("100mbit",), ("10gbit", "100mbit")], ids=["slow", "slow after a while"])
def test_where_the_link_is_slow_chunks_are_packed(cloud: Cloud, limits: Sequence[str]) -> None:
    """The image packs to a half.  Which way is the better one on a fast link depends on the machine; on this one it is
    packed, however the transfer began, and whatever earlier ones to this host have taught."""
    begun, size, raw = 24 * MIB, 192 * MIB, 0
    image = cloud.image(lambda path: symbols(path, size, count=16))
    vm = cloud.vm(image)
    node = cloud.node(vm)
    with rate(cloud.lab, "host1", limits[0]), traffic(node) as seen:
        running, before = cloud.start_clone(image, vm), node.rx_bytes()
        for limit in limits[1:]:
            wait_for_bytes(node, begun)
            cloud.lab.rate("host1", limit)
            raw = node.rx_bytes() - before  # in whatever way, and more than was waited for where this test is held up
        running.outcome().succeeded()
    assert 0.45 * size < seen.rx < raw + 0.8 * (size - raw) + 4 * MIB
    assert raw < size - 32 * MIB  # else a raw transfer would pass, too
    assert_cloned(vm, image)


def test_asked_to_end_it_completes_what_it_has_and_leaves_nothing(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    with rate(cloud.lab, "host1", "50mbit"):
        running = slowly(cloud, image, vm)
        cloud.lab.fe.signal(cloud.daemons(), signal.SIGTERM)
        running.outcome().succeeded()
    processes.wait_for(lambda: not cloud.daemons(), 30, "the daemon to end")
    processes.wait_for(lambda: not cloud.agents("host1"), 30, "the agents to end")
    assert list(state(cloud).glob("*.sock")) == []
    assert_cloned(vm, image)


def test_a_dead_agent_that_was_kept_is_replaced(cloud: Cloud) -> None:
    image = cloud.known("odd")
    cloud.clone(image, cloud.vm(image)).succeeded()
    cloud.lab.hosts["host1"].signal(cloud.agents("host1"), signal.SIGKILL)
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    assert_cloned(vm, image)


def test_a_connection_that_breaks_in_the_middle_is_dialled_again(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    node = cloud.node(vm)
    with rate(cloud.lab, "host1", "50mbit"):
        running = slowly(cloud, image, vm)
        sessions = [pid for pid in node.processes("sshd") if processes.arguments(pid)[:1] == ["sshd: oneadmin@notty"]]
        assert sessions
        node.signal(sessions, signal.SIGKILL)
        outcome = running.outcome().succeeded()
    assert "trying again" in outcome.stderr
    assert_cloned(vm, image)


def test_without_a_place_for_its_socket_the_action_runs_all_the_same(cloud: Cloud) -> None:
    place = state(cloud)
    place.rename(place.with_name("aside"))
    place.write_text("in the way")
    try:
        image = cloud.image(lambda path: random_data(path, MIB))
        vm = cloud.vm(image)
        cloud.clone(image, vm).succeeded()
        assert cloud.daemons() == []
    finally:
        place.unlink()
        place.with_name("aside").rename(place)
    assert_cloned(vm, image)
