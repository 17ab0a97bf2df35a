"""Plots of a report as SVG, for a page that may be light or dark.

Lines and letters have the colour of the text around them (`currentColor`), and drivers have colours that can be told
apart on both, also by those who cannot tell red from green.
"""

from __future__ import annotations

import io
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from bench.comparison.report import counted, failed_text, title_of
from bench.comparison.values import Cell, Contestant, Report

_INK = "#010203"  # no driver's; becomes the page's own colour of text
_COLOURS = ("#1b84d6", "#e0861a", "#2aa876", "#c9569b", "#8b7bd8", "#a08a3c")
_WIDE = 9.0  # inches
_UNSOUND = "x"  # the marker of a cell in which a run failed
Place = Tuple[str, str, str, str]


def library() -> Any:
    """matplotlib. ValueError where it is not installed."""
    # Imported here: whoever wants no page needs no matplotlib.
    try:
        import matplotlib
    except ImportError:
        raise ValueError(
            "--html needs matplotlib, which is not installed: pip install 'tm-fastcopy[bench]', or leave --html out"
        ) from None
    return matplotlib


def plots(report: Report) -> List[Tuple[str, str]]:
    """(title, SVG) of every plot for which there is something to show."""
    matplotlib = library()
    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "fastcopy", "font.size": 10, "font.family": "sans-serif",
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    })  # fmt: skip
    found: List[Tuple[str, str]] = []
    compared = [place for place in report.places() if place[0] not in ("fanout", "growth")]
    for link in dict.fromkeys(place[3] for place in compared):
        places = [place for place in compared if place[3] == link]
        name = "as fast as the machine" if link == "none" else link
        found.append((f"Prolog time, link {name}", _points(report, places, "prolog", "seconds, logarithmic", 1)))
        if counted(report):
            drawing = _points(report, places, "wire", "MiB, logarithmic", 2**20)
            found.append((f"Bytes on the wire, link {name}", drawing))
    for scenario, title, axis in (
        ("growth", "Growth with the image's size", "MiB of image"),
        ("fanout", "Fan-out: one VM on each host at once", "hosts"),
    ):
        places = [place for place in report.places() if place[0] == scenario]
        for fs, link in dict.fromkeys(place[2:] for place in places):
            chosen = [place for place in places if place[2:] == (fs, link)]
            found.append((f"{title}, {fs}, {link}", _lines(report, chosen, axis)))
    return [(title, svg) for title, svg in found if svg]


def _colours(report: Report) -> Dict[str, str]:
    return {one.name: _COLOURS[place % len(_COLOURS)] for place, one in enumerate(report.drivers)}


