"""bench/prolog: measures how long a VM's disks take to be there, by driver.

    bench/prolog list                      what can be measured, and with which drivers
    bench/prolog --quick                   a small set, without OpenNebula (what `make bench` runs)
    bench/prolog --stock-remotes DIR ...   in a lab on this machine, against OpenNebula's own scripts
    bench/prolog --cloud --image ID --host HOST   on a real cloud, through oned's API

How to read what it prints: docs/BENCHMARKING.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.comparison import cloud, machine, nfs, opennebula, output
from bench.comparison.drivers import FASTCOPY, PIPELINE, Driver, Nfs, all_drivers
from bench.comparison.forecast import in_words
from bench.comparison.method import Bench, Situation, Tell, situations
from bench.comparison.report import rounds_text
from bench.comparison.scenarios import Case, scenarios
from bench.comparison.site import Site, pictures
from bench.comparison.values import OURS, Report
from bench.images import catalogue, tools
from bench.jobs import WrongContent
from bench.testbed import Lab, LabConfig, LabError
from bench.testbed.links import bits

_FS = ("xfs", "ext4")
_FAILURES = (LabError, WrongContent, tools.Unable, OSError, ValueError, subprocess.SubprocessError)
_QUICK = ("cold", "warm", "tiny", "incompressible", "update", "stampede", "multidisk", "writeback", "fanout", "growth")


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure and print; 0 if every run of our driver was right, 1 if not or if it ended early, 130 if interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    _handle_signals()
    try:
        if options.command == "list":
            print(_list(), end="")
            return 0
        if options.cloud:
            return cloud.main(options, given)
        return _lab(options, f"bench/prolog {shlex.join(given)}")
    except _FAILURES as error:
        print(f"prolog: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prolog: interrupted", file=sys.stderr)
        return 130


def _handle_signals() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # what nohup has arranged stays so
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(*_: object) -> None:
    """SIGTERM and SIGHUP end it as Ctrl-C does: what was measured is shown, and the lab is taken away."""
    raise KeyboardInterrupt


def _list() -> str:
    lines = ["scenarios"]
    lines += [f"  {name:15} {one.meaning}" for name, one in scenarios().items()]
    lines.append("drivers")
    for one in all_drivers(nfs.kernel_client()):
        need = "needs OpenNebula's scripts" if one.stock else ""
        about = "; ".join(text for text in (one.contestant.label, need, one.contestant.note) if text)
        lines.append(f"  {one.name:15} {about}")
    lines.append("links\n  none, or a rate like 1gbit or 200mbit")
    return "\n".join(lines) + "\n"


def _lab(options: argparse.Namespace, command: str) -> int:
    output.check(options.json, options.html)
    checkout = opennebula.find(options.stock_remotes)
    drivers = _drivers(options, checkout)
    cases = _cases(options)
    if not options.synthetic:
        for name in ("debian", "debian-v2"):
            catalogue.make(name, options.images)
    count = max((case.hosts for case in cases), default=1)
    hosts = [*options.fs, *([options.fs[0]] * (count - 1))]
    config = LabConfig(
        hosts=len(hosts), fs=tuple(hosts), dir=options.dir,
        opennebula=checkout if any(one.stock for one in drivers) else None,
    )  # fmt: skip
    todo = situations(cases, options.fs, options.link)
    made = _report(options, command, drivers, checkout if config.opennebula else None)
    began = time.monotonic()
    code = 0
    try:
        _measure(options, config, drivers, todo, made)
    except KeyboardInterrupt:
        made.notes.append("interrupted: what follows was not measured")
        code = 130
    except _FAILURES as error:
        if not made.cells:
            raise  # there is nothing to show
        made.notes.append(f"ended early: {error}")
        code = 1
    made.seconds = time.monotonic() - began
    return max(code, finish(made, options))


def _measure(
    options: argparse.Namespace, config: LabConfig, drivers: Sequence[Driver], todo: Sequence[Situation], made: Report
) -> None:
    """Fill the report in a lab that is taken away again, whatever happens."""
    began = time.monotonic()

    def save() -> None:
        made.method["rounds"] = rounds_text(made, options.rounds, options.budget)
        made.seconds = time.monotonic() - began
        output.save(made, options.json)

    with Lab.up(config) as lab:
        if config.opennebula:
            opennebula.check(lab)
        for driver in drivers:
            driver.set_up(lab)
            if isinstance(driver, Nfs):
                nfs.start(lab, (driver.image_store, driver.system_store), driver.kernel)
        site = Site(lab, pictures(options.images, not options.synthetic))
        try:
            with _progress() as tell:
                Bench(site, drivers, options.rounds, made, tell, options.budget, save).run(todo)
        finally:
            unknown = sorted(set(lab.oned.unknown_calls))
            if unknown:
                made.notes.append(f"drivers asked the stand-in for oned what it does not know: {', '.join(unknown)}")


def finish(made: Report, options: argparse.Namespace) -> int:
    """Print the report, and write the files that were asked for."""
    made.method["rounds"] = rounds_text(made, options.rounds, options.budget)
    output.write(made, options.json, options.html)
    ours = [cell for cell in made.cells if cell.driver == OURS]
    return 1 if any(cell.failures for cell in ours) or not any(cell.runs for cell in made.cells) else 0


def _drivers(options: argparse.Namespace, checkout: Optional[Path]) -> List[Driver]:
    known = {one.name: one for one in all_drivers(nfs.kernel_client())}
    named = options.drivers or [FASTCOPY, PIPELINE if checkout is None else "ssh"]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ValueError(f"there is no driver {', '.join(unknown)}; `bench/prolog list` names those that exist")
    chosen = [known[name] for name in named]
    stock = [one.name for one in chosen if one.stock]
    if stock and checkout is None:
        raise ValueError(
            f"{', '.join(stock)} are OpenNebula's own scripts, and none is installed here: give --stock-remotes DIR (a "
            f"source checkout), or choose {PIPELINE}"
        )
    if any(isinstance(one, Nfs) for one in chosen) and nfs.missing():
        raise ValueError(f"shared needs what is not installed: {', '.join(nfs.missing())}")
    return chosen


def _cases(options: argparse.Namespace) -> List[Case]:
    known = scenarios()
    unknown = [name for name in options.scenarios if name not in known]
    if unknown:
        raise ValueError(f"there is no scenario {', '.join(unknown)}; `bench/prolog list` names those that exist")
    return [case for name in options.scenarios for case in known[name].cases]


def _report(
    options: argparse.Namespace, command: str, drivers: Sequence[Driver], checkout: Optional[Path]
) -> Report:
    method = {
        "rounds": "",  # known when they are over
        "images": "synthetic" if options.synthetic else "Debian 12 of 4 GiB, and synthetic ones",
        "cold": "the driver has forgotten the image, and cached pages of all datastores are dropped",
        "durable": "a sync of the file system has ended, too",
        "checked": "every disk byte by byte, and that nobody wrote to it after the entry point had ended",
        "hosts": "network namespaces on one machine, with an sshd and a file system each; all share its cores",
        "stock cache": "on the datastores' disk, CACHE_MAX_SIZE=80",
        "oned": "a stand-in; its onevm and onedatastore start faster than OpenNebula's, which flatters stock",
    }
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    named = [one.contestant for one in drivers]
    return Report(now, command, machine.machine(), machine.versions(checkout), method, named)


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """A bar with the time left on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, left: print(
            f"{what}" + (f"; about {in_words(left)} left" if left else ""), file=sys.stderr, flush=True
        )
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        began = time.monotonic()

        def tell(what: str, left: float) -> None:
            gone = time.monotonic() - began
            description = f"{what}; about {in_words(left)} left" if left else what
            progress.update(task, description=description, completed=gone, total=gone + left if left else None)

        yield tell


