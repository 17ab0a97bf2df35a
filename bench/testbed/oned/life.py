"""A virtual machine's life in the stand-in: created, deployed by the real driver, deleted.

Only what `bench/prolog --cloud` asks for: one.vm.allocate, one.vm.deploy and one.vm.recover (delete). A deploy runs the
clone of every disk with the entry point of the image datastore's driver, as oneadmin, one after the other, and then the
VM counts as running: there is no hypervisor.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

from bench.testbed.errors import LabError
from bench.testbed.oned import calls, objects

HOLD, ACTIVE, DONE = 2, 3, 6  # STATE
PROLOG, RUNNING, PROLOG_FAILURE = 1, 3, 39  # LCM_STATE
DELETE = 3  # what `recover` is asked for
_LONGEST = 600.0  # seconds for one action of a driver

State = dict[str, Any]
Change = Callable[[Callable[[State], Any]], Any]
"""Changes the state file: gives the state to a function, and keeps what that made of it."""
Driver = Callable[[str, str, list[str]], int]
"""Runs an entry point: driver, action, arguments; its exit code."""


class Life:
    """Answers the calls that change virtual machines. *later* runs a function without waiting for it."""

    def __init__(self, change: Change, driver: Driver, later: Callable[[Callable[[], None]], None]) -> None:
        self._change, self._driver, self._later = change, driver, later

    def answer(self, method: str, parameters: list[Any]) -> list[Any]:
        """The reply to one of `calls.CHANGES`."""
        try:
            if method == "one.vm.allocate":
                return [True, self._change(lambda state: allocate(state, str(parameters[1]), time.time())), 0]
            number = int(parameters[1])
            if method == "one.vm.deploy":
                lines = self._change(lambda state: deploy(state, number, int(parameters[2]), int(parameters[4])))
                self._later(lambda: self._prolog(number, lines))
            elif parameters[2] != DELETE:
                return calls.failure(method, "The stand-in only knows how to delete.", calls.INTERNAL, number)
            else:
                self._later(lambda: self._end(number))
            return [True, number, 0]
        except (LabError, IndexError, TypeError, ValueError) as error:
            return calls.failure(method, str(error), calls.NO_EXISTS)

    def _prolog(self, number: int, lines: list[tuple[str, list[str]]]) -> None:
        codes = []
        for driver, words in lines:
            codes.append(self._driver(driver, "clone", words))
            if codes[-1]:
                break

        def done(state: State) -> None:
            vm = state["vms"][str(number)]
            vm["HISTORY"][-1]["PETIME"] = int(time.time())
            vm["LCM_STATE"] = PROLOG_FAILURE if any(codes) else RUNNING

        self._change(done)

    def _end(self, number: int) -> None:
        place = self._change(lambda state: place_of(state, number))
        if place:
            self._driver(place[0], "delete", [place[1], str(number), place[2]])

        def done(state: State) -> None:
            state["vms"][str(number)].update(STATE=DONE, LCM_STATE=0)

        self._change(done)


def allocate(state: State, template: str, now: float) -> int:
    """A new VM on hold; its id. LabError for an image that does not exist."""
    number = max([int(key) for key in state["vms"]] + [9999]) + 1
    name = re.search(r'^NAME\s*=\s*"([^"\n]*)"', template, re.MULTILINE)
    images = re.findall(r'\bIMAGE_ID\s*=\s*"?(\d+)', template)
    disks = [objects.disk_of(state, index, {"IMAGE_ID": int(image)}) for index, image in enumerate(images)]
    state["vms"][str(number)] = {
        "ID": number, "NAME": name[1] if name else f"vm-{number}", "STATE": HOLD, "LCM_STATE": 0, "DEPLOY_ID": "",
        "TEMPLATE": {}, "USER_TEMPLATE": {}, "SNAPSHOTS": [], "DISKS": disks, "HISTORY": [], "STIME": int(now),
    }  # fmt: skip
    return number


def deploy(state: State, number: int, host: int, store: int) -> list[tuple[str, list[str]]]:
    """Begin a VM's prolog; the lines of its script, as driver and words."""
    vm = vm_of(state, number)
    if vm["STATE"] != HOLD:
        raise LabError(f"VM {number} is not on hold.")
    item = next((item for item in state["hosts"].values() if item["ID"] == host), None)
    if item is None:
        raise LabError(f"There is no host {host}.")
    place = objects.place(state, item["NAME"], store)
    vm["HISTORY"].append({**place, "PSTIME": int(time.time()), "PETIME": 0})
    vm.update(STATE=ACTIVE, LCM_STATE=PROLOG)
    directory = f"{item['NAME']}:{state['datastores'][str(store)]['BASE_PATH']}/{number}"
    return [
        (
            disk["TM_MAD"],
            [f"fe:{disk['SOURCE']}", f"{directory}/disk.{index}", str(number), str(disk["DATASTORE_ID"])],
        )
        for index, disk in enumerate(vm["DISKS"])
    ]


def place_of(state: State, number: int) -> tuple[str, str, str] | None:
    """Driver of a VM's system datastore, its directory as `host:path`, and the datastore; None before a deploy."""
    vm = vm_of(state, number)
    if not vm["HISTORY"]:
        return None
    last = vm["HISTORY"][-1]
    base = state["datastores"][str(last["DS_ID"])]["BASE_PATH"]
    return last["TM_MAD"], f"{last['HOSTNAME']}:{base}/{number}", str(last["DS_ID"])


def vm_of(state: State, number: int) -> State:
    """A VM that is not done yet. LabError if there is none."""
    vm = state["vms"].get(str(number))
    if vm is None or vm["STATE"] == DONE:
        raise LabError(f"There is no VM {number}.")
    found: State = vm
    return found


def run_driver(one: str, environment: dict[str, str], uid: int) -> Driver:
    """Runs entry points below the tree *one* as a user."""

    def run(driver: str, action: str, words: list[str]) -> int:
        entry = f"{one}/var/remotes/tm/{driver}/{action}"
        try:
            return subprocess.run(
                [entry, *words], env=environment, user=uid, group=uid, extra_groups=[], cwd="/", timeout=_LONGEST,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            ).returncode  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return 1

    return run
