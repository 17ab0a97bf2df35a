"""fastcopy cancel: ends a transfer."""

from __future__ import annotations

import argparse
import asyncio
from typing import Dict

from ..core.errors import FastcopyError
from ..frontend import inquiry
from ..frontend.arguments import number
from ..frontend.places import Places
from . import show

HELP = "end the transfers of a VM"
DESCRIPTION = """\
Ends what is being transferred for a VM, or for one of its disks, and removes what has arrived of it.  What the disk's
or image's name stands for is as it was, or complete if it had just been about to be.  With --keep, what has arrived
stays in a staging file (a hidden name that ends with .part), from which the action goes on if it is repeated."""
EXAMPLES = """\
  fastcopy cancel 42                 all that runs for VM 42; nothing of it is left
  fastcopy cancel 42 disk.1          only this disk; `1` is the same
  fastcopy cancel 42 --keep && onevm recover --retry 42      later: it goes on where it was
  fastcopy cancel 42 && onevm recover --delete 42"""


def options(parser: argparse.ArgumentParser) -> None:
    """The words that it knows."""
    parser.add_argument("vm", metavar="VM", help="the number of a VM")
    parser.add_argument("disk", metavar="DISK", nargs="?", default="", help="one disk of it: disk.0, or 0")
    parser.add_argument("--keep", action="store_true", help="keep what has arrived, for when the action is repeated")
    parser.add_argument("--json", action="store_true", help="for programs: what was ended")


def run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    """End it; the exit code is 1 if there was nothing to end, or if something is left that should not be."""
    vm = number(words.vm, "a VM")
    disk = f"disk.{words.disk}" if words.disk.isdecimal() else words.disk
    path = inquiry.address(Places.of(environ))
    question = "cancel", str(vm), disk, "keep" if words.keep else "discard"
    rows = [row for answer in asyncio.run(inquiry.ask(path, *question)) for row in answer.calls]
    clean = all(row["clean"] for row in rows)
    if words.json:
        show.as_json({"cancelled": rows})
        return 0 if clean and rows else 1
    if not rows:
        raise FastcopyError(f"nothing runs for {'VM' if not disk else disk + ' of VM'} {vm}; see fastcopy status")
    for row in rows:
        total = int(row["total"] or 0)
        at = f", at {int(row['done'] or 0) * 100 // total} %" if total else ""
        how = "complete before it could be ended" if row["complete"] else f"ended in its phase {row['phase']}{at}"
        print(f"{row['action']} of {row['disk'] or 'the directory'} of VM {vm} on {row['host']}: {how}")
        if row["complete"]:
            continue
        print(f"  left: {row['stays'] or ('nothing' if row['looked'] else 'nothing of this attempt')}")
    print(f"oned shows the action as failed; to repeat it: onevm recover --retry {vm}")
    return 0 if clean else 1
