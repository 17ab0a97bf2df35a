"""The report as text: a matrix to compare drivers by, and a table of all that was counted."""

from __future__ import annotations

from typing import List, Optional

from bench.comparison.values import Cell, Report
from bench.measure import Table, size_text

_SHORTEST = 5.0  # whole seconds that are compared: each may be wrong by almost one, which is a fifth here


def ratio(cell: Optional[Cell], ours: Optional[Cell]) -> Optional[float]:
    """How many times the prolog time of *ours* a cell takes, by medians.

    None where one of both is not sound, or too short for what it was measured with.
    """
    if cell is None or ours is None or cell is ours or not _comparable(cell) or not _comparable(ours):
        return None
    return cell.middle("prolog") / ours.middle("prolog")


def _comparable(cell: Cell) -> bool:
    if not cell.sound:
        return False
    seconds = cell.middle("prolog")
    return seconds >= _SHORTEST if cell.whole_seconds else seconds > 0


def seconds_text(seconds: float) -> str:
    """Seconds with the digits that mean something."""
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"


def spread_text(cell: Cell, name: str) -> str:
    """Median (least-most)."""
    least, most = cell.spread(name)
    return f"{seconds_text(cell.middle(name))} ({seconds_text(least)}-{seconds_text(most)})"


def failed_text(cell: Cell) -> str:
    """How many runs failed."""
    return f"FAILED {len(cell.failures)} of {len(cell.failures) + len(cell.runs)}"


def title_of(scenario: str, variant: str) -> str:
    """A case's name."""
    return f"{scenario}, {variant}" if variant else scenario


def matrix(report: Report) -> Table:
    """Prolog seconds by case and driver; beside a rival's, how many times ours it is."""
    drivers = [one.name for one in report.drivers]
    headings = [name if report.headline(name) else f"[{name}]" for name in drivers]
    table = Table(
        "scenario", "host", "link", *(f"{name} s" for name in headings), text_columns=(0, 1, 2),
        title="prolog: median seconds to the exit of the entry point (times fastcopy's; n=1: of one run)",
    )  # fmt: skip
    for place in report.places():
        ours = report.ours(place)
        row: List[str] = []
        for name in drivers:
            cell = report.cell(place, name)
            row.append(_in_matrix(cell, ratio(cell, ours) if report.headline(name) else None))
        table.add(title_of(*place[:2]), place[2], place[3], *row)
    return table


def _in_matrix(cell: Optional[Cell], times: Optional[float]) -> str:
    if cell is None:
        return ""
    if cell.failures:
        return failed_text(cell)
    if not cell.runs:
        return "not run"
    seconds = cell.middle("prolog")
    text = f"{seconds:g}" if cell.whole_seconds else seconds_text(seconds)
    about = [*([f"{times:.1f}x"] if times is not None else []), *(["n=1"] if len(cell.runs) == 1 else [])]
    return f"{text} ({', '.join(about)})" if about else text


def rounds_text(report: Report, asked: int, budget: float) -> str:
    """How many rounds count, as it has really happened. *asked*: in each case; *budget*: seconds of a driver in one."""
    fewer = sum(len(cell.runs) < asked and not cell.failures for cell in report.cells)
    text = (
        f"{asked} that count after one that warms up; drivers take turns, and each round and each case begins with "
        "another"
    )
    if fewer:
        text += (
            f"; {fewer} of {len(report.cells)} cells have fewer, as the driver had used its {budget:.0f} s there "
            "or the bench was ended (n=1: one run, which has no spread)"
        )
    return text


