"""Checks: what is well and what is not, from facts.  Pure: no file, no host, no clock.

A check is a value: where, what, how it is, one sentence, and what to do.  "failed" is what keeps VMs from starting, or
will; a "note" works as it is and could be better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..frontend.progress import size

if TYPE_CHECKING:  # every command loads this module for its help
    from ..core.examine_messages import DatastoreExamined, Examined
    from ..frontend.examination import Clock
    from ..frontend.oned import Datastore, HostRecord

OK, NOTE, FAILED = "ok", "note", "failed"
FRONT_END = "front-end"

CLOCK_FAILS = 10.0  # seconds: by so much an older action may take itself for the newer one (agent/directory.py)
CLOCK_NOTED = 2.0
SPACE_FAILS, SPACE_NOTED = 3, 10  # percent that is free
LEAST_SLOTS = 2  # times as many as transfers: what waits in the daemon holds a slot of one_tm
OURS = {"image": ("LN_TARGET", "CLONE_TARGET"), "system": ("SHARED",)}
"""What oned copies from TM_MAD_CONF into a datastore of ours when it is saved."""


class Check(NamedTuple):
    """One result."""

    where: str
    name: str
    state: str
    sentence: str
    advice: str = ""


@dataclass(frozen=True)
class FrontEndFacts:
    """What is known of the front-end.  Texts are problems, "" where there is none.

    *edits*: by file, what the installer would put in, and what it leaves to an administrator.  *entries*: files of
    remotes/tm/fastcopy that are missing, or are not this version's.  *daemon* says what it does, *daemon_problem* why
    it is of no use, *daemon_version* which release serves ("": none).  *threads*: one_tm's; None if oned.conf does not
    say it clearly.  *stale*: oned runs, and was started before oned.conf was changed.  *image_tm*: drivers whose image
    datastores were to be used with ours.  *remotes* is the fingerprint of the driver's files here, *scripts* where
    hosts have theirs.
    """

    version: str
    python: str
    edits: Mapping[str, Tuple[Sequence[str], Sequence[str]]]
    configuration: str
    transfers: int
    threads: Optional[int]
    entries: Sequence[str]
    state: str
    daemon: str
    oned: str
    daemon_problem: str = ""
    daemon_version: str = ""
    stale: bool = False
    image_tm: Sequence[str] = ()
    datastores: Sequence[Datastore] = ()
    wrong_settings: Mapping[int, str] = field(default_factory=dict)
    remotes: str = ""
    scripts: str = "/var/tmp/one"


@dataclass(frozen=True)
class HostFacts:
    """What is known of a host: *offline* if oned has it so, and it was not asked; *problem* if no agent could be
    started there, *bulk* if no lane could be dialled.

    *stores*: by path, what was found or why nothing was.  *reached*: by name, why another host cannot be logged into.
    """

    record: HostRecord
    offline: bool = False
    problem: str = ""
    unreachable: bool = False
    bulk: str = ""
    examined: Optional[Examined] = None
    clock: Optional[Clock] = None
    stores: Mapping[str, DatastoreExamined] = field(default_factory=dict)
    store_problems: Mapping[str, str] = field(default_factory=dict)
    reached: Mapping[str, str] = field(default_factory=dict)


def front_end(facts: FrontEndFacts) -> List[Check]:
    """The front-end's checks."""
    found = [Check(FRONT_END, "version", OK, f"fastcopy {facts.version} on Python {facts.python}")]
    found += [_edited(path, *lists) for path, lists in facts.edits.items()]
    found.append(_plain("settings", facts.configuration, "fastcopy.yaml can be used", "mend the line that it names"))
    found.append(_entries(facts.entries))
    found.append(_plain("state", facts.state, "the daemon's directory and log can be written",
                        "give it to the user that oned runs as"))  # fmt: skip
    found.append(_daemon(facts))
    found.append(_plain("oned", facts.oned, "oned answers", "start oned, or set ONE_XMLRPC and ONE_AUTH"))
    found.append(_slots(facts.threads, facts.transfers))
    if facts.stale:
        found.append(Check(
            FRONT_END, "oned", NOTE, "oned.conf was changed after oned was started, and oned reads it only then",
            "restart oned, if what was changed concerns the driver",
        ))  # fmt: skip
    if not facts.oned:
        found += _datastores(facts)
        found += _image_datastores(facts)
    return found


def _daemon(facts: FrontEndFacts) -> Check:
    if facts.daemon_problem:
        return Check(FRONT_END, "daemon", FAILED, facts.daemon_problem,
                     "look at its log, and end that process: the next call starts another one")  # fmt: skip
    if facts.daemon_version not in ("", facts.version):
        text = f"{facts.daemon}; it is of release {facts.daemon_version}, and {facts.version} is installed"
        advice = "end that process (SIGTERM): it completes its calls, and the next one starts a new daemon"
        return Check(FRONT_END, "daemon", FAILED, text, advice)
    return Check(FRONT_END, "daemon", OK, facts.daemon)


