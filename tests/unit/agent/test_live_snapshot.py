# ruff: noqa: F401, F811 (fixtures of another module)
"""Snapshots of a VM that runs, with a virsh that does to files what the VM would do (`fake_virsh.py`)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from tests.support import NO_SHARING, RecordingFiles, qemu_img
from tests.unit.agent.test_snapshots import (
    MIB,
    active,
    ask,
    create,
    put,
    refused,
    revert,
    seen,
    shown,
    state,
    tree,
    vm,
    write_flat,
)
from tm_fastcopy.agent import containers, standstill
from tm_fastcopy.agent import live_snapshot as module
from tm_fastcopy.core.errors import FastcopyError, ProtocolError, Superseded
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.snapshot_messages import SnapCreateLive, SnapDelete, Snapped


class Running:
    """VM 42, as libvirt sees it."""

    def __init__(self, home: Path, vm: Path) -> None:
        self.home, self.vm = home, vm
        shutil.copyfile(Path(__file__).with_name("fake_virsh.py"), home / "virsh")
        (home / "virsh").chmod(0o700)
        self.starts()

    def starts(self) -> None:
        """The VM is deployed, which follows the disk's link."""
        path = self.vm / "disk.0"
        (self.home / "source").write_text(str(active(self.vm) if path.is_symlink() else path))

    def writes(self, letter: str) -> None:
        """Its guest writes."""
        link = self.vm / "disk.0"
        before = os.readlink(link)
        os.unlink(link)
        os.symlink(os.path.relpath(self.source, self.vm), link)
        put(self.vm, letter)
        os.unlink(link)
        os.symlink(before, link)

    @property
    def source(self) -> str:
        """What it writes to."""
        return (self.home / "source").read_text()

    def fails(self, what: str) -> None:
        """A call fails, early ("fail-suspend") or late ("late-suspend")."""
        (self.home / what).touch()

    def mends(self) -> None:
        """No call fails."""
        for path in [*self.home.glob("fail-*"), *self.home.glob("late-*"), *self.home.glob("kill-*")]:
            path.unlink()

    @property
    def calls(self) -> List[str]:
        """The calls so far that change something: their first words."""
        lines = (self.home / "log").read_text().splitlines() if (self.home / "log").exists() else []
        return [line.split(" ")[0] for line in lines]

    @property
    def undisturbed(self) -> bool:
        """Whether it runs and nothing of it is frozen."""
        return not (self.home / "paused").exists() and not (self.home / "frozen").exists()


