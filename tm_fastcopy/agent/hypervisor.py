"""Hypervisor: what a live disk needs of libvirt, through virsh.

A guest is called by its *domain*, a disk by its *target* in there ("vda"); both come from oned.  Each step has a bound
in time, after which virsh is killed; what it was asked for may have happened all the same.
"""

from __future__ import annotations

import re
from typing import Callable, List, NamedTuple

from ..core.errors import FastcopyError, ProtocolError, Superseded
from .program import execute

PROGRAM = "virsh"
_COPY = 3000.0  # seconds for a copy of a whole disk; the front-end waits 3600 for any answer

_URI = re.compile(r"[a-z][a-z0-9+]*:[!-~]{1,500}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_TARGET = re.compile(r"[A-Za-z][A-Za-z0-9]{0,31}")

_PAUSED = "paused"
_RUNNING = {"running", "idle", "blocked", "in shutdown", "no state"}
_STILL = {_PAUSED, "shut off", "crashed", "pmsuspended"}


class NotDone(FastcopyError):
    """virsh did not do what it was asked for."""


class TooLate(NotDone):
    """It was killed, because it took too long; what it was asked for may have happened."""


def ask(
    argv: List[str], shown: str, missing: str, bound: float, alive: Callable[[], bool] = lambda: True
) -> str:
    """Run a program of a hypervisor's; return what it prints, in one line.  `NotDone` if it fails, or *missing* says
    what to do where it is not there; `TooLate` after *bound* seconds; `Superseded` when nobody is *alive* who waits."""
    try:
        ended = execute(argv, bound, alive)
    except TimeoutError:
        raise TooLate(f"{shown} did not end within {bound:.0f} s") from None
    except OSError as error:
        raise NotDone(f"{argv[0]} cannot be run on this host ({error.strerror}): {missing}") from error
    if ended.status:
        raise NotDone(f"{shown}: {ended.problem}")
    return " ".join(ended.out.split())


class Undoing(NamedTuple):
    """Calls of programs that undo `suspend` and `freeze` ([]: there is nothing to undo), and the one that prints
    *paused* as long as the guest stands still."""

    resume: List[str]
    thaw: List[str]
    state: List[str]
    paused: str


class Hypervisor:
    """libvirt at *uri*; a step takes *patience* seconds at most."""

    def __init__(self, uri: str, patience: float, alive: Callable[[], bool] = lambda: True) -> None:
        if not _URI.fullmatch(uri):
            raise ProtocolError(f"{uri!r:.100} is no address of libvirt")
        self.uri, self.patience, self._alive = uri, patience, alive

    def is_running(self, domain: str) -> bool:
        """Whether the guest can write to its disks now; `NotDone` if that cannot be found out."""
        state = self._run("domstate", domain)
        if state not in _RUNNING | _STILL:
            raise NotDone(f"virsh says that {domain} is {state!r:.60}, which this driver does not know")
        return state in _RUNNING

    def is_paused(self, domain: str) -> bool:
        """Whether the guest would go on if it was resumed."""
        return self._run("domstate", domain) == _PAUSED

    def suspend(self, domain: str) -> None:
        """Stop the guest's processors; its requests to disks are completed first."""
        self._run("suspend", domain)

    def resume(self, domain: str) -> None:
        """Let the guest go on."""
        self._run("resume", domain)

    def freeze(self, domain: str) -> None:
        """Have the guest agent write out and freeze the guest's file systems; `NotDone` where there is no agent."""
        self._run("domfsfreeze", domain)

    def thaw(self, domain: str) -> None:
        """Undo `freeze`."""
        self._run("domfsthaw", domain)

    def undoing(self, domain: str) -> Undoing:
        """How somebody else undoes a step."""
        resume, thaw, state = (self._call(command, domain) for command in ("resume", "domfsthaw", "domstate"))
        return Undoing(resume, thaw, state, _PAUSED)

    def copy(self, domain: str, target: str, path: str) -> None:
        """Copy a disk of the running guest to the file *path*, as it is at the moment when that is complete."""
        try:
            self._run("blockcopy", domain, target, path, "--wait", "--finish", bound=_COPY, alive=self._alive)
        except (TooLate, Superseded):
            self.end_copy(domain, target)
            raise

    def end_copy(self, domain: str, target: str) -> None:
        """End a copy of ours that may go on without us; it is no error if there is none."""
        try:
            self._run("blockjob", domain, target, "--abort")
        except NotDone:
            pass

    def _run(
        self, command: str, domain: str, *words: str, bound: float = 0.0, alive: Callable[[], bool] = lambda: True
    ) -> str:
        """Run virsh; see `ask`."""
        argv, shown = self._call(command, domain, *words), f"virsh {command} {domain}"
        return ask(argv, shown, "install libvirt's clients there", bound or self.patience, alive)

    def _call(self, command: str, domain: str, *words: str) -> List[str]:
        if not _NAME.fullmatch(domain) or (command.startswith("block") and not _TARGET.fullmatch(words[0])):
            raise ProtocolError(f"{domain!r:.100} or {words!r:.60} is no name for virsh")
        return [PROGRAM, "--connect", self.uri, command, domain, *words]