def _image_datastores(facts: FrontEndFacts) -> List[Check]:
    """Those of other drivers that were to be used with ours: oned copies the attributes only when one is saved."""
    found = []
    for store in facts.datastores:
        if store.tm_mad in facts.image_tm and not store.system:
            allowed = store.attributes.get("TM_MAD_SYSTEM", "").replace(" ", "").split(",")
            if "fastcopy" not in allowed:
                text = f"VMs of image datastore {_shown(store)} cannot use fastcopy's system datastores: its "
                text += "TM_MAD_SYSTEM does not name it"
                advice = f"onedatastore update {store.id}, and save"
                found.append(Check(FRONT_END, "datastores", FAILED, text, advice))
    return found


def _plain(name: str, problem: str, well: str, advice: str) -> Check:
    return Check(FRONT_END, name, FAILED, problem, advice) if problem else Check(FRONT_END, name, OK, well)


def _edited(path: str, edits: Sequence[str], by_hand: Sequence[str]) -> Check:
    name = path.rpartition("/")[2]
    if by_hand:
        return Check(FRONT_END, name, FAILED, f"{path}: {by_hand[0]}",
                     "install/install.sh --dry-run names the lines; then restart oned")  # fmt: skip
    if edits:
        return Check(
            FRONT_END, name, FAILED, f"{path} does not say all that oned must know of fastcopy ({', '.join(edits)})",
            "install/install.sh --dry-run shows what is missing, --enable puts it in; then restart oned",
        )  # fmt: skip
    return Check(FRONT_END, name, OK, f"{path} names fastcopy wherever it must")


def _entries(missing: Sequence[str]) -> Check:
    if missing:
        text = f"remotes/tm/fastcopy has no {', '.join(missing)} of this version"
        return Check(FRONT_END, "entry points", FAILED, text, "run install/install.sh again")
    return Check(FRONT_END, "entry points", OK, "every action of this version has its entry point")


def _slots(threads: Optional[int], transfers: int) -> Check:
    if threads is None:
        return Check(FRONT_END, "one_tm's slots", NOTE, "oned.conf does not say clearly how many scripts one_tm runs",
                     "see the -t of TM_MAD")  # fmt: skip
    if threads < LEAST_SLOTS * transfers:
        return Check(
            FRONT_END, "one_tm's slots", NOTE,
            f"one_tm runs {threads} scripts at a time and the daemon {transfers} transfers: what waits for its turn "
            "holds a slot, and a delete may wait behind it",
            f"install/install.sh --enable --threads {LEAST_SLOTS * transfers}, or a smaller max_transfers",
        )  # fmt: skip
    return Check(FRONT_END, "one_tm's slots", OK, f"one_tm runs {threads} scripts, the daemon {transfers} transfers")


def _datastores(facts: FrontEndFacts) -> List[Check]:
    mine = [store for store in facts.datastores if store.tm_mad == "fastcopy"]
    if not any(store.system for store in mine):
        return [Check(FRONT_END, "datastores", NOTE, "no system datastore has TM_MAD = fastcopy: VMs do not use it yet",
                      "onedatastore update <id>, see docs/OPERATIONS.md")]  # fmt: skip
    found = [Check(FRONT_END, "datastores", OK, "fastcopy's are " + ", ".join(map(_shown, mine)))]
    for store in mine:
        lacking = [name for name in OURS["system" if store.system else "image"] if not store.attributes.get(name)]
        if lacking:
            found.append(Check(
                FRONT_END, "datastores", FAILED, f"datastore {_shown(store)} lacks {', '.join(lacking)}, which oned "
                "takes from TM_MAD_CONF when a datastore is saved", f"onedatastore update {store.id}, and save",
            ))  # fmt: skip
        if store.id in facts.wrong_settings:
            found.append(Check(FRONT_END, "settings", FAILED, facts.wrong_settings[store.id],
                               f"onedatastore update {store.id}"))  # fmt: skip
    return found


def _shown(store: Datastore) -> str:
    return f"{store.id} ({store.name})" if store.name else str(store.id)


def host(facts: HostFacts, remotes: str, user: str) -> List[Check]:
    """A host's checks.  *remotes* is the fingerprint of the front-end's files, *user* who hosts must work as."""
    name = facts.record.name
    if facts.offline:
        text = "the host is offline in oned, and was not looked at"
        return [Check(name, "ssh", NOTE, text, f"onehost enable {name}")]
    if facts.problem:
        advice = f"try it by hand: sudo -u {user} ssh {name} true" if facts.unreachable else "mend it on the host"
        return [Check(name, "ssh" if facts.unreachable else "agent", FAILED, facts.problem, advice)]
    found = [
        Check(name, "lanes", FAILED, facts.bulk, f"try it by hand: sudo -u {user} ssh {name} true")
        if facts.bulk
        else Check(name, "ssh", OK, "can be logged into, and runs the agent")
    ]
    if facts.examined:
        found += _examined(name, facts.record.driver, facts.examined, remotes, user)
    if facts.clock:
        found.append(_clock(name, facts.clock))
    found += [Check(name, "datastore", FAILED, text, f"make it there: sudo -u {user} mkdir -p {path}, or see its mount")
              for path, text in facts.store_problems.items()]  # fmt: skip
    for path, store in facts.stores.items():
        found += _store(name, path, store)
    found += [_reached(name, other, problem, user) for other, problem in facts.reached.items()]
    return found


