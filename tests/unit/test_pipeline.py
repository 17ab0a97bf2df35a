"""The restated stock driver really copies, with the stock driver's number of logins.

An `ssh` of our own stands in PATH: it notes the call and runs the command here, through a shell, as sshd does.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath
from typing import List, Sequence

import pytest

from bench.images import edge
from bench.images.edge import BLOCK, MIB
from bench.images.extents import summary
from bench.pipeline import Command, clone_commands, mvds_commands

SSH = """#!/bin/sh
echo "ssh $*" >> "$CALLS"
while [ "$1" = -o ]; do shift 2; done
shift
exec sh -c "$*"
"""
QEMU_IMG = """#!/bin/sh
echo "qemu-img $*" >> "$CALLS"
if [ "$1" = convert ]; then cp -L -- "$4" "$5"; fi
"""
FORWARDING = "-o ForwardAgent=yes -o ControlMaster=no -o ControlPath=none"


class Machine:
    """Runs commands with the programs above in PATH; `calls` is what they were called with."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "calls"
        programs = directory / "programs"
        programs.mkdir()
        for name, text in (("ssh", SSH), ("qemu-img", QEMU_IMG)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(self.log),
        }

    def run(self, commands: Sequence[Command]) -> List[int]:
        return [
            subprocess.run(
                command.argv, input=command.script, text=True, env=self.environment, check=False, stderr=subprocess.PIPE
            ).returncode
            for command in commands
        ]

    def calls(self) -> List[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "ab[c].*d|&"  # no name of OpenNebula's, but one that would show
    path.parent.mkdir()
    edge.islands(path, 8 * MIB + 11, 20)
    return path


@pytest.mark.parametrize("sparse", [True, False])
def test_clone_copies_with_four_logins_of_the_front_end_and_one_of_its_own(
    tmp_path: Path, machine: Machine, image: Path, sparse: bool
) -> None:
    disk = tmp_path / "system" / "7" / "disk.0"
    commands = clone_commands(image, "fe", "h1", PurePosixPath(disk), 20, sparse)
    assert machine.run(commands) == [0, 0, 0, 0]
    assert disk.read_bytes() == image.read_bytes()
    assert (summary(disk).data < MIB) is sparse
    assert (disk.parent.parent / ".monitor").read_text() == "ssh\n"
    unpack = f"tar {'-xSf' if sparse else '-xf'} - -C {disk.parent}"
    falloc = "" if sparse else "--preallocation=falloc "
    assert machine.calls() == [
        "ssh h1 bash -s",
        "ssh h1 bash -s",
        f"ssh {FORWARDING} fe bash -s",
        f"ssh {FORWARDING} h1 {unpack}",
        "ssh h1 bash -s",
        f"qemu-img resize {falloc}{disk} 20M",
    ]


def test_clone_without_resize_and_over_an_existing_monitor(tmp_path: Path, machine: Machine, image: Path) -> None:
    disk = tmp_path / "system" / "7" / "disk.0"
    disk.parent.mkdir(parents=True)
    monitor = disk.parent.parent / ".monitor"
    monitor.write_text("other\n")
    for expected in ("written", "left alone"):
        commands = clone_commands(image, "fe", "h1", PurePosixPath(disk), None, True)
        assert machine.run(commands) == [0, 0, 0]
        assert monitor.read_text() == "ssh\n", expected
        os.utime(monitor, (1, 1))
    machine.run(clone_commands(image, "fe", "h1", PurePosixPath(disk), None, True))
    assert monitor.stat().st_mtime == 1


def test_clone_takes_the_snapshots_along(tmp_path: Path, machine: Machine, image: Path) -> None:
    tree = image.with_name(image.name + ".snap")
    tree.mkdir()
    (tree / "0").write_bytes(b"snapshot")
    disk = tmp_path / "system" / "7" / "disk.0"
    assert machine.run(clone_commands(image, "fe", "h1", PurePosixPath(disk), None, True)) == [0, 0, 0]
    assert (disk.parent / "disk.0.snap" / "0").read_bytes() == b"snapshot"


def test_clone_of_a_missing_image_fails(tmp_path: Path, machine: Machine) -> None:
    disk = PurePosixPath(tmp_path / "system" / "7" / "disk.0")
    assert machine.run(clone_commands(tmp_path / "none", "fe", "h1", disk, None, True))[-1] != 0


def test_mvds_brings_a_flat_disk_back(tmp_path: Path, machine: Machine, image: Path) -> None:
    disk = tmp_path / "disk.1"
    edge.random_data(disk, 3 * BLOCK + 1)
    image.with_name(image.name + ".md5sum").write_text("stale")
    assert machine.run(mvds_commands(PurePosixPath(disk), "h1", image)) == [0, 0, 0, 0]
    assert image.read_bytes() == disk.read_bytes()
    assert not image.with_name(image.name + ".md5sum").exists()
    calls = machine.calls()
    assert [call.split(" -")[0] for call in calls] == ["ssh h1 bash", "ssh h1 tar", f"ssh h1 ls {disk}.snap"]


def test_mvds_flattens_a_disk_that_is_a_link(tmp_path: Path, machine: Machine, image: Path) -> None:
    tree = tmp_path / "disk.1.snap"
    tree.mkdir()
    (tree / "0").write_bytes(b"top of the chain")
    disk = tmp_path / "disk.1"
    disk.symlink_to("disk.1.snap/0")
    assert machine.run(mvds_commands(PurePosixPath(disk), "h1", image)) == [0, 0, 0, 0]
    assert image.read_bytes() == b"top of the chain"
    assert not tree.exists()
    assert f"qemu-img convert -O qcow2 {disk} {disk}.full" in machine.calls()
