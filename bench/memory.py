"""Peak memory of every process of a clone and of a write-back, by image size.

Read from VmHWM (proc(5)) of every process in the lab's namespaces, every few milliseconds; what is shared between
processes counts in each.  The kernel keeps the peak, so a look shortly before the end is enough.
"""

from __future__ import annotations

import argparse
import re
import sys
import threading
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from bench.images import catalogue, tools
from bench.images.mutate import mutate
from bench.jobs import FASTCOPY, SYSTEM, Jobs, WrongContent, settle
from bench.measure import Table
from bench.testbed import Lab, LabConfig, LabError, Node

_INTERVAL = 0.005  # seconds between looks
_KINDS = (
    ("front-end", re.compile(r"tm_fastcopy\.frontend")),
    ("agent and lanes", re.compile(r"python3 -I -S -c import base64")),
    ("ssh", re.compile(r"^/usr/bin/ssh ")),
    ("sshd", re.compile(r"^sshd: oneadmin")),
)


class Peaks:
    """Watches some nodes while it is entered; `kib` is the highest peak of one process, by kind, in KiB."""

    def __init__(self, nodes: List[Node]) -> None:
        self._nodes = nodes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.kib: Dict[str, int] = {}

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            for node in self._nodes:
                for pid in node.processes():
                    self._look(pid)

    def _look(self, pid: int) -> None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        except OSError:
            return  # it ended while we looked
        for kind, pattern in _KINDS:
            if found and pattern.search(command):
                self.kib[kind] = max(self.kib.get(kind, 0), int(found.group(1)))


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure and print; 0 if every file was right."""
    parser = argparse.ArgumentParser(prog="bench/measure-memory", description=__doc__)
    parser.add_argument("--images", type=Path, default=catalogue.DIRECTORY, help="where the images are kept")
    parser.add_argument("--dir", type=Path, default=LabConfig().dir, help="where the lab is built")
    parser.add_argument("names", nargs="*", default=["islands", "islands-20g"], help="images to measure")
    options = parser.parse_args(arguments)
    kinds = [kind for kind, _ in _KINDS]
    table = Table("image", "action", *(f"{kind} MiB" for kind in kinds), text_columns=(0, 1))
    try:
        for name in options.names:
            catalogue.make(name, options.images)
        with Lab.up(LabConfig(hosts=1, dir=options.dir)) as lab:
            for number, name in enumerate(options.names, 1):
                for action, peaks in _measure(Jobs(lab), number, catalogue.path_of(name, options.images)):
                    table.add(name, action, *(f"{peaks.kib.get(kind, 0) / 1024:.1f}" for kind in kinds))
    except (LabError, WrongContent, tools.Unable, OSError) as error:
        print(f"measure-memory: {error}", file=sys.stderr)
        return 1
    print(table.render(), end="")
    return 0


def _measure(jobs: Jobs, number: int, source: Path) -> List[Tuple[str, Peaks]]:
    lab = jobs.lab
    path = jobs.add_image(number, source.name, source, persistent=True)
    settle([lab.fe.path(path)])
    nodes = [lab.fe, *lab.hosts.values()]
    with Peaks(nodes) as cold:
        _, vm = jobs.clone(FASTCOPY, "host1", number, path)
    mutate(lab.hosts["host1"].path(jobs.disk(vm, SYSTEM[FASTCOPY])), seed=3, punched=4096, zeroed=4096)
    with Peaks(nodes) as back:
        jobs.write_back(FASTCOPY, "host1", vm, path)
    return [("clone", cold), ("mvds", back)]


if __name__ == "__main__":
    sys.exit(main())
