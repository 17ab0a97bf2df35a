"""Facts: what `fastcopy doctor` finds out, on the front-end and from the agents on hosts."""

from __future__ import annotations

import asyncio
import os
import platform
import pwd
from pathlib import Path
from typing import Any, Awaitable, Dict, FrozenSet, List, Mapping, Optional, Tuple

from async_timeout import timeout

from .. import __version__
from ..core.errors import FastcopyError, LinkLost, classify
from ..core.fingerprint import fingerprint
from ..frontend import inquiry
from ..frontend.connections import Connections
from ..frontend.examination import Examination
from ..frontend.oned import OFFLINE, Datastore, HostRecord, Oned
from ..frontend.settings import FILE, Configuration, Settings
from ..setup import configuration, onedconf, onedvalues
from ..setup.layout import Layout
from ..setup.ledger import LEDGER, Ledger
from .checks import FrontEndFacts, HostFacts
from .hosts import ours

_AT_ONCE = 10  # hosts that are looked at at the same time
_HOST = 120.0  # seconds for one host: two logins, and a program of its own with a limit of 15 s each


class Known:
    """What is asked of oned once: datastores and hosts; *problem* if it does not answer."""

    def __init__(self, environ: Mapping[str, str], layout: Layout) -> None:
        self.problem = ""
        self.stores: Dict[int, Datastore] = {}
        self.hosts: List[HostRecord] = []
        try:
            oned = Oned.of(environ, layout.places.of(environ).auth)
            self.stores, self.hosts = oned.datastores(), oned.hosts()
        except FastcopyError as error:
            self.problem = str(error)


def user() -> str:
    """Who we are."""
    return pwd.getpwuid(os.geteuid()).pw_name


def front_end(environ: Mapping[str, str], layout: Layout, known: Known) -> FrontEndFacts:
    """The front-end's facts.  Blocking."""
    settings, config, problem = _settings(environ, layout)
    remotes = layout.remotes / "tm" / "fastcopy"
    edits, text, image_tm = _configured(layout)
    daemon, daemon_problem, daemon_version = _daemon(layout, settings)
    return FrontEndFacts(
        version=__version__,
        python=platform.python_version(),
        edits=edits,
        configuration=problem,
        transfers=settings.max_transfers,
        threads=onedvalues.threads(text),
        entries=_entries(remotes),
        state=_state(layout),
        daemon=daemon,
        daemon_problem=daemon_problem,
        daemon_version=daemon_version,
        oned=known.problem,
        stale=_stale(layout.oned_conf),
        image_tm=image_tm,
        datastores=list(known.stores.values()),
        wrong_settings=_wrong(config, known.stores) if config else {},
        remotes=fingerprint(str(remotes)),
        scripts=onedvalues.single(text, "SCRIPTS_REMOTE_DIR", "/var/tmp/one"),
    )


def _settings(environ: Mapping[str, str], layout: Layout) -> Tuple[Settings, Optional[Configuration], str]:
    try:
        config = Configuration.read(environ, layout.places.etc / FILE)
        return config.settings(), config, ""
    except FastcopyError as error:
        return Settings.of({}), None, str(error)


def _wrong(config: Configuration, stores: Mapping[int, Datastore]) -> Dict[int, str]:
    """What datastores of ours say that cannot be used."""
    found: Dict[int, str] = {}
    for store in stores.values():
        if store.tm_mad == onedconf.NAME:
            try:
                config.settings(system=store) if store.system else config.settings(image=store)
            except FastcopyError as error:
                found[store.id] = str(error)
    return found


def _entries(remotes: Path) -> List[str]:
    """Files that OpenNebula calls and that are missing, cannot be run, or are not this version's."""
    own = Path(__file__).resolve().parent.parent / "remotes"
    return [
        path.name
        for path in sorted(own.iterdir())
        if path.is_file() and not _is_same(path, remotes / path.name)
    ]  # fmt: skip


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.read_bytes() == other.read_bytes() and os.access(path, os.X_OK) <= os.access(other, os.X_OK)
    except OSError:
        return False