def _points(report: Report, places: Sequence[Place], figure: str, axis: str, unit: int) -> str:
    """A point for each driver in each case, with the spread of the rounds.

    Points and not bars: on a logarithmic axis a bar's length means nothing.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    places = [place for place in places if any(_has(report.cell(place, one.name), figure) for one in report.drivers)]
    if not places:
        return ""
    drawing = Figure(figsize=(_WIDE, 0.9 + len(places) * (0.18 * len(report.drivers) + 0.22)))
    axes = drawing.add_subplot()
    height = 0.8 / len(report.drivers)
    for number, one in enumerate(report.drivers):
        cells = [(row, report.cell(place, one.name)) for row, place in enumerate(places)]
        drawn = [(row + (number + 0.5) * height - 0.4, cell) for row, cell in cells if cell and _has(cell, figure)]
        values = [cell.middle(figure) / unit for _, cell in drawn]
        spreads = [cell.spread(figure) for _, cell in drawn]
        errors = [
            [value - spread[0] / unit for value, spread in zip(values, spreads)],
            [spread[1] / unit - value for value, spread in zip(values, spreads)],
        ]
        # A cell with a failed run is a cross: where it lies says little.
        for sound in (True, False):
            kind = [place for place, (_, cell) in enumerate(drawn) if cell.sound is sound]
            axes.errorbar(
                [values[place] for place in kind], [drawn[place][0] for place in kind],
                xerr=[[side[place] for place in kind] for side in errors],
                fmt=("o" if one.headline else "D") if sound else _UNSOUND, markersize=6 if sound else 8,
                color=_colours(report)[one.name], label=_label(one) if sound else None,
                markerfacecolor=None if one.headline else "none", elinewidth=1.5 * sound, capsize=3 * sound,
            )  # fmt: skip
        for (row, cell), value, spread in zip(drawn, values, spreads):
            text = f"{value:.2g}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"
            text += f", {failed_text(cell)}" if cell.failures else ""
            axes.annotate(
                text, (max(value, spread[1] / unit), row), xytext=(6, 0), textcoords="offset points", va="center",
                fontsize=8,
            )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 3000 * low else (1.0,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.grid(True, color=_INK, alpha=0.15)
    for row in range(1, len(places)):
        axes.axhline(row - 0.5, color=_INK, alpha=0.15, linewidth=0.8)
    axes.set_yticks(range(len(places)), [f"{title_of(*place[:2])}, {place[2]}" for place in places])
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlim(low, high * 1.6)
    return _finish(drawing, axes, axis)


def _has(cell: Optional[Cell], figure: str) -> bool:
    """Whether there is something that a logarithmic axis has a place for: on a cloud, a prolog can take 0 s."""
    return cell is not None and bool(cell.runs) and cell.middle(figure) > 0


def _label(one: Contestant) -> str:
    return one.label + ("" if one.headline else " (not compared)")


def _lines(report: Report, places: Sequence[Place], axis: str) -> str:
    """A line for each driver over the number that begins the variants' names."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(_WIDE, 3.6))
    axes = drawing.add_subplot()
    ticks = sorted({_number(place) for place in places})
    drawn = False
    for one in report.drivers:
        cells = [(_number(place), cell) for place in places if (cell := report.cell(place, one.name)) and cell.runs]
        if not cells:
            continue
        drawn = True
        colour = _colours(report)[one.name]
        points = sorted((at, cell.middle("prolog"), *cell.spread("prolog")) for at, cell in cells if cell.sound)
        xs = [point[0] for point in points]
        style = "-" if one.headline else "--"
        axes.plot(xs, [p[1] for p in points], color=colour, marker="o", linestyle=style, label=_label(one))
        for at, cell in cells:
            if not cell.sound:
                seconds = cell.middle("prolog")
                axes.plot([at], [seconds], color=colour, marker=_UNSOUND, linestyle="none", markersize=8)
                axes.annotate(failed_text(cell), (at, seconds), xytext=(6, 6), textcoords="offset points", fontsize=8)
        axes.fill_between(xs, [p[2] for p in points], [p[3] for p in points], color=colour, alpha=0.2, linewidth=0)
    if not drawn:
        return ""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds (prolog)")
    axes.yaxis.grid(True, color=_INK, alpha=0.15)
    return _finish(drawing, axes, axis)


def _number(place: Place) -> int:
    match = re.match(r"\d+", place[1])
    return int(match[0]) if match else 0


def _finish(drawing: Any, axes: Any, axis: str) -> str:
    from matplotlib.text import Text

    axes.set_xlabel(axis)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_facecolor("none")
    handles, labels = axes.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    drawing.set_layout_engine("constrained")
    for text in drawing.findobj(Text):
        text.set_parse_math(False)  # names are what users gave, dollars and all
    out = io.StringIO()
    drawing.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return adapt(out.getvalue())


def adapt(svg: str) -> str:
    """The drawing alone, as wide as the page allows, in the page's own colour and typeface."""
    drawing = svg[svg.index("<svg") :]
    drawing = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r'\1 width="100%"', drawing, count=1)
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"font: (\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \1; font-family: inherit", drawing)
    # matplotlib writes no fill for what is black, which stays black on a dark page.
    return drawing.replace(_INK, "currentColor")


