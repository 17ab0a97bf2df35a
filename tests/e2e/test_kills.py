"""Kill -9 of every process that takes part in a clone, in every phase of it; through the daemon, on a real host.

The crash walk (tests/faults) kills at every change that is made to a file system.  Here processes are killed from
outside, at moments that a file system shows, and what the crash walk does not have takes part: daemon, client and ssh.
FASTCOPY_KILLS sets how often each process is killed in each phase.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.testbed.node import Node
from tests.e2e import look
from tests.e2e.cloud import Cloud, Image, Running, Vm, empty, rate

pytestmark = pytest.mark.root

KILLS = int(os.environ.get("FASTCOPY_KILLS", "2"))
HOST = "host1"
_PATIENCE = 60.0  # seconds for a phase to come


class Scene:
    """One clone of an image that its host does not have."""

    def __init__(self, cloud: Cloud) -> None:
        cloud.wait_for_quiet(HOST)
        self.cloud, self.image = cloud, cloud.known("random")
        self.node: Node = cloud.lab.hosts[HOST]
        self.cache = cloud.cache(HOST)
        if self.cache.exists():
            empty(self.cache)
        self.vm = cloud.vm(self.image, HOST)
        # Somebody has to be there before they can be killed early.
        other = cloud.known("empty")
        self.other = cloud.vm(other, HOST)
        cloud.clone(other, self.other).succeeded()
        cloud.wait_for_quiet(HOST)
        self.before = {"agent": cloud.agents(HOST), "daemon": cloud.daemons()}

    def staged(self) -> int:
        """Bytes in the cache's staging file."""
        found = list(self.cache.glob(".*.img.fastcopy.part"))
        try:
            return found[0].stat().st_blocks * 512 if found else 0
        except FileNotFoundError:
            return 0

    def entered(self) -> bool:
        """Whether the image has its name in the cache."""
        return any(entry.name.endswith(".img") for entry in self.cache.iterdir())


PHASES: dict[str, Callable[[Scene], bool]] = {
    "plan": lambda scene: scene.vm.path.exists(),
    "transfer": lambda scene: scene.staged() > 4 << 20,
    "cache publish": lambda scene: scene.entered(),
    "disk publish": lambda scene: (scene.vm.path / ".disk.0.fastcopy.part").exists(),
}
VICTIMS = {"agent": PHASES, "daemon": PHASES, "client": PHASES, "lane": ["transfer"]}


def await_phase(scene: Scene, phase: str, running: Running) -> bool:
    """Return as soon as the phase has come; False if the clone was over before that was seen."""
    deadline = time.monotonic() + _PATIENCE
    while not PHASES[phase](scene):
        if running.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"{phase} did not come"
    return True


def kill(scene: Scene, victim: str, running: Running) -> None:
    """Kill it."""
    if victim == "client":
        running.process.kill()
    elif victim == "lane":
        lanes = [pid for pid in scene.cloud.agents(HOST) if pid not in scene.before["agent"]]
        scene.node.signal(lanes[:1], signal.SIGKILL)
    elif victim == "agent":
        scene.node.signal(scene.before["agent"], signal.SIGKILL)
    else:
        scene.cloud.lab.fe.signal(scene.before["daemon"], signal.SIGKILL)


def assert_whole(path: Path, image: Image) -> bool:
    """If there is a disk, it is the image."""
    return not path.exists() or look.same_content(path, image.file)


@pytest.mark.parametrize(("victim", "phase"), [(victim, phase) for victim in VICTIMS for phase in VICTIMS[victim]])
def test_killed(cloud: Cloud, victim: str, phase: str, record_property: Callable[[str, object], None]) -> None:
    """Defect A5 of the stock drivers."""
    hits = errors = 0
    for _ in range(20 * KILLS):
        if hits == KILLS:
            break
        scene = Scene(cloud)
        vm: Vm = scene.vm
        with rate(cloud.lab, HOST, "200mbit"):
            running = cloud.start_clone(scene.image, vm)
            hit = await_phase(scene, phase, running)
            if hit:
                kill(scene, victim, running)
            outcome = running.outcome()
        hits += hit
        errors += outcome.code != 0
        assert assert_whole(vm.path / "disk.0", scene.image)
        if victim != "client":  # everybody else is replaced, and the action goes on
            outcome.succeeded()
        cloud.clone(scene.image, vm).succeeded()
        assert look.same_content(vm.path / "disk.0", scene.image.file)
        cloud.wait_for_quiet(HOST)
        assert look.leftovers(vm.path) == []
        # What the cache has got by now serves the next VM, and serves it right.
        second = cloud.vm(scene.image, HOST)
        cloud.clone(scene.image, second).succeeded()
        assert look.same_content(second.path / "disk.0", scene.image.file)
        for done in (scene.other, vm, second):  # of fifty rounds the host's file system would be full
            shutil.rmtree(done.path)
    record_property("counted", f"{victim} killed in {phase}: {hits} times, {errors} clones failed, all repeats right")
    assert hits == KILLS