def _words(text: str) -> List[str]:
    return [word for word in text.split(",") if word]


def _rate(text: str) -> str:
    if text != "none":
        try:
            bits(text)
        except LabError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _rates(text: str) -> List[str]:
    return [_rate(word) for word in _words(text)]


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 to 1000")
    return int(text)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/prolog", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("command", nargs="?", choices=["run", "list"], default="run", help="`list` says what can be measured")
    add("--quick", action="store_true", help="all scenarios on small images, few rounds, 1 Gbit/s")
    add("--drivers", type=_words, metavar="A,B", help="which, in the order of the columns (fastcopy and stock ssh)")
    add("--scenarios", type=_words, metavar="A,B", default=["cold", "warm", "tiny", "incompressible", "update"])
    add("--link", type=_rates, metavar="RATE,...", default=["1gbit"], help="rates of the hosts' links (1gbit)")
    add("--fs", type=_words, metavar="FS,...", default=list(_FS), help="file systems of hosts (xfs,ext4)")
    add("--rounds", type=_count, default=3, help="that count, after one that warms up (3)")
    add("--budget", type=float, default=120.0, metavar="SECONDS", help="for a driver in a case, before it gets fewer "
        "rounds (120)")  # fmt: skip
    add("--synthetic", action="store_true", help="a small image that looks like Debian instead of Debian")
    add("--stock-remotes", type=Path, metavar="DIR", help="an OpenNebula checkout, or /var/lib/one/remotes")
    add("--json", type=Path, metavar="FILE", help="write the report as JSON")
    add("--html", type=Path, metavar="FILE", help="write the report as one HTML page with plots")
    add("--images", type=Path, default=catalogue.DIRECTORY, help="where the images are kept")
    add("--dir", type=Path, default=LabConfig().dir, help="where the lab is built")
    cloud.add_options(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.synthetic, options.scenarios = True, list(_QUICK)
        options.rounds = min(options.rounds, 2)
        options.budget = min(options.budget, 20.0)  # of ten VMs, or eight hosts, one round counts: it takes 15 minutes
    return options


if __name__ == "__main__":
    sys.exit(main())