def details(report: Report) -> Table:
    """Everything that was counted, one line for each driver in each case."""
    table = Table(
        "scenario", "host", "link", "driver", "rounds", "prolog s", "durable s", "x bound", "bound", "wire", "CPU s fe",
        "CPU s hosts", "peak fe", "peak hosts", text_columns=(0, 1, 2, 3, 8),
        title="median (least-most) of the rounds that count; memory is the warm-up round's",
    )  # fmt: skip
    for place in report.places():
        for one in report.drivers:
            cell = report.cell(place, one.name)
            if cell is None:
                continue
            head = title_of(*place[:2]), place[2], place[3], one.name
            if not cell.runs:
                table.add(*head, 0, failed_text(cell) if cell.failures else "not run", *[""] * 8)
                continue
            prolog = spread_text(cell, "prolog")
            if cell.failures:
                prolog = f"{failed_text(cell)}; {prolog}"
            bound = cell.bound
            table.add(
                *head, len(cell.runs), prolog, spread_text(cell, "durable"),
                f"{cell.middle('prolog') / bound.seconds:.1f}" if bound and bound.seconds > 0 else "",
                f"{seconds_text(bound.seconds)} s {bound.what}" if bound else "",
                size_text(int(cell.middle("wire"))), f"{cell.middle('cpu_front_end'):.2f}",
                f"{cell.middle('cpu_hosts'):.2f}", size_text(cell.peak_front_end), size_text(cell.peak_hosts),
            )  # fmt: skip
    return table


def counted(report: Report) -> bool:
    """Whether anything but the prolog was counted: on a cloud, nothing is."""
    return any(run.wire for cell in report.cells for run in cell.runs)


def phase_names(report: Report) -> List[str]:
    """All phases that a driver told of, in order."""
    return list(dict.fromkeys(name for cell in report.cells for run in cell.runs for name in run.phases))


def phases(report: Report) -> Optional[Table]:
    """Where the drivers that tell spend their time; None if none does."""
    names = phase_names(report)
    if not names:
        return None
    table = Table(
        "scenario", "host", "link", "driver", *names, "outside", text_columns=(0, 1, 2, 3),
        title="phases: seconds, means of the rounds; outside: start of the entry point, and what ran beside others",
    )  # fmt: skip
    for cell in report.cells:
        runs = [run for run in cell.runs if run.phases]
        if not runs:
            continue
        means = [sum(run.phases.get(name, 0.0) for run in runs) / len(runs) for name in names]
        rest = sum(run.prolog for run in runs) / len(runs) - sum(means)
        table.add(
            title_of(cell.scenario, cell.variant), cell.fs, cell.link, cell.driver,
            *(f"{mean:.3f}" for mean in means), f"{rest:.3f}" if rest >= 0 else "",
        )  # fmt: skip
    return table


def rates(report: Report) -> Table:
    """What the machine can do."""
    table = Table("measured on the spot", "MiB/s", title="bounds", text_columns=(0,))
    for name, rate in report.rates.items():
        table.add(name, f"{rate / 2**20:.0f}")
    return table


def slower(report: Report) -> List[str]:
    """A sentence for each cell in which a rival that is compared is faster than our driver."""
    found = []
    for place in report.places():
        ours = report.ours(place)
        for one in report.drivers:
            cell = report.cell(place, one.name)
            times = ratio(cell, ours)
            if cell is None or ours is None or times is None or times >= 1 or not one.headline:
                continue
            found.append(
                f"{title_of(*place[:2])}, {place[2]}, {place[3]}: {one.name} takes "
                f"{seconds_text(cell.middle('prolog'))} s, fastcopy {seconds_text(ours.middle('prolog'))} s"
            )
    return found


def failures(report: Report) -> List[str]:
    """A sentence for each run that failed."""
    return [
        f"{title_of(cell.scenario, cell.variant)}, {cell.fs}, {cell.link}: {cell.driver}, {text}"
        for cell in report.cells
        for text in cell.failures
    ]


def render(report: Report) -> str:
    """The whole report for a terminal."""
    parts = [matrix(report).render()]
    if counted(report):
        parts += [details(report).render(), rates(report).render()]
    told = phases(report)
    if told:
        parts.append(told.render())
    lines = [f"{one.name}: {one.label}" + (f"; {one.note}" if one.note else "") for one in report.drivers]
    parts.append("drivers\n" + "".join(f"- {line}\n" for line in lines))
    for title, sentences in (
        ("slower than a rival", slower(report)),
        ("runs that failed", failures(report)),
        ("notes", report.notes),
    ):
        if sentences:
            parts.append(f"{title}\n" + "".join(f"- {sentence}\n" for sentence in sentences))
    about = {**report.machine, **report.versions, **report.method}
    parts.append("".join(f"{name}: {value}\n" for name, value in about.items()))
    return "\n".join(parts)
