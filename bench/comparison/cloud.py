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
import http.client
import os
import re
import shlex
import signal
import sys
import time
import xml.etree.ElementTree as ElementTree
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Protocol, Sequence, Set
from xml.parsers.expat import ExpatError

from bench.comparison import machine, output
from bench.comparison.values import CLOUD, Cell, Contestant, Report, Run

ACTIVE, DONE = 3, 6  # STATE
BEFORE = (0, 1)  # LCM_STATE: nothing yet, or in the prolog
FAILED = 39  # LCM_STATE: PROLOG_FAILURE
DELETE = 3  # of one.vm.recover
READY = (1, 2)  # IMAGE STATE: ready, used
NAME = "fastcopy-bench"
_ANSWER = 30.0  # seconds for oned to answer
_POLL = 0.5  # seconds between two looks at a VM
_MOST = 20  # VMs in all, unless more are asked for
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CloudError(ValueError):
    """Something about the cloud, or about what was asked of it, in one sentence."""


class NotDeleted(CloudError):
    """A VM that was created cannot be deleted: no more may be created."""


class Api(Protocol):
    """oned's XML-RPC API."""

    def __call__(self, method: str, *arguments: Any) -> Any:
        """The value of a call. CloudError with oned's text if it fails."""


class OnedApi:
    """The API of the oned that the environment names, with the user's credentials."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.endpoint = environ.get("ONE_XMLRPC", "http://localhost:2633/RPC2")
        if not self.endpoint.startswith(("http://", "https://")):
            raise CloudError(f"ONE_XMLRPC is {self.endpoint!r}, which is no http address")
        home = environ.get("HOME", "/var/lib/one")
        auth = Path(environ.get("ONE_AUTH") or Path(home, ".one/one_auth"))
        try:
            self._credentials = auth.read_text().strip()
        except OSError as error:
            raise CloudError(f"the credentials for oned cannot be read: {auth}: {error.strerror}") from error

    def __call__(self, method: str, *arguments: Any) -> Any:
        """See Api."""
        transport = (_Safe if self.endpoint.startswith("https") else _Plain)()
        try:
            with xmlrpc.client.ServerProxy(self.endpoint, transport=transport, allow_none=True) as proxy:
                answer = getattr(proxy, method)(self._credentials, *arguments)
        except (OSError, http.client.HTTPException) as error:
            raise CloudError(f"oned does not answer at {self.endpoint} ({error}): is ONE_XMLRPC right?") from error
        except (xmlrpc.client.Error, ExpatError, TypeError) as error:
            raise CloudError(f"what answers at {self.endpoint} to {method} is not oned: {error}") from error
        if not isinstance(answer, list) or len(answer) < 2:
            raise CloudError(f"oned answers {method} with something that is no answer")
        if not answer[0]:
            raise CloudError(f"oned refuses {method}: {answer[1]}")
        return answer[1]


class _Plain(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = _ANSWER
        return connection


class _Safe(xmlrpc.client.SafeTransport):
    def make_connection(self, host: Any) -> http.client.HTTPSConnection:
        connection = super().make_connection(host)
        connection.timeout = _ANSWER
        return connection


# -- what will be done -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where VMs of one image are made: a system datastore and a host. *row*: what it is compared in."""

    row: str
    image: int
    megabytes: int
    driver: str  # the image datastore's: what oned calls for a disk of it
    system_driver: str
    datastore: int
    datastore_name: str
    host: int
    host_name: str


@dataclass(frozen=True)
class Plan:
    """All places, and how many VMs are made at each, one after another."""

    places: List[Place]
    rounds: int

    @property
    def count(self) -> int:
        """How many VMs in all."""
        return len(self.places) * self.rounds

    def words(self) -> str:
        """What an administrator should know before it begins."""
        lines = [
            f"This creates {self.count} VMs named {NAME}-..., one at a time, each with 128 MB of memory and one disk, "
            "waits for its prolog, and deletes it:"
        ]
        lines += [
            f"  {self.rounds} x image {place.image} ({place.megabytes} MB, driver {name_of(place)}) in datastore "
            f"{place.datastore} ({place.datastore_name}) on {place.host_name}"
            for place in self.places
        ]
        return "\n".join(lines)


