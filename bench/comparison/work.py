"""One piece of work by one driver: started, timed, counted, checked."""

from __future__ import annotations

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence

from bench.comparison.checks import Seen, check, check_apart, check_link
from bench.comparison.meters import Counters
from bench.comparison.values import Run
from bench.jobs import WrongContent
from bench.pipeline import Command
from bench.testbed import Lab, Node
from bench.testbed.tm import split_stderr

LONGEST = 900.0  # seconds for one command; stock `local` with its cache takes two minutes for a Debian
_PHASES = re.compile(r"; [\d.]+ s \(([a-z]+ [\d.]+(?:, [a-z]+ [\d.]+)*)\)")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Task:
    """What makes one file: commands, one after another, and where the file must be in the end, equal to *wanted*.

    *owner* -- the user whose file it must be
    *target* -- the file must be a symbolic link to this path, instead
    """

    commands: Sequence[Command]
    what: str
    node: Node
    path: str
    wanted: Path
    owner: int
    target: Optional[str] = None


@dataclass(frozen=True)
class _Ended:
    """When a task's last command ended, and what its file was just then."""

    at: float
    seen: Seen
    said: str


def perform(lab: Lab, hosts: Sequence[Node], chains: Sequence[Sequence[Task]], clock: Clock = time.monotonic) -> Run:
    """Run chains of tasks, all chains at once, and check every file. WrongContent if anything is not right."""
    counters = Counters(lab.fe, hosts)
    began = clock()
    with ThreadPoolExecutor(len(chains)) as pool:
        ended = list(pool.map(lambda chain: [_run(lab, task, clock) for task in chain], chains))
    cpu = counters.cpu()
    prolog = max(end.at for ends in ended for end in ends) - began
    places = dict.fromkeys((task.node.name, Path(task.path).parent.parent) for chain in chains for task in chain)
    nodes = {node.name: node for node in (lab.fe, *hosts)}
    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(lambda place: _sync(nodes[place[0]], place[1]), places))
    durable = clock() - began
    wire = counters.wire()
    for chain, ends in zip(chains, ended):
        for task, end in zip(chain, ends):
            disk = task.node.path(task.path)
            if task.target:
                check_link(task.what, disk, task.target)
            else:
                check(task.what, disk, task.wanted, end.seen, task.owner)
    check_apart(chains[0][0].what, (end.seen for ends in ended for end in ends))
    return Run(prolog, durable, wire, *cpu, phases=phases_of(end.said for ends in ended for end in ends))


def _run(lab: Lab, task: Task, clock: Clock) -> _Ended:
    said: List[str] = []
    for command in task.commands:
        try:
            done = lab.fe.run(command.argv, input=command.script.encode(), timeout=LONGEST)
        except subprocess.TimeoutExpired:
            raise WrongContent(f"{task.what}: not done after {LONGEST:.0f} s, killed") from None
        text = done.stderr.decode("utf-8", "replace")
        said.append(text)
        if done.returncode:
            error = split_stderr(text)[0] or text.strip()[-300:] or "it said nothing"
            raise WrongContent(f"{task.what}: exit code {done.returncode}: {error[:300]}")
    at = clock()
    return _Ended(at, Seen.of(task.node.path(task.path)), "\n".join(said))


def _sync(node: Node, path: Path) -> None:
    node.run(["sync", "--file-system", path], user="root", timeout=LONGEST, check=True)


def phases_of(texts: Iterable[str]) -> Dict[str, float]:
    """The driver's own account of its time, summed over all that was said; empty where it gives none."""
    found: Dict[str, float] = {}
    for text in texts:
        for match in _PHASES.finditer(text):
            for part in match[1].split(", "):
                name, seconds = part.split(" ")
                found[name] = found.get(name, 0.0) + float(seconds)
    return found