@pytest.fixture
def running(tmp_path: Path, vm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """VM 42 runs; a test makes its disk first."""
    home = tmp_path / "libvirt"
    home.mkdir()
    if not os.path.lexists(vm / "disk.0"):
        write_flat(vm, b"one")
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    monkeypatch.setattr(standstill, "_PAUSE", 0.01)
    yield Running(home, vm)


def live(
    base: Path, number: int, format: str = "qcow2", freeze: str = "none", files: Any = None, container: bool = False
) -> Any:
    return ask(base, SnapCreateLive(number, format, True, "one-42", "vda", container, freeze), files)


class Sharing(Files):
    """A file system that can share blocks, wherever the test runs: it copies."""

    def __init__(self) -> None:
        self.clones: List[str] = []

    def clone(self, target: int, source: int) -> bool:
        size = os.fstat(source).st_size
        self.clones.append(os.readlink(f"/proc/self/fd/{target}"))
        self.copy_range(target, source, 0, size, 0)
        return True


# --- overlays ----------------------------------------------------------------------------------------------------


def test_a_tree_of_a_running_vm(base: Path, vm: Path, tree: Path, running: Running) -> None:
    assert isinstance(live(base, 0), Snapped)
    assert running.source == f"{tree}/1" and os.readlink(vm / "disk.0") == "disk.0.snap/1"
    running.writes("b")
    assert isinstance(live(base, 1, freeze="agent"), Snapped)
    assert isinstance(live(base, 1), Snapped)  # once more: it is there
    running.writes("c")
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2": ("1", "abcc")}
    assert running.calls == ["snapshot-create-as", "domfsfreeze", "snapshot-create-as", "domfsthaw"]
    assert sorted(os.listdir(vm)) == ["disk.0", "disk.0.snap"]


@pytest.mark.parametrize("what", ["fail-dumpxml", "fail-domfsfreeze", "fail-snapshot-create-as"])
def test_a_vm_that_does_not_want_to(base: Path, vm: Path, tree: Path, running: Running, what: str) -> None:
    create(base, 0)
    put(vm, "b")
    running.starts()
    before = shown(tree)
    running.fails(what)
    refused(live(base, 1, freeze="agent"), what.split("-", 1)[1], "the VM does not want to")
    assert shown(tree) == before and os.readlink(vm / "disk.0") == "disk.0.snap/1"
    assert sorted(os.listdir(vm)) == ["disk.0", "disk.0.snap"]
    running.mends()
    assert isinstance(live(base, 1), Snapped)
    assert running.source == f"{tree}/2"


def test_an_answer_that_was_lost(base: Path, vm: Path, tree: Path, running: Running) -> None:
    """The VM writes to the new file by now, and the call has failed: the link must stay with the VM."""
    running.fails("late-snapshot-create-as")
    assert isinstance(live(base, 0), Snapped)
    assert running.source == f"{tree}/1" and os.readlink(vm / "disk.0") == "disk.0.snap/1"


def test_between_link_and_vm_nothing_is_lost(base: Path, vm: Path, tree: Path, running: Running) -> None:
    """Cut off right before the VM was asked: what it writes meanwhile is what the link leads to."""

    class Gone(Exception):
        pass

    def die(*_: object) -> None:
        raise Gone

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Gone):
        patched.setattr(module.Virsh, "overlay", die)
        live(base, 0)
    running.writes("b")
    assert running.source == f"{tree}/0" and os.readlink(vm / "disk.0") == "disk.0.snap/1"
    assert seen(active(vm)) == "abb"  # were it powered off now, it would go on from here
    assert isinstance(live(base, 0), Snapped)
    assert running.source == f"{tree}/1"
    running.writes("c")
    assert shown(tree) == {"0": (None, "abb"), "1": ("0", "abcc")}


def test_a_link_that_stock_did_not_get_to(base: Path, vm: Path, tree: Path, running: Running) -> None:
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "0", tree / "1", 4 * MIB)
    (running.home / "source").write_text(f"{tree}/1")
    running.writes("b")
    assert isinstance(live(base, 0), Snapped)
    assert os.readlink(vm / "disk.0") == "disk.0.snap/1"
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb")}


def test_containers_have_no_overlays(base: Path, vm: Path, tree: Path, running: Running) -> None:
    before = state(vm)
    refused(live(base, 0, container=True), "container", "power it off")
    assert state(vm) == before


# --- what a running VM rests on is removed -----------------------------------------------------------------------


def remove(base: Path, number: int) -> Any:
    return ask(base, SnapDelete(number, "qcow2", True, "one-42", "vda"))


def test_a_snapshot_that_a_running_vm_rests_on(base: Path, vm: Path, tree: Path, running: Running) -> None:
    for number, letter in enumerate("bc"):
        live(base, number)
        running.writes(letter)
    refused(remove(base, 0), "snapshot 0", "lies between")
    running.fails("fail-blockpull")
    refused(remove(base, 1), "blockpull")
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2": ("1", "abcc")}
    running.mends()
    assert isinstance(remove(base, 1), Snapped)
    assert shown(tree) == {"0": (None, "aa"), "2": ("0", "abcc")}
    assert isinstance(remove(base, 0), Snapped)
    assert shown(tree) == {"2": (None, "abcc")}
    assert running.source == f"{tree}/2"


def test_a_snapshot_on_another_branch(base: Path, vm: Path, tree: Path, running: Running) -> None:
    create(base, 0)
    put(vm, "b")
    create(base, 1)
    put(vm, "c")
    create(base, 2)
    revert(base, 0)
    put(vm, "d")
    running.starts()
    assert shown(tree) == {"0": (None, "aa"), "1": ("0", "abb"), "2": ("1", "abcc"), "3": ("0", "add")}
    assert isinstance(remove(base, 1), Snapped)
    assert shown(tree) == {"0": (None, "aa"), "2": ("0", "abcc"), "3": ("0", "add")}
    assert isinstance(remove(base, 0), Snapped)  # the VM rests on it, and so does another
    assert shown(tree) == {"2": (None, "abcc"), "3": (None, "add")}
    assert running.calls == ["blockpull"]


