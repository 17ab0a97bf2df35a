"""Where a report goes: the terminal, and the files that were asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from bench.comparison import page, plots, report
from bench.comparison.values import Report, to_json


def save(made: Report, json: Optional[Path]) -> None:
    """Write the JSON as it is now, if it was asked for."""
    if json:
        part = json.with_name(f".{json.name}.part")
        part.write_text(to_json(made))
        part.replace(json)


def check(json: Optional[Path], html: Optional[Path]) -> None:
    """ValueError where a file cannot be written, or no page be made: to be known before hours of measuring."""
    for path in (json, html):
        if path and (path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK)):
            raise ValueError(f"{path} cannot be written: it is a directory, or lies in none that can be written to")
    if html:
        plots.library()


def write(made: Report, json: Optional[Path], html: Optional[Path]) -> None:
    """Write the files, and print it; the JSON first: it has all. ValueError if there is no page."""
    try:
        save(made, json)
    finally:
        print(report.render(made), end="", flush=True)
    if html:
        html.write_text(page.render(made))
