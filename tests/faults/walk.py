"""Walk: one action, stopped once before and once after every arrow; then what must hold is looked at.

A run is: the state from before, the action with a plan, all processes of it ended, the invariants, the same action
again without faults, the result, and what is left behind.  The walk returns what it found wrong; it asserts nothing, so
that a test of a mutant can ask for the opposite.
"""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from .arrows import Arrow, Line, Plan, arrows_in, read_log
from .forks import ForkServer
from .invariants import State, left_over
from .scenarios import CLONE_COLD, Scenario, Spec
from .site import LOG_FLUSH, NO_LOG_FLUSH, Site

_ENDS = ("sync", "sync_directory", "rename", "exchange", "move", "unlink")
_COMMON = re.compile("probe|lease|cache root|make_directory cache$|monitor")
_OPTIONAL = re.compile("cache|lease|probe|manifest|source key|kept note")
PATIENCE = 600.0  # seconds for all processes of one run; it takes a fraction of one


@dataclass
class Outcome:
    """How a run of an action ended: exit code (None if it was killed), what it printed, whether its plan was met."""

    code: Optional[int]
    errors: str
    hit: bool
    late: List[str]


@dataclass
class Report:
    """What a walk did and found."""

    kills: int = 0
    cuts: int = 0
    failures: int = 0
    wrong: List[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Sum up."""
        self.kills += other.kills
        self.cuts += other.cuts
        self.failures += other.failures
        self.wrong += other.wrong


class Harness:
    """Runs actions in processes of their own.  *scratch* is on a file system that no test cuts."""

    def __init__(self, scratch: Path, server: ForkServer) -> None:
        self.scratch, self.server = scratch, server
        self.hit, self.log = scratch / "hit", scratch / "log"
        self._agent_errors, self._doors = scratch / "agent-errors", scratch / "d"
        self._doors.mkdir(exist_ok=True)

    def begin(self, spec: Spec) -> Tuple[int, Path]:
        """Start an action; returns a descriptor that brings its exit code, and where its errors go."""
        errors = self.scratch / f"errors.{time.monotonic_ns()}"
        read_fd, write_fd = os.pipe()
        error_fd = os.open(errors, os.O_WRONLY | os.O_CREAT, 0o600)
        self._agent_errors.unlink(missing_ok=True)
        places = {"forks": self.server.path, "doors": str(self._doors), "agent_errors": str(self._agent_errors)}
        self.server.start("frontend", {**spec, **places}, [write_fd, error_fd])
        os.close(write_fd)
        os.close(error_fd)
        return read_fd, errors

    def end(self, begun: Tuple[int, Path], hit: bool = False, late: Sequence[str] = ()) -> Outcome:
        """How an action that was begun has ended.  All its processes have."""
        with open(begun[0], "rb") as pipe:
            code = pipe.read()
        errors = begun[1].read_text(errors="replace")
        begun[1].unlink()
        if self._agent_errors.exists():
            errors += "\n" + self._agent_errors.read_text(errors="replace")
        return Outcome(int(code) if code else None, errors, hit, list(late))

    def wait(self) -> List[str]:
        """Wait for all processes; the programs of those that had to be killed."""
        late = self.server.wait(PATIENCE)
        for door in self._doors.iterdir():
            for path in door.iterdir():
                path.unlink()
            door.rmdir()
        return late

    def run(self, spec: Spec) -> Outcome:
        """Run an action to its end, and that of every process that it started."""
        begun = self.begin(spec)
        late = self.wait()
        hit = self.hit.exists()
        self.hit.unlink(missing_ok=True)
        return self.end(begun, hit, late)

    def wait_for_hit(self) -> int:
        """Wait until a process stands at the arrow of its plan; returns its id."""
        until(lambda: self.hit.exists() and self.hit.read_text().endswith("\n"))
        return int(self.hit.read_text())

    def stop_plan(self, arrow: Arrow, when: str = "before") -> Dict[str, Any]:
        """A plan that has a process wait at an arrow."""
        return Plan(arrow, when, "stop", str(self.hit)).encode()

    def discover(self, spec: Spec) -> List[Line]:
        """Run an action that succeeds; return every change that it makes."""
        self.log.unlink(missing_ok=True)
        outcome = self.run({**spec, "log": str(self.log)})
        assert outcome.code == 0, outcome.errors
        return read_log(self.log)


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true; `AssertionError` if it does not become so."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "what the test waits for does not happen"
        time.sleep(0.005)


class Walk:
    """The walk of one scenario on one site."""

    def __init__(self, harness: Harness, site: Site, scenario: Scenario, mutant: str = "") -> None:
        self._harness, self._site, self.scenario = harness, site, scenario
        self.until = ""
        site.wipe()
        site.in_tree = scenario.in_tree
        self._rewrite = scenario.image if scenario.writes_image else None
        if scenario.image:
            site.restore_image(scenario.image)
        scenario.prepare(site, self._prepare_run)
        site.remember()
        # Who comes after a crash waits for an entry's second half; here nobody is there to bring it.
        self.spec = {**scenario.spec(site), "mutant": mutant, "publishing": 0.1, "follow": 0.02}
        site.restore(self._rewrite, self.scenario.mode)
        self.lines = harness.discover(self.spec)
        self.arrows = arrows_in(self.lines)

    def _prepare_run(self, spec: Spec, until: Optional[Arrow]) -> None:
        harness = self._harness
        if until is None:
            outcome = harness.run(spec)
            assert outcome.code == 0, outcome.errors
            return
        if "{staging}" in until.change:
            changes = {line.change for line in harness.discover(spec) if line.role == until.role}
            change = next(c for c in ("write cache image staging", "write disk staging") if c in changes)
            until = until._replace(change=change)
            image = self.scenario.image
            self._site.wipe()
            self._site.restore_image(image)
        begun = harness.begin({**spec, "plan": harness.stop_plan(until)})
        harness.wait_for_hit()
        harness.server.kill("frontend", "host")
        harness.wait()
        harness.hit.unlink()
        harness.end(begun)

    def around(self, *methods: str, until: str) -> Walk:
        """Walk only the arrows of these methods, and no further when a problem of that text has been found."""
        self.until = until
        self.arrows = [arrow for arrow in self.arrows if arrow.method in methods]
        return self

    def without_common(self) -> Walk:
        """Leave out what every clone does in the same way: the walk of one scenario has it, and it takes a third."""
        if self.scenario is not CLONE_COLD:
            self.arrows = [arrow for arrow in self.arrows if not _COMMON.search(arrow.change)]
        self.arrows = [arrow for arrow in self.arrows if re.search(self.scenario.arrows, arrow.change)]
        return self

    def kills(self) -> Report:
        """Kill the process that stands at an arrow, before and after each."""
        hit = str(self._harness.hit)
        return self._walk(Plan(arrow, when, "kill", hit) for arrow in self.arrows for when in ("before", "after"))

    def cuts(self) -> Report:
        """Cut the power of the machine whose process stands at an arrow, in both ways: before each, and after what
        another machine could know of.  (Elsewhere "after" is the same as before the next arrow of the process.)
        """
        hit = str(self._harness.hit)
        return self._walk(
            Plan(arrow, when, "cut", hit, str(self._top(arrow)), flags)
            for arrow in self.arrows
            for when in ("before", "after")
            for flags in (NO_LOG_FLUSH, LOG_FLUSH)
            if self._site.volumes[self._machine(arrow)] and (when == "before" or arrow.method in _ENDS)
        )

    def failures(self) -> Report:
        """Have every call fail instead: what takes room because there is none, what does not because of the device."""
        hit = str(self._harness.hit)
        return self._walk(
            Plan(arrow, "before", "fail", hit, "", errno.EIO if arrow.method in _ENDS else errno.ENOSPC)
            for arrow in self.arrows
        )

    def _is_optional(self, arrow: Arrow) -> bool:
        """Whether the action must succeed without this change.  A cache that shares blocks with the disk holds the
        disk's own data: where there is no room for that, there is none for the disk.
        """
        shared = not any(line.change == "write disk staging" for line in self.lines)
        data = arrow.method in ("write", "allocate") and arrow.change.endswith("cache image staging")
        return bool(_OPTIONAL.search(arrow.change)) and not (shared and data)

    @staticmethod
    def _machine(arrow: Arrow) -> str:
        return "front" if arrow.role.startswith(("frontend", "target's")) else "host"

    def _top(self, arrow: Arrow) -> Path:
        return self._site.front if self._machine(arrow) == "front" else self._site.host

    def _walk(self, plans: Iterator[Plan]) -> Report:
        report = Report()
        for plan in plans:
            where = f"{self.scenario.name}: {plan.how} {plan.flags or ''} {plan.when} {plan.arrow}"
            report.wrong += [f"{where}: {problem}" for problem in self.stop_at(plan)]
            report.kills += plan.how == "kill"
            report.cuts += plan.how == "cut"
            report.failures += plan.how == "fail"
            if self.until and any(self.until in problem for problem in report.wrong):
                break
        return report

    def stop_at(self, plan: Plan) -> List[str]:
        """One run; returns what is wrong."""
        site = self._site
        site.restore(self._rewrite, self.scenario.mode)
        state = State(site, self.scenario)
        crashed = self._harness.run({**self.spec, "plan": plan.encode()})
        if plan.how == "cut" and crashed.hit:
            site.restart(self._machine(plan.arrow))
        problems = [] if crashed.hit else ["this arrow was not reached"]
        problems += [f"the process {late} did not end" for late in crashed.late]
        problems += state.after_success() if crashed.code == 0 else state.after_crash()
        if plan.how == "fail" and crashed.code != 0 and self._is_optional(plan.arrow):
            problems.append(f"the cache is optional, yet the action failed: {crashed.errors.strip()}")
        again = self._harness.run(self.spec)
        if again.code != 0:
            problems.append(f"lost: repeating the action failed: {again.errors.strip()}")
        return problems + [f"repeated, {problem}" for problem in state.after_success() + left_over(site)]

    def with_link(self, faults: Dict[str, Any], waits: Optional[Dict[str, float]] = None) -> Tuple[Outcome, List[str]]:
        """One run over links that fail as *faults* says (see `Faulty`); returns what is wrong.

        *waits* are the product's in that run; the repeat has its own, and is not in a hurry.
        """
        site = self._site
        site.restore(self._rewrite, self.scenario.mode)
        state = State(site, self.scenario)
        outcome = self._harness.run({**self.spec, **(waits or {}), "link": faults})
        problems = state.after_success() if outcome.code == 0 else state.after_crash()
        problems += [f"the process {late} did not end" for late in outcome.late]
        if outcome.code is None:
            problems.append(f"the action ended by itself without an exit code: {outcome.errors.strip()}")
        if "defect in fastcopy" in outcome.errors:
            problems.append(outcome.errors.strip())
        again = self._harness.run(self.spec)
        if again.code != 0:
            problems.append(f"lost: repeating the action failed: {again.errors.strip()}")
        return outcome, problems + [f"repeated, {problem}" for problem in state.after_success() + left_over(site)]
