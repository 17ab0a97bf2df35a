"""fastcopy doctor: looks whether everything is as it must be, here and on the hosts."""

from __future__ import annotations

import argparse
import asyncio
from typing import Dict, List

from ..core.errors import FastcopyError
from . import show
from .checks import FAILED, NOTE, OK, Check

HELP = "look whether everything is as it must be, here and on the hosts"
DESCRIPTION = """\
Looks at the installation, oned.conf, the datastores that use fastcopy, and every host: ssh to it and from it to
another one, Python, the file systems and their room, clocks, the files that `onehost sync` brings, libvirt's user.
Nothing is changed.  A failed check says what to do; the exit code is 0 only if none has failed.  A note works as it is
and could be better."""
EXAMPLES = """\
  fastcopy doctor                    everything
  fastcopy doctor host3 host7        the front-end and these hosts
  fastcopy doctor --all-pairs        every host logs into every other one (by default: into the next)
  fastcopy doctor --json | jq '.checks[] | select(.state == "failed")'"""

_MARKS = {OK: "[green]ok[/]", NOTE: "[yellow]note[/]", FAILED: "[bold red]FAILED[/]"}


def options(parser: argparse.ArgumentParser) -> None:
    """The words that it knows."""
    parser.add_argument("hosts", metavar="HOST", nargs="*", help="only these hosts")
    parser.add_argument("--all-pairs", action="store_true", help="try ssh from every host to every other one")
    parser.add_argument("--all", action="store_true", help="show also what is well, line by line")
    parser.add_argument("--json", action="store_true", help="for programs: all checks")


def run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    """Look, and say how it is."""
    found = examine(words, environ)
    failed = [check for check in found if check.state == FAILED]
    if words.json:
        show.as_json({"well": not failed, "checks": [check._asdict() for check in found]})
    else:
        _print(found, words.all)
    return 1 if failed else 0


def examine(words: argparse.Namespace, environ: Dict[str, str]) -> List[Check]:
    """All checks."""
    from ..frontend.oned import OFFLINE
    from ..setup.layout import Layout
    from . import checks, facts
    from .hosts import connected

    layout = Layout.of(environ.get("ONE_LOCATION", ""))
    known = facts.Known(environ, layout)
    here = facts.front_end(environ, layout, known)
    wanted = [record for record in known.hosts if not words.hosts or record.name in words.hosts]
    unknown = set(words.hosts) - {record.name for record in wanted}
    if unknown and not known.problem:
        raise FastcopyError(f"oned knows no host {', '.join(sorted(unknown))}; see onehost list")
    looked_at = [record.name for record in wanted if record.state != OFFLINE]
    circle = checks.circle(looked_at, words.all_pairs)

    async def hosts() -> List[checks.HostFacts]:
        async with connected(environ) as connections:
            return await facts.all_hosts(connections, known, here.scripts, circle, wanted)

    found = checks.front_end(here)
    for host in asyncio.run(hosts()):
        found += checks.host(host, here.remotes, facts.user())
    if not known.problem and not known.hosts:
        found.append(Check(checks.FRONT_END, "hosts", NOTE, "oned knows no host", "onehost create"))
    return found


def _print(found: List[Check], everything: bool) -> None:
    console = show.console()
    for where in dict.fromkeys(check.where for check in found):
        here = [check for check in found if check.where == where]
        bad = [check for check in here if check.state != OK]
        console.print(f"[bold]{where}[/]: {len(here) - len(bad)} of {len(here)} checks are well")
        for check in here if everything else bad:
            console.print(f"  {_MARKS[check.state]} {check.name}: ", end="")
            console.print(check.sentence, markup=False)
            if check.advice:
                console.print(f"      -> {check.advice}", markup=False)
    failed = sum(check.state == FAILED for check in found)
    notes = sum(check.state == NOTE for check in found)
    console.print(f"{'All is well' if not failed else f'{failed} failed'}; {notes} notes.")
