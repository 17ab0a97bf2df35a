"""fastcopy cancel: ends a transfer."""

from __future__ import annotations

import argparse
import asyncio
from typing import Dict

from ..core.errors import FastcopyError
from ..core.publish import staging_name
from ..frontend import inquiry
from ..frontend.arguments import number
from ..frontend.places import Places
from . import show

HELP = "end the transfers of a VM"
DESCRIPTION = """\
Ends what is being transferred for a VM, or for one of its disks.  Nothing appears at the disk's or image's name: it
stays as it was.  What has arrived stays in a staging file (a hidden name that ends with .part, in the VM's directory or
in the cache beside the datastore; of an image, beside the image), from which the action goes on if it is repeated:
`onevm recover --retry VM`.  Deleting the VM, or the next transfer that needs the room, removes it."""
EXAMPLES = """\
  fastcopy cancel 42                 all that runs for VM 42
  fastcopy cancel 42 disk.1          only this disk; `1` is the same
  fastcopy cancel 42 && onevm recover --delete 42"""


def options(parser: argparse.ArgumentParser) -> None:
    """The words that it knows."""
    parser.add_argument("vm", metavar="VM", help="the number of a VM")
    parser.add_argument("disk", metavar="DISK", nargs="?", default="", help="one disk of it: disk.0, or 0")
    parser.add_argument("--json", action="store_true", help="for programs: what was ended")


def run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    """End it; the exit code is 1 if there was nothing to end."""
    vm = number(words.vm, "a VM")
    disk = f"disk.{words.disk}" if words.disk.isdecimal() else words.disk
    path = inquiry.address(Places.of(environ))
    rows = [row for answer in asyncio.run(inquiry.ask(path, "cancel", str(vm), disk)) for row in answer.calls]
    if words.json:
        show.as_json({"cancelled": rows})
        return 0 if rows else 1
    if not rows:
        raise FastcopyError(f"nothing runs for {'VM' if not disk else disk + ' of VM'} {vm}; see fastcopy status")
    for row in rows:
        total = int(row["total"] or 0)
        at = f", at {int(row['done'] or 0) * 100 // total} %" if total else ""
        print(f"{row['action']} of {row['disk'] or 'the directory'} of VM {vm} on {row['host']}: ended in its phase "
              f"{row['phase']}{at}")  # fmt: skip
        if total:
            name = staging_name(str(row["disk"]))
            print(f"  what has arrived stays in a staging file ({name}, one in the cache, or one beside the image),")
            print("  and is used if the action is repeated")
    print(f"oned shows the action as failed; to repeat it: onevm recover --retry {vm}")
    return 0
