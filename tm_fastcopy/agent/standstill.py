"""Standstill: a guest that does not write to its disks for a moment, and goes on afterwards whatever happens.

Three see to that: this module, which undoes each step in any case; the waker, a process that does so if the agent is
killed, or takes too long; and a mark in the VM's directory, by which the next action there finds a guest that both have
left (`recover`).

    waker ready -> mark -> freeze (if the guest has an agent) -> suspend -> *the moment* -> resume -> thaw -> mark away
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Protocol

from ..core.errors import FastcopyError
from ..core.files import Files
from ..core.paths import has
from ..core.publish import staging_name
from .containers import URI as LXC
from .containers import Lxc
from .directory import VmDirectory
from .hypervisor import Hypervisor, NotDone, Undoing
from .program import environment

MARK = staging_name("live")
_WAKER = Path(__file__).with_name("waker.py")
_READY = 20.0  # seconds for the waker to start; it takes a fraction of one
_TRIES = 5  # to resume; then it is the waker's, and an error says so
_PAUSE = 1.0  # seconds between them
_BRIEFLY = 10.0  # seconds for virsh when another action, which waits, finds a mark
_MAX_MARK = 4096


class Stoppable(Protocol):
    """What makes guests stand still: see `Hypervisor`, and `Lxc`."""

    uri: str
    patience: float

    def is_running(self, domain: str) -> bool:
        """Whether the guest can write to its disks now."""

    def is_paused(self, domain: str) -> bool:
        """Whether the guest would go on if it was resumed."""

    def suspend(self, domain: str) -> None:
        """Stop the guest."""

    def resume(self, domain: str) -> None:
        """Let the guest go on."""

    def freeze(self, domain: str) -> None:
        """Have the guest's file systems written out and frozen."""

    def thaw(self, domain: str) -> None:
        """Undo `freeze`."""

    def undoing(self, domain: str) -> Undoing:
        """How somebody else undoes a step."""


class _Waker:
    """The waker's process."""

    def __init__(self, hypervisor: Stoppable, domain: str, bound: float) -> None:
        how = json.dumps(hypervisor.undoing(domain)._asdict())
        argv = [sys.executable, "-I", "-S", str(_WAKER), str(bound), how]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd="/", env=environment(),
                start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise FastcopyError(f"nothing could be started that would resume {domain}: {error.strerror}") from error
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        if not select.select([self._from], [], [], _READY)[0] or os.read(self._from.fileno(), 1) != b"!":
            self.leave()
            raise FastcopyError(f"what would resume {domain} if this agent ended did not start, so it is not suspended")

    def before(self, letter: str) -> None:
        """Say what is about to be done."""
        try:
            os.write(self._to.fileno(), letter.encode())
        except OSError as error:
            raise FastcopyError("what would resume the guest if this agent ended has gone") from error

    def undone(self, letter: str) -> None:
        """Say what was undone.  A waker that has gone meanwhile needs not know."""
        with contextlib.suppress(OSError):
            os.write(self._to.fileno(), letter.encode())

    def took_over(self) -> bool:
        """Whether it lets the guest go on, because this took too long."""
        return bool(select.select([self._from], [], [], 0)[0])

    def check(self) -> None:
        """Raise `FastcopyError` if it took over: what was done in the meantime is not of one moment."""
        if self.took_over():
            raise FastcopyError("the guest stood still for too long and was resumed: the disk was not copied")

    def leave(self) -> None:
        """End the conversation: what is outstanding is the waker's."""
        self._to.close()
        self._from.close()
        threading.Thread(target=self._process.wait, daemon=True).start()  # it may have ten minutes of work


@contextlib.contextmanager
def standstill(
    files: Files, directory: VmDirectory, hypervisor: Stoppable, domain: str, bound: float, how: str = ""
) -> Iterator[None]:
    """Have the guest stand still in the block, for *bound* seconds at most beyond what virsh may take for a step.  One
    that stands still already is left as it is.  *how*: it is suspended only ("suspend"), or only its file systems are
    frozen ("agent"), and if they cannot be that is an error; "" is both.
    """
    if not hypervisor.is_running(domain):
        yield
        if hypervisor.is_running(domain):
            raise _resumed(domain)
        return
    waker = _Waker(hypervisor, domain, bound + hypervisor.patience)
    undo: List[str] = []
    try:
        write_mark(files, directory, hypervisor.uri, domain)
        try:
            _stop(hypervisor, domain, waker, undo, how)
            yield
            waker.check()
            if "S" in undo and hypervisor.is_running(domain):  # by the waker of an action before, or by hand
                raise _resumed(domain)
        finally:
            _go_on(hypervisor, domain, waker, undo)
            remove_mark(files, directory)
    finally:
        waker.leave()


