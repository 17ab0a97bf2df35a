"""Who runs when, and what counts.

In each case, drivers take turns, round by round, and begin each round and each case one further on; what the machine
does meanwhile hits all alike. The first round warms up (daemon, logins, programs in memory), is watched for memory,
and does not count. A driver that is slow gets fewer rounds, and the report says how many. A driver that fails twice in
a case is not tried there again, and the case shows the failure.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Sequence, Set, Tuple

from bench.comparison.bounds import Bounds, travels
from bench.comparison.drivers import Disk, Driver
from bench.comparison.forecast import Forecast
from bench.comparison.meters import Memory
from bench.comparison.scenarios import COLD, OLD, WARM, Case
from bench.comparison.site import Site, change
from bench.comparison.values import Cell, Report, Run
from bench.comparison.work import Task, perform
from bench.jobs import WrongContent, settle
from bench.testbed import LabError

_PATIENCE = 2  # failures of one driver in one case
_FAILURES = (WrongContent, LabError, OSError, ValueError, subprocess.SubprocessError)  # that spoil one measurement

Tell = Callable[[str, float], None]
"""Is told what comes next, and how many seconds everything will still take (0: not known)."""


@dataclass(frozen=True)
class Situation:
    """A case on hosts of one file system, with one link."""

    case: Case
    fs: str
    link: str

    def key(self, driver: str) -> Tuple[str, ...]:
        """What the duration of a turn depends on."""
        return self.case.scenario, self.case.variant, self.fs, self.link, driver


def situations(cases: Iterable[Case], file_systems: Sequence[str], links: Sequence[str]) -> List[Situation]:
    """All combinations, link by link. An uplink is a link of its own: those cases come once, and last."""
    chosen = list(cases)
    found = [
        Situation(case, fs, link)
        for link in links
        for case in chosen
        for fs in (file_systems[:1] if case.once else file_systems)
        if not case.uplink
    ]
    return found + [Situation(case, file_systems[0], f"uplink {case.uplink}") for case in chosen if case.uplink]


def firsts(todo: Sequence[Situation]) -> List[int]:
    """The driver that begins in each situation: another one in the next case, file system and link.

    Not just the next one in each: of two drivers, the same would then be first in every case on a file system of two.
    """
    axes = [list(dict.fromkeys(values)) for values in zip(*((one.case, one.fs, one.link) for one in todo))]
    return [sum(axis.index(value) for axis, value in zip(axes, (one.case, one.fs, one.link))) for one in todo]


def turns(drivers: Sequence[Driver], rounds: int, first: int = 0) -> List[Tuple[int, Driver]]:
    """(round, driver) in order: round 0 warms up and begins with driver *first*, the next round with the next one."""
    count = len(drivers)
    return [(turn, drivers[(first + turn + place) % count]) for turn in range(rounds + 1) for place in range(count)]


class Bench:
    """Fills a report. *clock* gives seconds.

    *budget*: seconds that a driver may use in one case before it gets no further round (but always one that counts).
    *save* is called after every case: a bench that runs for an hour should not lose all if it is killed.
    """

    def __init__(
        self, site: Site, drivers: Sequence[Driver], rounds: int, report: Report, tell: Tell,
        budget: float, save: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._site, self._drivers, self._rounds, self._report, self._tell = site, list(drivers), rounds, report, tell
        self._clock, self._budget, self._save = clock, budget, save
        self._bounds = Bounds(site, report.rates)
        self._forecast = Forecast(budget)
        self._known: Set[Tuple[str, str, str]] = set()  # driver, host, image

    def run(self, todo: Sequence[Situation]) -> None:
        """Measure everything."""
        # Cases, too, begin with another driver each: where one round counts, rounds alone would rotate nothing.
        orders = [
            turns(self._present(situation, todo), self._rounds, first) for situation, first in zip(todo, firsts(todo))
        ]
        for place, (situation, order) in enumerate(zip(todo, orders)):
            rest = zip(todo[place + 1 :], orders[place + 1 :])
            left = [one.key(driver.name) for one, later in rest for _, driver in later]
            self._try(situation, "", lambda: self._situation(situation, order, left))  # noqa: B023 - called at once

    def _present(self, situation: Situation, todo: Sequence[Situation]) -> List[Driver]:
        """The drivers of a case: one whose disks are not on the host is the same on every file system."""
        again = situation.fs != todo[0].fs
        return [driver for driver in self._drivers if driver.on_host or not again]

    def _try(self, situation: Situation, what: str, work: Callable[[], Any]) -> Any:
        """What *work* returns; None, and a note, if it fails: one measurement must not cost all others."""
        try:
            return work()
        except _FAILURES as error:
            case = situation.case
            words = case.scenario, case.variant, situation.fs, situation.link, what
            self._report.notes.append(f"{', '.join(word for word in words if word)}: {error}")
            return None

    # -- one case --------------------------------------------------------------------------------------------

    def _situation(
        self, situation: Situation, order: Sequence[Tuple[int, Driver]], later: List[Tuple[str, ...]]
    ) -> None:
        case, link = situation.case, situation.link
        site, lab = self._site, self._site.lab
        hosts = site.hosts(situation.fs)[: case.hosts]
        if len(hosts) < case.hosts:
            raise LabError(f"{case.scenario} needs {case.hosts} hosts on {situation.fs}, and the lab has {len(hosts)}.")
        self._tell(f"{case.scenario} {case.variant}: bounds".replace(" :", ":"), self._forecast.left(later))
        for host in hosts:
            lab.rate(host, None if case.uplink or link == "none" else link)
        lab.uplink(case.uplink)
        try:
            if not case.uplink:
                self._try(situation, "rates of ssh", lambda: self._bounds.ssh(link, hosts[0]))
            bound = self._try(situation, "bound", lambda: self._bounds.of(case, situation.fs, link, hosts))
            data = travels(site, case) if case.change else sum(map(site.data, case.images)) * case.vms * case.hosts
            cells: Dict[str, Cell] = {}
            present = {driver.name for _, driver in order}
            for driver in (driver for driver in self._drivers if driver.name in present):
                cells[driver.name] = Cell(
                    case.scenario, case.variant, driver.name, situation.fs, link, case.hosts, data, bound
                )
            self._report.cells += cells.values()
            used = dict.fromkeys(cells, 0.0)
            for index, (turn, driver) in enumerate(order):
                left = [situation.key(one.name) for _, one in order[index:]] + later
                named = " ".join(word for word in (case.scenario, case.variant) if word)
                what = f"{named}, {situation.fs}, {link}: {driver.name}, " + (f"round {turn}" if turn else "warm-up")
                self._tell(what, self._forecast.left(left))
                cell = cells[driver.name]
                if len(cell.failures) < _PATIENCE and not (cell.runs and used[driver.name] > self._budget):
                    began = self._clock()
                    self._turn(turn, driver, case, hosts, cell)
                    used[driver.name] += self._clock() - began
                    self._forecast.add(situation.key(driver.name), self._clock() - began)
        finally:
            lab.uplink(None)
            self._try(situation, "fstrim", self._site.trim)
            self._try(situation, "what was measured could not be saved", self._save)

    def _turn(self, turn: int, driver: Driver, case: Case, hosts: Sequence[str], cell: Cell) -> None:
        try:
            if turn:
                cell.runs.append(self._once(driver, case, hosts))
                return
            lab = self._site.lab
            nodes = {"front-end": [lab.fe], "hosts": [lab.hosts[host] for host in hosts]}
            with Memory(nodes, driver.resident) as memory:
                self._once(driver, case, hosts)
            cell.peak_front_end, cell.peak_hosts = memory.peaks["front-end"], memory.peaks["hosts"]
        except _FAILURES as error:
            cell.failures.append(f"{'round ' + str(turn) if turn else 'warm-up'}: {error}")

    # -- one turn --------------------------------------------------------------------------------------------

    def _once(self, driver: Driver, case: Case, hosts: Sequence[str]) -> Run:
        made: List[List[Disk]] = []
        try:
            if case.change:
                return self._write_back(driver, case, hosts[0], made)
            self._make_state(driver, case, hosts)
            chains = [self._deploy(driver, host, case.images, made) for host in hosts for _ in range(case.vms)]
            if case.state != WARM:
                self._site.drop_caches()
            run = perform(self._site.lab, [self._site.lab.hosts[host] for host in hosts], chains)
            self._known |= {(driver.name, host, image) for host in hosts for image in case.images}
            return run
        finally:
            for disks in made:
                self._site.remove_vm(driver, disks)

    def _make_state(self, driver: Driver, case: Case, hosts: Sequence[str]) -> None:
        """Make driver and hosts know what the case says that they know."""
        if case.state in (COLD, OLD):
            self._forget(driver, list(dict.fromkeys((*case.images, *(["system"] if case.state == OLD else [])))), hosts)
        if not driver.remembers:
            for image in case.images:
                self._site.image(driver, image)
            return
        wanted = {COLD: (), WARM: case.images, OLD: ("system",)}[case.state]
        for host in hosts:
            for image in wanted:
                if (driver.name, host, image) not in self._known:
                    self._untimed(driver, host, image)

    def _forget(self, driver: Driver, images: Sequence[str], hosts: Sequence[str]) -> None:
        paths = [self._site.image(driver, image)[1] for image in images]
        touched = [path for path in paths if driver.forget(self._site.lab, hosts, path)]
        if touched:
            settle(self._site.lab.fe.path(path) for path in touched)
        # Caches are emptied as a whole.
        self._known -= {entry for entry in self._known if entry[0] == driver.name and entry[1] in hosts}

    def _untimed(self, driver: Driver, host: str, image: str) -> None:
        made: List[List[Disk]] = []
        try:
            perform(self._site.lab, [self._site.lab.hosts[host]], [self._deploy(driver, host, (image,), made)])
            self._known.add((driver.name, host, image))
        finally:
            for disks in made:
                self._site.remove_vm(driver, disks)

    def _deploy(self, driver: Driver, host: str, images: Sequence[str], made: List[List[Disk]]) -> List[Task]:
        """The tasks of one VM, one for each of its disks."""
        site = self._site
        sources = [site.image(driver, image) for image in images]
        disks = site.new_vm(driver, host, [number for number, _ in sources])
        made.append(disks)
        return [self._clone(driver, path, disk, image) for image, (_, path), disk in zip(images, sources, disks)]

    def _clone(self, driver: Driver, path: str, disk: Disk, image: str) -> Task:
        node, where = driver.file(self._site.lab, disk)
        commands = driver.clone(self._site.lab, path, disk)
        original = self._site.original(image)
        return Task(commands, f"{driver.name} clone to {disk.host}", node, where, original, driver.owner)

    def _write_back(self, driver: Driver, case: Case, host: str, made: List[List[Disk]]) -> Run:
        """Deploy a persistent image, let a guest write into its disk, and time the way back."""
        site, lab = self._site, self._site.lab
        number, path = site.image(driver, "system", persistent=True)
        site.restore("system", path)
        (disk,) = site.new_vm(driver, host, [number])
        made.append([disk])
        node, where, target = driver.persistent(lab, disk, path)
        what, original = f"{driver.name} ln to {host}", site.original("system")
        link = Task(driver.link(lab, path, disk), what, node, where, original, driver.owner, target)
        perform(lab, [lab.hosts[host]], [[link]])
        # What a guest writes through a link is in the image at once.
        change(lab.fe.path(target) if target else node.path(where), str(case.change), site.data("system"))
        site.drop_caches()
        what, changed = f"{driver.name} mvds from {host}", site.original(f"system-{case.change}")
        back = Task(driver.write_back(lab, disk, path), what, lab.fe, path, changed, driver.owner)
        return perform(lab, [lab.hosts[host]], [[back]])