def make_plan(
    api: Api, rows: Sequence[Mapping[int, str]], hosts: Sequence[str], stores: Sequence[int], rounds: int
) -> Plan:
    """Every image in every system datastore that fits its own, on every host.

    CloudError if something is not there, or cannot be compared.

    rows -- ids of images that are compared with each other, with the driver that each is said to have ("": any)
    stores -- ids of system datastores to use; none: all that fit
    """
    datastores = _by_id(api("one.datastorepool.info"), "DATASTORE")
    known = {_text(item, "NAME"): item for item in _by_id(api("one.hostpool.info"), "HOST").values()}
    for name in hosts:
        if name not in known:
            raise CloudError(f"oned has no host {name}; it has {', '.join(sorted(known)) or 'none'}")
        if _text(known[name], "STATE") != "2":
            raise CloudError(f"the host {name} is not in state MONITORED, so no VM can be deployed there")
    places: List[Place] = []
    for row, number, wanted in [(one, *image) for one in rows for image in one.items()]:
        image = _parse(api("one.image.info", number, False))
        if int(_text(image, "STATE")) not in READY or _text(image, "PERSISTENT") == "1":
            raise CloudError(f"image {number} is not ready, or is persistent: give one that VMs can be cloned from")
        home = datastores[int(_text(image, "DATASTORE_ID"))]
        driver = _text(home, "TM_MAD")
        if wanted and driver != wanted:
            raise CloudError(f"image {number} has the driver {driver}, not {wanted}")
        fitting = [
            item for key, item in sorted(datastores.items())
            if _text(item, "TYPE") == "1" and (not stores or key in stores) and fits(home, item)
        ]  # fmt: skip
        if not fitting:
            raise CloudError(
                f"image {number} lies in datastore {_text(home, 'ID')} with the driver {_text(home, 'TM_MAD')}, and no "
                "system datastore that was asked for fits it"
            )
        places += [
            Place(
                _row_of(row), number, int(_text(image, "SIZE")), driver, _text(item, "TM_MAD"), int(_text(item, "ID")),
                _text(item, "NAME"), int(_text(known[name], "ID")), name,
            )
            for item in fitting
            for name in hosts
        ]  # fmt: skip
    for row in rows:
        if len({place.driver for place in places if place.image in row}) < len(row):
            raise CloudError(f"two of the {_row_of(row)} have the same driver: each has its own column")
        if len({place.megabytes for place in places if place.image in row}) > 1:
            raise CloudError(f"the {_row_of(row)} are not of the same size, so they are not the same image")
    return Plan(places, rounds)


def _row_of(row: Mapping[int, str]) -> str:
    return f"image{'s' if len(row) > 1 else ''} {', '.join(map(str, row))}"


def fits(image_store: ElementTree.Element, system_store: ElementTree.Element) -> bool:
    """Whether oned would put disks of images from one datastore into the other."""
    driver = _text(system_store, "TM_MAD")
    listed = _words(_text(image_store, "TEMPLATE/COMPATIBLE_SYS_DS"))
    if listed and _text(system_store, "ID") not in listed:
        return False
    return driver == _text(image_store, "TM_MAD") or driver in _words(_text(image_store, "TEMPLATE/TM_MAD_SYSTEM"))


def _words(text: str) -> List[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _parse(document: Any) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(str(document))
    except ElementTree.ParseError as error:
        raise CloudError("oned answers with something that is not XML") from error


def _by_id(document: Any, tag: str) -> Dict[int, ElementTree.Element]:
    return {int(_text(item, "ID")): item for item in _parse(document).iterfind(tag)}


def _text(item: ElementTree.Element, path: str) -> str:
    return (item.findtext(path) or "").strip()


# -- doing it --------------------------------------------------------------------------------------------------


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
            vm = _parse(self._api("one.vm.info", number, False))
            state, step = int(_text(vm, "STATE")), int(_text(vm, "LCM_STATE"))
            if step == FAILED:
                said = _text(vm, "USER_TEMPLATE/ERROR") or "see its log"
                raise CloudError(f"the prolog of VM {number} failed: {said}")
            records = vm.findall("HISTORY_RECORDS/HISTORY")
            if state == ACTIVE and step not in BEFORE and records:
                started, ended = int(_text(records[-1], "PSTIME")), int(_text(records[-1], "PETIME"))
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
        while int(_text(_parse(self._api("one.vm.info", number, False)), "STATE")) != DONE:
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
            pool = _parse(self._api("one.vmpool.info", -3, -1, -1, -1))
            self._left |= {
                int(_text(vm, "ID")) for vm in pool.iterfind("VM")
                if _text(vm, "NAME").startswith(self.prefix) and _text(vm, "STATE") != str(DONE)
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


def name_of(place: Place) -> str:
    """What ran, and in which system datastore, as the report's columns name it."""
    other = "" if place.system_driver == place.driver else f" on {place.system_driver}"
    return f"{place.driver}{other} ({place.datastore})"


def images(text: str) -> Dict[int, str]:
    """`5`, or `fastcopy=5,ssh=12`: ids with the drivers that they are said to have."""
    pairs = [word.rpartition("=")[::2] for word in text.split(",")]
    found = {int(number): driver for driver, number in pairs if re.fullmatch(r"[0-9]{1,9}", number)}
    named = all(driver for driver, _ in pairs) if len(pairs) > 1 or "=" in text else True
    if len(found) < len(pairs) or not named:
        raise argparse.ArgumentTypeError(f"{text!r} is neither ID nor DRIVER=ID,DRIVER=ID")
    return found


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
