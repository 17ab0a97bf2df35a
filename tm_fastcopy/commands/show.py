"""Show: how the commands print tables, numbers and JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from ..frontend.progress import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """Standard output.  Where it is no terminal, lines are as wide as they need to be."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200)


def table(*columns: str, right: str = "") -> Table:
    """A table without lines; the columns named in *right* (separated by commas) are numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    numbers = right.split(",")
    for name in columns:
        made.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    return made


def as_json(value: Any, compact: bool = False) -> None:
    """One document on standard output."""
    print(json.dumps(value, indent=None if compact else 1, separators=(",", ":") if compact else None), flush=True)


def ago(seconds_since_epoch: int) -> str:
    """How long ago something was: `3 min 20 s`, `12 d`; `-` for never."""
    if not seconds_since_epoch:
        return "-"
    passed = max(0.0, time.time() - seconds_since_epoch)
    return f"{passed / 86400:.0f} d" if passed > 2 * 86400 else duration(passed)