def _resumed(domain: str) -> FastcopyError:
    return FastcopyError(f"{domain} was resumed by somebody else while its disk was copied: repeat the action")


def _stop(hypervisor: Stoppable, domain: str, waker: _Waker, undo: List[str], how: str) -> None:
    if how != "suspend":
        waker.before("F")
        undo.append("F")
        try:
            hypervisor.freeze(domain)
        except NotDone:
            # Most guests have no agent.  One that was too slow may still freeze: it is thawed, without a promise.
            undo[:] = ["?"]
            if how:
                raise
        waker.check()
    if how != "agent":
        waker.before("S")
        undo.append("S")
        hypervisor.suspend(domain)


def _go_on(hypervisor: Stoppable, domain: str, waker: _Waker, undo: List[str]) -> None:
    """Undo what was done; `FastcopyError` if that does not succeed.  Whatever happens, the waker knows.

    All of it also if the waker took over: it may have done so just before a step of ours.
    """
    if "S" in undo:
        problem = f"{domain} is suspended and cannot be resumed"
        _insist(lambda: _resume(hypervisor, domain), problem, hypervisor.undoing(domain).resume)
        waker.undone("s")
    if "F" in undo and not waker.took_over():
        problem = f"the file systems of {domain} stay frozen"
        _insist(lambda: hypervisor.thaw(domain), problem, hypervisor.undoing(domain).thaw)
    elif "F" in undo or "?" in undo:  # thawed already, perhaps
        with contextlib.suppress(NotDone):
            hypervisor.thaw(domain)
    waker.undone("f")


def _resume(hypervisor: Stoppable, domain: str) -> None:
    try:
        hypervisor.resume(domain)
    except NotDone:
        if not hypervisor.is_running(domain):
            raise


def _insist(work: Callable[[], None], problem: str, call: List[str]) -> None:
    for attempt in range(_TRIES):
        try:
            work()
            return
        except NotDone as error:
            reason = error
        if attempt + 1 < _TRIES:
            time.sleep(_PAUSE)
    raise FastcopyError(
        f"{problem} ({reason}); it is tried again for ten minutes: see whether {call[0]} works on its host, and run "
        f"`{' '.join(call)}` there if it does not go on"
    )


# --- the mark ----------------------------------------------------------------------------------------------------


def write_mark(files: Files, directory: VmDirectory, uri: str, domain: str, target: str = "") -> None:
    """Note in the VM's directory that a guest may stand still, or (*target*) that a disk of it may be being copied."""
    files.unlink(directory.fd, MARK)
    fd = files.create(directory.fd, MARK)
    try:
        files.write(fd, json.dumps({"uri": uri, "domain": domain, "target": target}).encode(), 0)
    finally:
        os.close(fd)


def remove_mark(files: Files, directory: VmDirectory) -> None:
    """The guest runs again."""
    files.unlink(directory.fd, MARK)


def recover(files: Files, directory: VmDirectory) -> None:
    """Let a guest go on that an agent which was killed has left, and end a copy that it began.

    A help for whoever comes next: where virsh does not do it now, the mark stays for the one after.
    """
    if has(directory.fd, MARK) is None:
        return
    mark = _read_mark(directory)
    try:
        uri, domain, target = (mark.get(name, "") for name in ("uri", "domain", "target"))
        if target:
            Hypervisor(uri, _BRIEFLY).end_copy(domain, target)
        else:
            _wake(Lxc(_BRIEFLY) if uri == LXC else Hypervisor(uri, _BRIEFLY), domain)
    except NotDone:
        return
    except FastcopyError:
        pass  # not a mark of ours, or a torn one, which was written before anything was done
    with contextlib.suppress(OSError):
        remove_mark(files, directory)


def _wake(hypervisor: Stoppable, domain: str) -> None:
    if hypervisor.is_paused(domain):
        hypervisor.resume(domain)
    with contextlib.suppress(NotDone):
        hypervisor.thaw(domain)


def _read_mark(directory: VmDirectory) -> Dict[str, str]:
    try:
        fd = os.open(MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
        with open(fd, "rb") as file:
            found = json.loads(file.read(_MAX_MARK))
    except (OSError, ValueError):
        return {}
    good = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if good else {}