def test_the_file_that_a_running_vm_writes_to_is_never_replaced(
    base: Path, vm: Path, tree: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(base, 0)
    running.writes("b")
    before = (tree / "1").stat().st_ino
    monkeypatch.setattr(module.Virsh, "sources", lambda *_: [str(vm / "disk.0")])  # it does not list what it rests on
    refused(remove(base, 0), "rests on snapshot 0", "power it off")
    monkeypatch.setattr(module.Virsh, "sources", lambda *_: [str(tree / "0")])  # nor is it where the link leads to
    refused(remove(base, 0), "writes to", "power it off")
    assert (tree / "1").stat().st_ino == before and shown(tree) == {"0": (None, "aa"), "1": ("0", "abb")}


# --- copies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("freeze", "calls"), [
    ("none", ["suspend", "resume"]), ("suspend", ["suspend", "resume"]), ("agent", ["domfsfreeze", "domfsthaw"]),
])
def test_a_reflink_while_the_vm_stands_still(
    base: Path, vm: Path, running: Running, freeze: str, calls: List[str]
) -> None:
    files = Sharing()
    assert isinstance(live(base, 0, "raw", freeze, files), Snapped)
    assert running.calls == calls
    assert (vm / "disk.0.snap/0").read_bytes() == (vm / "disk.0").read_bytes()
    assert len(files.clones) == 2  # once before, so that the guest does not wait for what is dirty
    assert os.listdir(vm / "disk.0.snap") == ["0"]


@pytest.mark.parametrize(("freeze", "calls"), [
    ("none", ["blockcopy"]), ("agent", ["domfsfreeze", "blockcopy", "domfsthaw"]),
])
def test_a_copy_by_the_hypervisor(
    base: Path, vm: Path, running: Running, freeze: str, calls: List[str]
) -> None:
    files = RecordingFiles(lacking=NO_SHARING)
    assert isinstance(live(base, 0, "raw", freeze, files), Snapped)
    assert running.calls == calls
    assert (vm / "disk.0.snap/0").read_bytes() == (vm / "disk.0").read_bytes()
    assert os.listdir(vm / "disk.0.snap") == ["0"]


@pytest.mark.parametrize("what", ["fail-suspend", "late-suspend", "fail-blockcopy", "fail-resume"])
def test_a_vm_that_does_not_want_to_be_copied(base: Path, vm: Path, running: Running, what: str) -> None:
    files = RecordingFiles(lacking=NO_SHARING) if "blockcopy" in what else Sharing()
    running.fails(what)
    refused(live(base, 0, "raw", files=files), what.split("-")[1])
    assert os.listdir(vm / "disk.0.snap") == []
    assert "suspend" not in running.calls or "resume" in running.calls  # it does not stand for ever
    running.mends()
    assert isinstance(live(base, 0, "raw", files=Sharing()), Snapped)


@pytest.mark.parametrize(("freeze", "step"), [("none", "suspend"), ("agent", "domfsfreeze")])
def test_an_agent_that_is_killed_leaves_no_vm_standing(
    base: Path, vm: Path, running: Running, freeze: str, step: str
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.agent import test_live_snapshot as t;"
        f"t.live(Path(sys.argv[1]), 0, 'raw', {freeze!r}, t.Sharing())"
    )
    running.fails(f"kill-{step}")
    argv = [sys.executable, "-c", code, str(base)]
    assert subprocess.run(argv, cwd=Path(__file__).parents[3], timeout=60).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while not running.undisturbed and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running.undisturbed
    running.mends()
    assert isinstance(live(base, 0, "raw", freeze, Sharing()), Snapped)
    assert sorted(os.listdir(vm)) == ["disk.0", "disk.0.snap"] and running.undisturbed


def test_a_vm_that_was_paused_by_somebody_else_stays_so(base: Path, vm: Path, running: Running) -> None:
    (running.home / "paused").touch()
    assert isinstance(live(base, 0, "raw", files=Sharing()), Snapped)
    assert running.calls == [] and not running.undisturbed


