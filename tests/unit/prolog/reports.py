"""A report with fixed figures."""

from __future__ import annotations

from bench.comparison.values import Bound, Cell, Contestant, Report, Run


def cell(driver: str, *prolog: float, scenario: str = "cold", variant: str = "", **more: object) -> Cell:
    """A cell whose runs took so many seconds."""
    runs = [Run(seconds, seconds + 0.5, 1000, 0.25, 0.125) for seconds in prolog]
    found = Cell(scenario, variant, driver, "xfs", "1gbit", 1, 4096, Bound(0.5, "line"), runs)
    for name, value in more.items():
        setattr(found, name, value)
    return found


def fixed() -> Report:
    """Two drivers that are compared and one that is not; one failure; one cell in which a rival is faster."""
    report = Report(
        "2026-01-02T03:04:05+00:00",
        "bench/prolog --synthetic",
        {"processor": "a <fast> one", "cores": "2"},
        {"fastcopy": "0.1.0"},
        {"rounds": "3"},
        [
            Contestant("fastcopy", "fastcopy"),
            Contestant("ssh", "stock ssh"),
            Contestant("shared", "stock shared", headline=False, note="user-space NFS client"),
        ],
    )
    report.rates = {"line 1gbit": 119_000_000.0}
    report.cells = [
        cell("fastcopy", 1.0, 2.0, 3.0, peak_front_end=2**20),
        cell("ssh", 8.0, 10.0, 12.0),
        cell("shared", 20.0),
        cell("fastcopy", 1.5, scenario="warm"),
        cell("ssh", 0.75, scenario="warm"),
        cell("shared", scenario="warm", failures=["round 1: the disk was <wrong>"]),
    ]
    report.cells[0].runs[0] = Run(1.0, 1.5, 1000, 0.25, 0.125, {"oned": 0.25, "transfer": 0.5})
    for number, size in enumerate((16, 64)):
        for driver, seconds in (("fastcopy", 0.1), ("ssh", 1.0)):
            report.cells.append(cell(driver, seconds * (number + 1), scenario="growth", variant=f"{size} MiB"))
    report.notes = ["a note"]
    report.seconds = 61.5
    return report