def _stale(oned_conf: Path) -> bool:
    """Whether an oned runs on this machine that was started before its configuration was changed."""
    try:
        changed = oned_conf.stat().st_mtime
        booted = next(int(line.split()[1]) for line in _lines("/proc/stat") if line.startswith("btime"))
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, StopIteration, ValueError):
        return False
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                name, rest = "".join(_lines(f"/proc/{entry}/stat")).rsplit(")", 1)
            except (OSError, ValueError):
                continue  # it has ended
            started = booted + int(rest.split()[19]) / ticks
            if name.endswith("(oned") and started + 1.0 < changed:
                return True
    return False


def _lines(path: str) -> List[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readlines()


def _configured(layout: Layout) -> Tuple[Dict[str, Tuple[List[str], List[str]]], str, List[str]]:
    """What is missing, by file; the text of oned.conf; and the drivers of `--image-tm`."""
    ledger = Ledger.read(layout.library / LEDGER) or Ledger()
    found, text = {}, ""
    for item in configuration.planned(layout, ledger.image_tm, None):
        wishes = sorted({edit.wish for edit in item.plan.edits})
        found[str(item.path)] = wishes, [hand.why for hand in item.plan.by_hand]
        if item.path == layout.oned_conf:
            text = item.before
    return found, text, list(ledger.image_tm)


def _state(layout: Layout) -> str:
    """Why the daemon could not work; "" if it can."""
    for path in (layout.places.state, layout.places.log):
        there = path if path.exists() else path.parent
        if not os.access(there, os.W_OK):
            return f"{there} cannot be written by {user()}"
    return ""


def _daemon(layout: Layout, settings: Settings) -> Tuple[str, str, str]:
    """What it does, why it is of no use, and of which release the one is that takes calls."""
    if not settings.daemon:
        return "the configuration says that there shall be no daemon", "", ""
    try:
        answers = asyncio.run(inquiry.ask(inquiry.address(layout.places), "status"))
    except FastcopyError as error:
        return "", str(error), ""
    if not answers:
        return "no daemon runs now; the next call starts one", "", ""
    count = sum(len(answer.calls) for answer in answers)
    first = answers[0].daemon
    return f"the daemon runs (pid {first['pid']}), with {count} calls in hand", "", str(first["version"])


def targets(known: Known, host: HostRecord) -> List[str]:
    """The paths of those system datastores of ours that a host may use."""
    mine = [store for store in ours(known.stores) if not store.clusters or host.cluster in store.clusters]
    return [store.base_path for store in mine]


async def all_hosts(
    connections: Connections, known: Known, remotes: str, circle: Mapping[str, FrozenSet[str]], wanted: List[HostRecord]
) -> List[HostFacts]:
    """The facts of hosts, a few at a time."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(record: HostRecord) -> HostFacts:
        if record.state == OFFLINE:
            return HostFacts(record, offline=True)
        async with room:
            try:
                async with timeout(_HOST):
                    return await _host(connections, record, targets(known, record), remotes, circle[record.name])
            except asyncio.TimeoutError:
                problem = f"{record.name} did not answer everything within {_HOST:.0f} s"
                return HostFacts(record, problem=problem, unreachable=True)

    return list(await asyncio.gather(*map(one, wanted)))


async def _host(
    connections: Connections, record: HostRecord, bases: List[str], remotes: str, others: FrozenSet[str]
) -> HostFacts:
    try:
        async with Examination.open(connections.agents, record.name) as there:
            examined, clock = await there.host(remotes), await there.clock()
            stores: Dict[str, Any] = {base: await _tried(there.datastore(base)) for base in bases}
            reached = {other: await there.reach(other) for other in sorted(others)}
    except (FastcopyError, OSError) as error:
        problem = str(classify(error, record.name))
        return HostFacts(record, problem=problem, unreachable=isinstance(error, LinkLost))
    return HostFacts(
        record,
        bulk=await _bulk(connections, record.name),
        examined=examined,
        clock=clock,
        stores={base: seen for base, seen in stores.items() if not isinstance(seen, str)},
        store_problems={base: seen for base, seen in stores.items() if isinstance(seen, str)},
        reached=reached,
    )


async def _tried(question: Awaitable[Any]) -> Any:
    try:
        return await question
    except LinkLost:
        raise
    except FastcopyError as error:
        return str(error)


async def _bulk(connections: Connections, host: str) -> str:
    """Why no lane can be dialled; "" if one can."""
    try:
        lane = await connections.lane(host)
    except FastcopyError as error:
        return str(error)
    await lane.close()
    return ""
