"""Links that break or go silent in the middle of a transfer, and a driver that is ended there.

A dead link is an error within about a minute (ssh's keep-alive: 5 s, three times), never a hang, and never half a file.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from tests.e2e import look
from tests.e2e.cloud import Cloud, rate, wait_for_bytes

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_process")]

SIZE = 24 * MIB


class Victim:
    """A host with a clone and an mvds under way when its link dies."""

    def __init__(self, cloud: Cloud, host: str) -> None:
        self.cloud, self.node = cloud, cloud.lab.hosts[host]
        self.image = cloud.known("random")
        self.old = cloud.image(lambda path: random_data(path, SIZE, seed=41))
        self.there, self.back = cloud.vm(self.image, host), cloud.vm(self.old, host)
        cloud.clone(self.old, self.back).succeeded()
        cloud.wait_for_quiet(host)
        self.disk = self.back.path / "disk.0"
        random_data(self.disk, SIZE, seed=42)
        self.before = self.contents()

    def contents(self) -> tuple[str, str]:
        """The image that is to be replaced, and the disk that is to replace it."""
        return look.sha256(self.old.file), look.sha256(self.disk)

    def start(self) -> None:
        """Start both, and return when both are half-way."""
        self.running = [self.cloud.start_mvds(self.back, self.old), self.cloud.start_clone(self.image, self.there)]
        wait_for_bytes(self.node, SIZE // 3)
        wait_for_bytes(self.node, SIZE // 8, sent=True)

    def assert_both_failed(self) -> None:
        """Assert that both end with an error, and that nothing came of them."""
        for running in self.running:
            running.outcome().failed(self.node.name)
        assert not (self.there.path / "disk.0").exists()
        assert self.contents() == self.before

    def assert_both_succeed(self) -> None:
        """Assert that both can be repeated."""
        self.cloud.clone(self.image, self.there).succeeded()
        assert look.same_content(self.there.path / "disk.0", self.image.file)
        assert look.leftovers(self.there.path) == []
        self.cloud.mvds(self.back, self.old).succeeded()
        assert look.same_content(self.old.file, self.disk)


def test_clone_and_mvds_over_links_that_are_cut_or_go_silent_half_way_end_with_an_error(cloud: Cloud) -> None:
    """Defect B3 of the stock drivers."""
    cut, silent = Victim(cloud, "host1"), Victim(cloud, "host3")  # both at once: each takes half a minute
    with rate(cloud.lab, "host1", "30mbit"), rate(cloud.lab, "host3", "30mbit"):
        cut.start()
        cut.node.cut()
        silent.start()
        silent.node.freeze()
        try:
            cut.assert_both_failed()
            silent.assert_both_failed()
        finally:
            cut.node.restore()
            silent.node.thaw()
    cut.assert_both_succeed()
    silent.assert_both_succeed()
    assert look.leftovers(cut.old.file.parent) == []  # the image datastore of both


def test_a_link_that_is_dead_from_the_start_is_an_error(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    cloud.node(vm).freeze()
    try:
        cloud.clone(image, vm).failed("host1", "timed out")
    finally:
        cloud.node(vm).thaw()
    assert not vm.path.exists()
    cloud.clone(image, vm).succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)


def test_a_short_break_is_survived(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    node = cloud.node(vm)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(node, SIZE // 3)
        node.freeze()
        node.run(["sleep", "3"])
        node.thaw()
        running.outcome().succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_driver_that_is_told_to_end_says_so_and_leaves_no_disk(cloud: Cloud, number: signal.Signals) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    node = cloud.node(vm)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(node, SIZE // 3)
        python = [pid for pid in cloud.lab.fe.processes() if "tm_fastcopy.frontend.main" in command(pid)]
        cloud.lab.fe.signal(python[-1:], number)
        running.outcome().failed("signal")
    assert not (vm.path / "disk.0").exists()
    cloud.wait_for_quiet("host1")
    cloud.clone(image, vm).succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)


def command(pid: int) -> list[str]:
    """A process's arguments; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def test_killed_lanes_are_dialled_again(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image)
    node = cloud.node(vm)
    with rate(cloud.lab, "host1", "50mbit"):
        running = cloud.start_clone(image, vm)
        wait_for_bytes(node, SIZE // 3)
        bulk = [pid for pid in cloud.lab.fe.processes("ssh") if "-c" in command(pid)]
        assert bulk, "no lane was found"
        cloud.lab.fe.signal(bulk[:1], signal.SIGKILL)
        outcome = running.outcome().succeeded()
    assert "never retrieved" not in outcome.stderr  # what asyncio says of exceptions that nobody took in
    assert look.same_content(vm.path / "disk.0", image.file)
    assert look.leftovers(vm.path) == []
