"""fastcopy status: what is being transferred now."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import TYPE_CHECKING, Any, Dict, List

from ..frontend import inquiry
from ..frontend.places import Places
from ..frontend.progress import duration, size
from ..frontend.running import Row
from . import show

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY = 1.0  # seconds between two looks
_BAR = 20  # characters

HELP = "show the transfers that are under way"
DESCRIPTION = """\
Shows the transfers that the daemon runs: VM, disk, host, what is being done, how much of it, how fast, and how long it
will still take.  Phases: turn (another action on this VM goes first), flight (another transfer brings the same image),
wait (for its turn among all transfers), transfer, publish.  Actions that do not run in the daemon (FASTCOPY_DAEMON=no)
are not seen."""
EXAMPLES = """\
  fastcopy status                    once
  fastcopy status --watch            every second, until Ctrl-C
  fastcopy status --json | jq '.transfers[] | select(.host == "host7")'"""


def options(parser: argparse.ArgumentParser) -> None:
    """The words that it knows."""
    parser.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="for programs; with --watch a document on each line")


def run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    """Show it."""
    path = inquiry.address(Places.of(environ))
    if words.json:
        while True:
            show.as_json(document(asyncio.run(inquiry.ask(path, "status"))), compact=words.watch)
            if not words.watch:
                return 0
            time.sleep(_EVERY)
    if not words.watch:
        show.console().print(picture(asyncio.run(inquiry.ask(path, "status"))))
        return 0
    from rich.live import Live

    with Live(console=show.console(), auto_refresh=False, transient=True) as live:
        while True:
            live.update(picture(asyncio.run(inquiry.ask(path, "status"))), refresh=True)
            time.sleep(_EVERY)


def document(answers: List[inquiry.Answer]) -> Dict[str, Any]:
    """What `--json` prints."""
    return {
        "daemons": [answer.daemon for answer in answers],
        "transfers": [row for answer in answers for row in answer.calls],
    }


def picture(answers: List[inquiry.Answer]) -> RenderableType:
    """What people see."""
    rows = [row for answer in answers for row in answer.calls]
    if not rows:
        return "Nothing is being transferred." if answers else "Nothing is being transferred, and no daemon runs."
    made = show.table("VM", "DISK", "HOST", "ACTION", "PHASE", "", "DONE", "RATE", "LEFT", "AGE",
                      right="VM,DONE,RATE,LEFT,AGE")  # fmt: skip
    for row in rows:
        made.add_row(*cells(row))
    return made


def cells(row: Row) -> List[Any]:
    """One line of it."""
    done, total, rate, left, age = (float(row[name] or 0) for name in ("done", "total", "rate", "left", "age"))
    known = total > 0
    bar: Any = ""
    if known:
        from rich.progress_bar import ProgressBar

        bar = ProgressBar(total=total, completed=done, width=_BAR)
    return [
        "" if row["vm"] is None else str(row["vm"]),
        str(row["disk"]) or "(all)",
        str(row["host"]),
        str(row["action"]),
        str(row["phase"]) or "begun",
        bar,
        f"{size(int(done))} of {size(int(total))}" if known else "",
        f"{size(int(rate))}/s" if known else "",
        duration(left) if row["left"] is not None else "",
        duration(age),
    ]
