"""Jobs: one action of one driver in the lab, timed, counted and checked.

Both drivers do the same work on the same machine: `fastcopy` through its entry point as oned calls it, and
`ssh-pipeline`, the ssh calls and `tar | ssh | tar` of the stock `ssh` driver (bench/pipeline.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Dict, Iterable, List

from bench import measure, pipeline
from bench.testbed import Lab, Node
from tm_fastcopy.core.identity import SETTLED_NS

FASTCOPY = "fastcopy"
PIPELINE = "ssh-pipeline"
STOCK = "ssh"
"""OpenNebula's own `ssh` driver, in a lab that was built with an OpenNebula checkout."""

IMAGES = 1  # id of the lab's image datastore
SYSTEM = {FASTCOPY: 0, PIPELINE: 100, STOCK: 100}
"""The system datastore that each driver serves in the lab."""
_LONGEST = 600.0  # seconds for one action; the slowest here takes twenty


class WrongContent(Exception):
    """A driver said that it was done, and the file is not what it should be."""


@dataclass(frozen=True)
class Run:
    """What one action took: seconds to its exit, and until the file was durable; bytes through the host's interface."""

    seconds: float
    durable: float
    wire: int
    said: str


class Jobs:
    """Actions on images in a running lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._next_vm = 10
        self._digests: Dict[str, str] = {}

    def add_image(
        self, number: int, name: str, source: Path, persistent: bool = False, format: str = "raw"
    ) -> str:
        """Put a copy of *source* into the image datastore as image *number*; return its path there."""
        path = f"{self.lab.datastores}/{IMAGES}/{name}"
        inside = self.lab.fe.path(path)
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, inside], check=True, timeout=_LONGEST)
        shutil.chown(inside, 9869, 9869)
        size = -(-source.stat().st_size // 2**20)
        self.lab.oned.add_image(number, IMAGES, path, size, persistent=persistent, format=format)
        return path

    def new_vm(self, host: str, image: int, system: int) -> int:
        """A VM with one disk of an image; its id."""
        self._next_vm += 1
        self.lab.oned.add_vm(self._next_vm, host=host, ds_id=system, disks=[{"IMAGE_ID": image}])
        return self._next_vm

    def disk(self, vm: int, system: int) -> str:
        """Path of a VM's disk 0 on its host."""
        return f"{self.lab.datastores}/{system}/{vm}/disk.0"

    def clone(self, driver: str, host: str, image: int, path: str, quickly: bool = False) -> tuple[Run, int]:
        """Clone an image to a new VM; check the disk; return the run and the VM's id.

        *quickly*: the disk is compared where it or the image has data, instead of by SHA-256, which reads holes too.
        """
        system = SYSTEM[driver]
        vm = self.new_vm(host, image, system)
        node, disk = self.lab.hosts[host], self.disk(vm, system)
        if driver != PIPELINE:
            arguments = ("clone", f"fe:{path}", f"{host}:{disk}", str(vm), str(IMAGES))
            commands: Iterable[pipeline.Command] = [self._entry(*arguments, driver=driver)]
        else:
            commands = pipeline.clone_commands(Path(path), "fe", host, PurePosixPath(disk), None, True)
        run = self._run(node, commands, durable_on=node, durable=disk)
        if quickly:
            image_file, made = self.lab.fe.path(path), node.path(disk)
            if image_file.stat().st_size != made.stat().st_size or measure.changed_blocks(image_file, made):
                raise WrongContent(f"{driver} clone on {host}: the file is not what it should be")
            return run, vm
        if path not in self._digests:
            self._digests[path] = measure.sha256(self.lab.fe.path(path))
        self._same(self._digests[path], node.path(disk), f"{driver} clone on {host}")
        return run, vm

    def write_back(self, driver: str, host: str, vm: int, path: str) -> Run:
        """Bring a VM's disk back as the image *path*; check the image."""
        system = SYSTEM[driver]
        node, disk = self.lab.hosts[host], self.disk(vm, system)
        if driver == FASTCOPY:
            commands: Iterable[pipeline.Command] = [self._entry("mvds", f"{host}:{disk}", path, str(vm), str(IMAGES))]
        else:
            commands = pipeline.mvds_commands(PurePosixPath(disk), host, Path(path))
        run = self._run(node, commands, durable_on=self.lab.fe, durable=path)
        self._same(measure.sha256(node.path(disk)), self.lab.fe.path(path), f"{driver} mvds from {host}")
        return run

    def _entry(self, action: str, *arguments: str, driver: str = FASTCOPY) -> pipeline.Command:
        entry = f"{self.lab.one_location}/var/remotes/tm/{driver}/{action}"
        return pipeline.Command((entry, *arguments), "")

    def _run(self, host: Node, commands: Iterable[pipeline.Command], durable_on: Node, durable: str) -> Run:
        before = host.rx_bytes() + host.tx_bytes()
        started = time.monotonic()
        said: List[str] = []
        for command in commands:
            done = self.lab.fe.run(command.argv, input=command.script.encode(), timeout=_LONGEST)
            said.append(done.stderr.decode("utf-8", "replace").strip())
            if done.returncode:
                raise WrongContent(f"{command.argv[0]} failed: {said[-1]}")
        seconds = time.monotonic() - started
        durable_on.run(["sync", "--file-system", durable], timeout=_LONGEST, check=True)
        wire = host.rx_bytes() + host.tx_bytes() - before
        return Run(seconds, time.monotonic() - started, wire, " ".join(said))

    def _same(self, wanted: str, got: Path, what: str) -> None:
        if measure.sha256(got) != wanted:
            raise WrongContent(f"{what}: the file is not what it should be")


def settle(paths: Iterable[Path]) -> None:
    """Make files durable, and let them rest for as long as an identity must (core/identity.py)."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    time.sleep(SETTLED_NS / 1e9 + 0.1)
