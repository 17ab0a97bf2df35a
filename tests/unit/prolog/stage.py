"""A stage for the harness without root: nodes that are this machine, and drivers that are shell commands.

Front-end and host see the same directory; the real Site works on it. What a `sync` of the harness does can be chosen,
so that "later" has a fixed place in time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import pytest

from bench.comparison import bounds, site
from bench.comparison.drivers import Disk, Driver
from bench.comparison.site import Picture, Site
from bench.images import edge
from bench.pipeline import Command

KIB = 1024
SIZE = 256 * KIB


class Node:
    """Stands for a node of the lab."""

    def __init__(self, name: str, fs: str = "xfs") -> None:
        self.name, self.fs, self.holder = name, fs, os.getpid()
        self.on_sync: List[Callable[[], None]] = []
        self.bytes = 0

    def path(self, inside: Any) -> Path:
        return Path(inside)

    def processes(self) -> List[int]:
        return []

    def rx_bytes(self) -> int:
        self.bytes += 1000
        return self.bytes

    def tx_bytes(self) -> int:
        return 0

    def run(self, argv: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[bytes]:
        words = [os.fspath(word) for word in argv]
        if words[0] == "fstrim":
            return subprocess.CompletedProcess(words, 0, b"", b"")
        if words[0] == "sync":
            for work in self.on_sync:
                work()
            return subprocess.CompletedProcess(words, 0, b"", b"")
        return subprocess.run(words, input=options.get("input", b""), capture_output=True, timeout=30, check=False)


class Oned:
    """Takes everything, and remembers nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None


class Lab:
    """Stands for the lab; `links` are the rates that were set."""

    def __init__(self, directory: Path, hosts: Sequence[str] = ("host1",)) -> None:
        self.datastores = directory / "datastores"
        self.datastores.mkdir()
        self.fe, self.oned = Node("fe"), Oned()
        self.hosts: Dict[str, Node] = {name: Node(name) for name in hosts}
        self.links: List[Any] = []

    def rate(self, host: str, rate: Any) -> None:
        self.links.append((host, rate))

    def uplink(self, rate: Any) -> None:
        self.links.append(("uplink", rate))


class Shell(Driver):
    """A driver whose clone is a shell command with `$image` and `$disk`. `calls` are the VMs that it was asked for.

    `linked` is the command that makes a persistent disk of an image.
    """

    stock = False
    linked = "cp"

    def __init__(self, name: str, script: str, number: int, **more: Any) -> None:
        super().__init__(name, name, name, (number, number + 1), **more)
        self.script = script
        self.calls: List[int] = []
        self.owner = os.getuid()

    def link(self, lab: Any, image: str, disk: Disk) -> Sequence[Command]:
        return [Command(("bash", "-ec", f"mkdir {Path(disk.path).parent}; {self.linked} {image} {disk.path}"), "")]

    def write_back(self, lab: Any, disk: Disk, image: str) -> Sequence[Command]:
        return [Command(("bash", "-ec", f"test -h {disk.path} || cp {disk.path} {image}"), "")]

    def clone(self, lab: Any, image: str, disk: Disk) -> Sequence[Command]:
        self.calls.append(disk.vm)
        head = f"image={image} disk={disk.path} vm={disk.vm}; mkdir -p {Path(disk.path).parent}; "
        return [Command(("bash", "-ec", head + self.script), "")]


HONEST = 'cp "$image" "$disk"'


def make_site(directory: Path, monkeypatch: pytest.MonkeyPatch, drivers: Sequence[Driver]) -> tuple[Lab, Site]:
    """A site with one image, `system`, of random bytes."""
    monkeypatch.setattr(site, "settle", lambda paths: None)
    monkeypatch.setattr(shutil, "chown", lambda *arguments: None)
    monkeypatch.setattr(bounds, "line_rate", lambda lab, host: 1e6)
    monkeypatch.setattr(bounds, "disk_rate", lambda lab, host: 4e6)
    monkeypatch.setattr(bounds, "ssh_rates", lambda lab, host: {"a-cipher": 2e6})
    lab = Lab(directory)
    for driver in drivers:
        for store in (driver.image_store, driver.system_store):
            (lab.datastores / str(store)).mkdir()
    known = {
        "system": Picture("random", lambda path, _: edge.random_data(path, SIZE)),
        "system-contiguous": site.pictures(directory, False)["system-contiguous"],
    }
    return lab, Site(lab, known)  # type: ignore[arg-type]
