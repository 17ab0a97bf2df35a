"""What was measured, as plain values, and as the JSON that `--json` writes (docs/BENCHMARKING.md has its schema)."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

SCHEMA = "fastcopy-prolog 1"
OURS = "fastcopy"
"""This project's driver: what others are set against."""
CLOUD = "cloud"
"""The link of what was measured through oned's API, which has whole seconds only."""


@dataclass(frozen=True)
class Run:
    """One piece of work by one driver. Seconds; bytes. `phases` are the driver's own account, where it gives one."""

    prolog: float  # to the exit of the entry point; of several at once, of the last
    durable: float  # until a sync of the disk's file system has ended
    wire: int  # through the hosts' interfaces, both ways, everything included
    cpu_front_end: float
    cpu_hosts: float
    phases: Dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """The least time that the work can take here without a driver that is clever, and what limits it."""

    seconds: float
    what: str


@dataclass
class Cell:
    """All runs of one driver in one situation. `failures` are the sentences of runs that failed."""

    scenario: str
    variant: str
    driver: str
    fs: str
    link: str
    hosts: int
    data: int  # bytes of data (not holes) that all disks together hold
    bound: Optional[Bound] = None
    runs: List[Run] = field(default_factory=list)
    failures: List[str] = field(default_factory=list)
    peak_front_end: int = 0  # bytes; highest sum of the processes' shares, in the warm-up round
    peak_hosts: int = 0

    @property
    def place(self) -> Tuple[str, str, str, str]:
        """What the drivers are compared in: scenario, variant, file system, link."""
        return self.scenario, self.variant, self.fs, self.link

    @property
    def sound(self) -> bool:
        """Whether there are runs, and none failed: only then are its figures compared with others."""
        return bool(self.runs) and not self.failures

    @property
    def whole_seconds(self) -> bool:
        """Whether its seconds are differences of two whole ones: each may be wrong by almost a second, either way."""
        return self.link == CLOUD

    def middle(self, name: str) -> float:
        """The median of a figure over the runs. Raises statistics.StatisticsError where there are none."""
        return float(statistics.median(getattr(run, name) for run in self.runs))

    def spread(self, name: str) -> Tuple[float, float]:
        """The least and the most of a figure."""
        values = [getattr(run, name) for run in self.runs]
        return min(values), max(values)


@dataclass(frozen=True)
class Contestant:
    """A driver as the report names it. What is no headline is shown, but not set against the others."""

    name: str
    label: str
    headline: bool = True
    note: str = ""


@dataclass
class Report:
    """One run of the bench."""

    started: str  # ISO 8601, UTC
    command: str
    machine: Dict[str, str]
    versions: Dict[str, str]
    method: Dict[str, str]
    drivers: List[Contestant]
    rates: Dict[str, float] = field(default_factory=dict)  # bytes per second, by what was measured
    cells: List[Cell] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    seconds: float = 0.0

    def headline(self, driver: str) -> bool:
        """Whether a driver's figures are set against others'."""
        return any(one.headline for one in self.drivers if one.name == driver)

    def cell(self, place: Tuple[str, str, str, str], driver: str) -> Optional[Cell]:
        """A driver's cell in a place, if it was tried there."""
        return next((cell for cell in self.cells if cell.place == place and cell.driver == driver), None)

    def ours(self, place: Tuple[str, str, str, str]) -> Optional[Cell]:
        """The cell of this project's driver, which on a cloud has its datastore in its name."""
        names = [one.name for one in self.drivers if one.name.split(" ")[0] == OURS]
        return next((cell for name in names if (cell := self.cell(place, name))), None)

    def places(self) -> List[Tuple[str, str, str, str]]:
        """All places, in the order in which they were measured."""
        return list(dict.fromkeys(cell.place for cell in self.cells))


def to_json(report: Report) -> str:
    """The report as JSON, with the schema's name first. Seconds and rates are rounded to six digits after the point."""
    return json.dumps({"schema": SCHEMA, **_rounded(dataclasses.asdict(report))}, indent=1) + "\n"


def from_json(text: str) -> Report:
    """Read what `to_json` wrote. Raises ValueError for anything else."""
    try:
        values = json.loads(text)
        if values.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        cells = [_cell(one) for one in values.pop("cells")]
        drivers = [Contestant(**one) for one in values.pop("drivers")]
        return Report(**values, cells=cells, drivers=drivers)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"this is no report of {SCHEMA}: {error}") from error


def _cell(values: Dict[str, Any]) -> Cell:
    runs = [Run(**one) for one in values.pop("runs")]
    bound = values.pop("bound")
    return Cell(**values, runs=runs, bound=Bound(**bound) if bound else None)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