def test_a_vm_with_overlays_that_stays_frozen_is_an_error(
    base: Path, vm: Path, tree: Path, running: Running
) -> None:
    running.fails("fail-domfsthaw")
    refused(live(base, 0, freeze="agent"), "domfsthaw", "stay frozen")
    assert running.source == f"{tree}/1" and os.readlink(vm / "disk.0") == "disk.0.snap/1"
    running.mends()
    assert isinstance(live(base, 0, freeze="agent"), Snapped) and running.undisturbed  # whoever comes next thaws it


LXC = """#!/bin/sh
# sudo -n PROGRAM -n NAME ...
cd %s
case $2 in
lxc-info) cat state ;;
lxc-freeze) echo FROZEN > state; echo "$2" >> log; if [ -e kill ]; then kill -9 $PPID; fi ;;
lxc-unfreeze) echo RUNNING > state; echo "$2" >> log ;;
esac
"""


@pytest.fixture
def container(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a container that runs, with what stands in for LXC; `state` is what lxc-info says."""
    (tmp_path / "sudo").write_text(LXC % running.home)
    (tmp_path / "sudo").chmod(0o700)
    (running.home / "state").write_text("RUNNING\n")
    monkeypatch.setattr(containers, "SUDO", str(tmp_path / "sudo"))
    return running.home


def test_a_container_stands_still(base: Path, vm: Path, running: Running, container: Path) -> None:
    for number, files in enumerate((Sharing(), RecordingFiles(lacking=NO_SHARING))):
        assert isinstance(live(base, number, "raw", files=files, container=True), Snapped)
        assert (vm / f"disk.0.snap/{number}").read_bytes() == (vm / "disk.0").read_bytes()
        assert sorted(os.listdir(vm)) == ["disk.0", "disk.0.snap"]
    assert running.calls == ["lxc-freeze", "lxc-unfreeze"] * 2


def test_a_container_that_somebody_has_frozen_stays_so(base: Path, running: Running, container: Path, vm: Path) -> None:
    (container / "state").write_text("FROZEN\n")
    assert isinstance(live(base, 0, "raw", files=Sharing(), container=True), Snapped)
    assert running.calls == []


def test_a_container_goes_on_if_the_agent_is_killed(
    base: Path, vm: Path, running: Running, container: Path, tmp_path: Path
) -> None:
    (container / "kill").touch()
    program = (
        "import sys; from pathlib import Path; from tests.unit.agent import test_live_snapshot as t;"
        "t.containers.SUDO = sys.argv[2];"
        "t.live(Path(sys.argv[1]), 0, 'raw', files=t.Sharing(), container=True)"
    )
    argv = [sys.executable, "-c", program, str(base), str(tmp_path / "sudo")]
    died = subprocess.run(argv, cwd=Path(__file__).parents[3], timeout=60)
    assert died.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while running.calls != ["lxc-freeze", "lxc-unfreeze"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (container / "state").read_text() == "RUNNING\n"
    # Were the waker killed, too, it would be the next action's.
    (container / "state").write_text("FROZEN\n")
    (container / "kill").unlink()
    assert (vm / standstill.MARK).exists()
    assert isinstance(live(base, 0, "raw", files=Sharing(), container=True), Snapped)
    assert (container / "state").read_text() == "RUNNING\n" and not (vm / standstill.MARK).exists()


# --- the program -------------------------------------------------------------------------------------------------


def test_a_program_that_hangs(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(FastcopyError, match="`sleep 60` did not end within"):
        module.run(["sleep", "60"], "sleep 60", lambda: True, 0.1)
    with pytest.raises(Superseded, match="went away"):
        module.run(["sleep", "60"], "sleep 60", lambda: False, 1000.0)
    assert time.monotonic() - started < 30


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FastcopyError, match="`virsh x` cannot be run on this host: No such file"):
        module.run(["/no/virsh", "x"], "virsh x", lambda: True, 1.0)


@pytest.mark.parametrize(("domain", "target"), [("-rf", "vda"), ("one 42", "vda"), ("one-42", "vda,file=/x"), (
    "one-42", "--all")])
def test_words_that_a_program_would_misread(domain: str, target: str) -> None:
    with pytest.raises(ProtocolError):
        SnapCreateLive(0, "raw", True, domain, target, False, "none")
    with pytest.raises(ProtocolError):
        SnapDelete(0, "raw", True, domain, target)
