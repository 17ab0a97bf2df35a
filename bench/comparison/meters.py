"""What work costs: bytes on the wire, CPU seconds of each side, memory.

CPU time is that of processes, as proc(5) and getrusage(2) have it. What the kernel does by itself (packets, loop
devices) is in none of them. A node's processes pass their time on to whoever reaps them, so the sum over those that
live loses nothing; commands that the bench itself starts are reaped by the bench.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import threading
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping

from bench.testbed import Node, processes
from bench.testbed.oned.control import MODULE

_TICK = os.sysconf("SC_CLK_TCK")
_INTERVAL = 0.05  # seconds between looks at memory; each takes some milliseconds of a core


def cpu_of(stat: str) -> float:
    """CPU seconds of a process and of the children that it has reaped, from its /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / _TICK


def cpu_of_node(node: Node) -> float:
    """CPU seconds of a node's processes so far, without the stand-in for oned, which no driver is to blame for."""
    total = 0.0
    for pid in [node.holder, *node.processes()]:
        if MODULE in processes.arguments(pid):
            continue
        with contextlib.suppress(OSError):
            total += cpu_of(Path(f"/proc/{pid}/stat").read_text())
    return total


def cpu_of_commands() -> float:
    """CPU seconds of the commands that the bench has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Counters:
    """Wire and CPU since this was made. `front_end` counts the commands, too: they run there."""

    def __init__(self, front_end: Node, hosts: Iterable[Node]) -> None:
        self._front_end, self._hosts = front_end, list(hosts)
        self._wire, self._cpu = self._wire_now(), self._cpu_now()

    def _wire_now(self) -> int:
        return sum(node.rx_bytes() + node.tx_bytes() for node in self._hosts)

    def _cpu_now(self) -> tuple[float, float]:
        return cpu_of_node(self._front_end) + cpu_of_commands(), sum(cpu_of_node(node) for node in self._hosts)

    def cpu(self) -> tuple[float, float]:
        """CPU seconds of the front-end and of the hosts."""
        now = self._cpu_now()
        return now[0] - self._cpu[0], now[1] - self._cpu[1]

    def wire(self) -> int:
        """Bytes through the hosts' interfaces."""
        return self._wire_now() - self._wire


class Memory:
    """Watches nodes while it is entered; `peaks` is the highest sum of the processes' shares (PSS) seen, in bytes.

    What ran before belongs to a driver only if *resident*, given its command line, says so: another driver's daemon
    does not. It takes time from what it watches: the rounds that it watches do not count.
    """

    def __init__(self, nodes: Mapping[str, List[Node]], resident: Callable[[str], bool]) -> None:
        self._nodes = nodes
        before = [pid for listed in nodes.values() for node in listed for pid in node.processes()]
        self._others = {pid for pid in before if not resident(" ".join(processes.arguments(pid)))}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peaks: Dict[str, int] = {name: 0 for name in nodes}

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            for name, nodes in self._nodes.items():
                self.peaks[name] = max(self.peaks[name], self._sum(nodes))

    def _sum(self, nodes: Iterable[Node]) -> int:
        return sum(share(pid) for node in nodes for pid in node.processes() if pid not in self._others)


def share(pid: int) -> int:
    """The process's proportional share of memory, in bytes; 0 once it is gone."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
