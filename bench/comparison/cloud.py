"""The same question put to a real cloud: virtual machines are created through oned's API, timed, and deleted.

The prolog's time is oned's own: PSTIME and PETIME of the history record, in whole seconds. Nothing else can be seen
from here, and nobody can drop a cloud's caches: the first VM of an image on a host is a case of its own, whatever the
host knew before.

Everything that was created is deleted, also after an interrupt or an error; what could not be deleted is named.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Sequence, Set

from bench.comparison import machine, output
from bench.comparison.oned_api import Api, CloudError, OnedApi, parse, text_of
from bench.comparison.places import NAME, Place, Plan, images, make_plan, name_of
from bench.comparison.values import CLOUD, Cell, Contestant, Report, Run

ACTIVE, DONE = 3, 6  # STATE
BEFORE = (0, 1)  # LCM_STATE: nothing yet, or in the prolog
FAILED = 39  # LCM_STATE: PROLOG_FAILURE
DELETE = 3  # of one.vm.recover
_POLL = 0.5  # seconds between two looks at a VM
_MOST = 20  # VMs in all, unless more are asked for
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NotDeleted(CloudError):
    """A VM that was created cannot be deleted: no more may be created."""


class Machines:
    """Creates VMs, and deletes whatever it has created.

    *clock* and *sleep* in seconds; *patience*: seconds for a prolog, and for a deletion.
    """

    def __init__(
        self, api: Api, patience: float, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._api, self._patience, self._clock, self._sleep = api, patience, clock, sleep
        self._left: Set[int] = set()
        self._made = 0

    @property
    def prefix(self) -> str:
        """What the names of all VMs begin with that this creates."""
        return f"{NAME}-{os.getpid()}-"

    @contextlib.contextmanager
    def vm(self, place: Place) -> Iterator[int]:
        """The number of a new VM, which is deleted however this ends; after an interrupt by `leftovers`.

        CloudError if there is none; NotDeleted if it stays.
        """
        self._made += 1
        # On hold, or the scheduler would choose another host. Asked for and noted with nothing between: an interrupt in
        # the call itself can leave one VM on hold, which `leftovers` finds by its name.
        template = (
            f'NAME = "{self.prefix}{self._made}"\nCPU = "0.1"\nMEMORY = "128"\n'
            f'DISK = [ IMAGE_ID = "{place.image}" ]\n'
        )
        number = int(self._api("one.vm.allocate", template, True))
        self._left.add(number)
        interrupted = False
        try:
            yield number
        except KeyboardInterrupt:
            interrupted = True  # `leftovers` deletes it, where a second interrupt does not reach
            raise
        finally:
            if not interrupted:
                self._delete(number)

    def prolog(self, number: int, place: Place) -> float:
        """Seconds of the prolog of a VM, which is deployed for it. CloudError if it fails, or takes too long."""
        self._api("one.vm.deploy", number, place.host, False, place.datastore, "")
        end = self._clock() + self._patience
        while True:
            vm = parse(self._api("one.vm.info", number, False))
            state, step = int(text_of(vm, "STATE")), int(text_of(vm, "LCM_STATE"))
            if step == FAILED:
                said = text_of(vm, "USER_TEMPLATE/ERROR") or "see its log"
                raise CloudError(f"the prolog of VM {number} failed: {said}")
            records = vm.findall("HISTORY_RECORDS/HISTORY")
            if state == ACTIVE and step not in BEFORE and records:
                started, ended = int(text_of(records[-1], "PSTIME")), int(text_of(records[-1], "PETIME"))
                if started and ended:
                    return float(ended - started)
            if self._clock() > end:
                raise CloudError(f"VM {number} was not through its prolog after {self._patience:.0f} s")
            self._sleep(_POLL)

    def _delete(self, number: int) -> None:
        """Delete a VM and wait until it is gone. NotDeleted if it is not."""
        try:
            self._api("one.vm.recover", number, DELETE)
            self._gone(number, self._clock() + self._patience)
        except CloudError as error:
            raise NotDeleted(f"VM {number} could not be deleted: {error}") from error

    def _gone(self, number: int, end: float) -> None:
        """Return once a VM is gone. CloudError if it is not by *end*."""
        while int(text_of(parse(self._api("one.vm.info", number, False)), "STATE")) != DONE:
            if self._clock() > end:
                raise CloudError(f"it was not gone after {self._patience:.0f} s")
            self._sleep(_POLL)
        self._left.discard(number)

    def leftovers(self) -> List[str]:
        """Delete everything that is still there; a sentence for each VM that stays, or may have stayed.

        All are asked to go before any is waited for: they go at the same time, and one that stays keeps no other.
        """
        found: List[str] = []
        try:
            pool = parse(self._api("one.vmpool.info", -3, -1, -1, -1))
            self._left |= {
                int(text_of(vm, "ID")) for vm in pool.iterfind("VM")
                if text_of(vm, "NAME").startswith(self.prefix) and text_of(vm, "STATE") != str(DONE)
            }  # fmt: skip
        except ValueError as error:  # oned's no, or a document that is none
            found.append(
                f"the list of VMs could not be read, so one may be left: {error}; look in `onevm list` for names that "
                f"begin with {self.prefix}"
            )
        refused: Dict[int, ValueError] = {}
        for number in sorted(self._left):
            try:
                self._api("one.vm.recover", number, DELETE)
            except ValueError as error:
                refused[number] = error
        end = self._clock() + self._patience
        for number in sorted(self._left):
            try:
                # One that may not be deleted can be gone all the same: an earlier call has reached oned.
                self._gone(number, self._clock() if number in refused else end)
            except ValueError as error:
                reason = refused.get(number, error)
                found.append(f"VM {number} is still there: {reason}; delete it with `onevm recover --delete {number}`")
        return found


@dataclass(frozen=True)
class Ending:
    """How a run has ended; *left*: whether a VM is still there, or may be."""

    interrupted: bool
    left: bool


def measure(
    plan: Plan, machines: Machines, report: Report, tell: Callable[[str], None], save: Callable[[], None] = lambda: None
) -> Ending:
    """Fill the report: round by round, place by place. What is left is deleted, however this ends.

    Ends before its time, with a note, after an interrupt, or if a VM cannot be deleted. *save* is called after every
    VM, and at the end.
    """
    interrupted, left = False, ["unknown"]
    with _one_interrupt():
        try:
            _all_rounds(plan, machines, report, tell, save)
        except NotDeleted as error:
            report.notes.append(f"stopped, as no VM may be created while another cannot be deleted: {error}")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            _ignore_signals()
            left = machines.leftovers()
            if interrupted:
                report.notes.append(
                    "interrupted; " + ("not all that was created is known to be gone" if left else
                    "what had been created was deleted")
                )  # fmt: skip
            report.notes += left
            save()
    return Ending(interrupted, bool(left))


def _all_rounds(
    plan: Plan, machines: Machines, report: Report, tell: Callable[[str], None], save: Callable[[], None]
) -> None:
    cells: Dict[tuple[Place, str], Cell] = {}
    for turn in range(plan.rounds):
        variant = "first VM" if turn == 0 else "next VM"
        for place in plan.places:
            name = name_of(place)
            cell = cells.get((place, variant))
            if cell is None:
                data = place.megabytes * 2**20
                cell = Cell(place.row, variant, name, place.host_name, CLOUD, 1, data)
                cells[place, variant] = cell
                report.cells.append(cell)
            tell(f"round {turn + 1} of {plan.rounds}: image {place.image}, {name}, {place.host_name}")
            _one_vm(machines, place, cell)
            save()


def _one_vm(machines: Machines, place: Place, cell: Cell) -> None:
    """A run of a place, or a failure. NotDeleted if the VM stays."""
    try:
        with machines.vm(place) as number:
            try:
                seconds = machines.prolog(number, place)
                cell.runs.append(Run(seconds, seconds, 0, 0.0, 0.0))
            except CloudError as error:
                cell.failures.append(str(error))
    except NotDeleted:
        raise
    except CloudError as error:
        cell.failures.append(str(error))


@contextlib.contextmanager
def _one_interrupt() -> Iterator[None]:
    """The first signal that asks for an end is a KeyboardInterrupt; a second one does not stop what follows from it."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # what nohup has arranged stays so
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(*_: object) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `--cloud`."""
    group = parser.add_argument_group("a real cloud")
    group.add_argument("--cloud", action="store_true", help="measure there, through the API (ONE_XMLRPC, ONE_AUTH)")
    group.add_argument(
        "--image", type=images, action="append", metavar="ID", help="image to deploy, or DRIVER=ID,DRIVER=ID: the same "
        "content in datastores of these drivers, to be compared; may be repeated",
    )  # fmt: skip
    group.add_argument("--host", action="append", metavar="NAME", help="host to deploy on; may be repeated")
    group.add_argument("--datastore", type=int, action="append", metavar="ID", help="system datastore (all that fit)")
    group.add_argument("--most", type=int, default=_MOST, metavar="N", help=f"VMs to create in all ({_MOST})")
    group.add_argument("--patience", type=float, default=600.0, metavar="SECONDS", help="for one prolog (600)")
    group.add_argument("--yes", action="store_true", help="do not ask before VMs are created")


def main(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Ask, measure, print; 0 if all went well and nothing was left behind."""
    if not options.image or not options.host:
        raise CloudError("--cloud needs --image ID and --host NAME, each at least once")
    output.check(options.json, options.html)
    api = OnedApi(os.environ)
    plan = make_plan(api, options.image, options.host, options.datastore or [], options.rounds + 1)
    if plan.count > options.most:
        raise CloudError(
            f"that would be {plan.count} VMs, and --most allows {options.most}: ask for fewer rounds, hosts or "
            "datastores, or for a larger --most"
        )
    print(plan.words(), file=sys.stderr)
    if not options.yes and not _agreed():
        print("Nothing was done.", file=sys.stderr)
        return 1
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    names = {name_of(place): place for place in plan.places}
    drivers = [
        Contestant(name, f"{name.rpartition(' ')[0]} in datastore {place.datastore_name}")
        for name, place in names.items()
    ]
    method = {
        "prolog": "PSTIME to PETIME of the history record, whole seconds",
        "oned": f"{api.endpoint}, version {api('one.system.version')}",
        "first VM": "of this bench: what host and front-end knew before is not known",
    }
    command = f"bench/prolog {shlex.join(given)}"
    report = Report(now, command, machine.machine(), machine.versions(None), method, drivers)
    machines = Machines(api, options.patience)
    began = time.monotonic()

    def save() -> None:
        report.seconds = time.monotonic() - began
        output.save(report, options.json)

    ending = measure(plan, machines, report, lambda what: print(what, file=sys.stderr, flush=True), save)
    failed = any(cell.failures for cell in report.cells)
    output.write(report, options.json, options.html)
    if ending.interrupted:
        return 130
    return 1 if ending.left or failed or not any(cell.runs for cell in report.cells) else 0


def _agreed() -> bool:
    try:
        return input("Go on? (yes/no) ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