def _examined(name: str, driver: str, seen: Examined, remotes: str, user: str) -> List[Check]:
    found = [Check(name, "python", OK, f"python3 is {seen.python}")]
    if seen.user != user:
        found.append(Check(name, "user", FAILED, f"we are {seen.user} there, and {user} here: disks get another owner",
                           "set User in the ssh configuration of the front-end"))  # fmt: skip
    if not seen.remotes:
        found.append(Check(name, "remotes", FAILED, "the driver's files are not there: nobody measures its disks",
                           "onehost sync --force"))  # fmt: skip
    elif seen.remotes != remotes:
        found.append(Check(name, "remotes", FAILED, "the driver's files there are not those of the front-end",
                           "onehost sync --force"))  # fmt: skip
    else:
        found.append(Check(name, "remotes", OK, "the driver's files are those of the front-end"))
    if not seen.qemu_img:
        found.append(Check(name, "qemu-img", NOTE, "there is no qemu-img: qcow2 disks cannot be made larger than their "
                           "images, nor have snapshots", "install qemu-utils (or qemu-img) there"))  # fmt: skip
    if driver in ("kvm", "qemu"):
        found.append(_guests(name, seen.guests, user))
    return found


def _guests(name: str, guests: str, user: str) -> Check:
    if not guests:
        return Check(name, "libvirt", NOTE, "there is no virsh: nobody can say as which user guests run",
                     "install libvirt's clients there, if it runs VMs")  # fmt: skip
    if guests == "?":
        return Check(name, "libvirt", NOTE, "libvirt does not say as which user guests run",
                     f"try it there: sudo -u {user} virsh -c qemu:///system capabilities")  # fmt: skip
    if guests not in (user, "root"):
        return Check(
            name, "libvirt", FAILED, f"guests run as {guests}, and disks belong to {user}: they could not be opened",
            f'user = "{user}" and group = "{user}" in /etc/libvirt/qemu.conf, and restart libvirt',
        )  # fmt: skip
    return Check(name, "libvirt", OK, f"guests run as {guests}")


def _clock(name: str, clock: Clock) -> Check:
    off, side = abs(clock.ahead), "ahead of" if clock.ahead > 0 else "behind"
    if off - clock.doubt > CLOCK_NOTED:
        state = FAILED if off - clock.doubt > CLOCK_FAILS else NOTE
        text = f"its clock is {off:.1f} s {side} ours: which of two actions is the newer one is decided by clocks"
        return Check(name, "clock", state, text, "let chrony or systemd-timesyncd set the clocks of both")
    return Check(name, "clock", OK, "its clock is ours, within 2 s")


def _store(name: str, path: str, seen: DatastoreExamined) -> List[Check]:
    if not seen.writable:
        return [Check(name, "datastore", FAILED, f"{path} cannot be written", "see its owner, and how it is mounted")]
    free = seen.free * 100 // seen.total if seen.total else 0
    place = path if seen.present else f"{path} (which the first VM makes)"
    text = f"{place}: {seen.fs or 'a file system'}, {size(seen.free)} of {size(seen.total)} free"
    found = []
    if free < SPACE_FAILS:
        found.append(Check(name, "space", FAILED, f"{text}: no VM fits any more", "make room there, or fastcopy cache "
                           f"ls {name}"))  # fmt: skip
    elif free < SPACE_NOTED:
        found.append(Check(name, "space", NOTE, f"{text}: it is nearly full", "make room there"))
    else:
        found.append(Check(name, "space", OK, text))
    if seen.reflink:
        found.append(Check(name, "reflink", OK, f"{path} shares blocks: a cached image is a disk at once"))
    else:
        found.append(Check(name, "reflink", NOTE, f"{path} cannot share blocks ({seen.fs}): a cached image is copied",
                           "XFS or btrfs would make it instant"))  # fmt: skip
    return found


def _reached(name: str, other: str, problem: str, user: str) -> Check:
    if problem:
        return Check(
            name, "ssh to hosts", FAILED, f"it cannot log into {other}: {problem}",
            f"VMs cannot move there; sudo -u {user} ssh {other} true, tried on {name}, must work without a question",
        )  # fmt: skip
    return Check(name, "ssh to hosts", OK, f"it can log into {other}")


def circle(names: Sequence[str], everybody: bool) -> Dict[str, FrozenSet[str]]:
    """Which hosts each one tries to log into: the next one, so that each is tried from one side; or all others."""
    if everybody:
        return {name: frozenset(names) - {name} for name in names}
    return {name: frozenset({names[(at + 1) % len(names)]}) - {name} for at, name in enumerate(names)}
