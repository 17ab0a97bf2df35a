"""Where a report goes: the terminal, and the files that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from bench.comparison import page, report
from bench.comparison.values import Report, to_json


def save(made: Report, json: Optional[Path]) -> None:
    """Write the JSON as it is now, if it was asked for."""
    if json:
        part = json.with_name(f".{json.name}.part")
        part.write_text(to_json(made))
        part.replace(json)


def write(made: Report, json: Optional[Path], html: Optional[Path]) -> None:
    """Write the files, and print it; the JSON first: it has all. ValueError if there is no page."""
    save(made, json)
    print(report.render(made), end="", flush=True)
    if html:
        html.write_text(page.render(made))
