"""Programs of a host: qemu-img, mkfs, virsh and their like, each with a bound in time.

Those that make disks are given open files (`/proc/self/fd/N`), not paths, so they follow no name.  They hold the file's
lock while they run: should the agent be killed, the next action cannot touch the file before they have ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from typing import IO, Callable, Dict, NamedTuple, Optional, Sequence

from ..core.errors import FastcopyError, Superseded

BOUND = 300.0  # seconds; they write tables, and reserve room where that was asked for. The front-end waits for 600
_LOOK = 0.02  # seconds between looks whether it has ended, which takes about as long when nothing is reserved
_GENTLE = 5.0  # seconds for one that was asked to end
_MOST = 1024 * 1024  # bytes of an answer; libvirt's description of a VM has some 10 KiB
_LONGEST = 300  # characters of what it says of a problem


class Ended(NamedTuple):
    """How a program ended: its exit status, all that it printed, and in one short line what it said of a problem."""

    status: int
    out: str
    problem: str


def execute(
    argv: Sequence[str],
    bound: float,
    alive: Callable[[], bool],
    fds: Sequence[int] = (),
    cwd: Optional[str] = None,
    gently: bool = False,
) -> Ended:
    """Run a program for *bound* seconds at most, with the open files *fds*.

    OSError if it cannot be started, TimeoutError after *bound*, `Superseded` when *alive* says that nobody waits.
    It is killed then; *gently* asks it to end first: virsh ends the VM's job that it waits for.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=errors, pass_fds=fds, cwd=cwd, env=environment()
        )
        try:
            _wait(process, argv[0], bound, alive)
        finally:
            _end(process, gently)
        said = _read(out, _MOST)
        problem = " ".join(_read(errors, 4096).split())[:_LONGEST]
        return Ended(process.returncode, said, problem or f"it ended with status {process.returncode}")


def _wait(process: subprocess.Popen[bytes], name: str, bound: float, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + bound
    while True:
        try:
            process.wait(_LOOK)
            return
        except subprocess.TimeoutExpired:
            pass
        if not alive():
            raise Superseded(f"the front-end went away while {name} ran")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} did not end within {bound:.0f} s")


def _end(process: subprocess.Popen[bytes], gently: bool) -> None:
    if process.poll() is not None:
        return
    if gently:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GENTLE)
            return
        except subprocess.TimeoutExpired:
            pass
    process.kill()
    process.wait()


def _read(file: IO[bytes], most: int) -> str:
    file.seek(0)
    return file.read(most).decode("utf-8", "replace")


def environment() -> Dict[str, str]:
    """For programs: a non-interactive login may have a short PATH, mkfs is where only root looks, and what they say
    must be the same everywhere."""
    path = os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    kept = {name: os.environ[name] for name in ("HOME", "XDG_RUNTIME_DIR") if name in os.environ}
    return {**kept, "PATH": path, "LC_ALL": "C"}


# --- those that make disks -----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What a program is run for: *what* is done, in words that may follow "to" ("make disk.0 larger"); *shown*, the
    disk; the Debian *package* that has the program; and whether anybody waits for it.  It is run in the open
    *directory*, if one is given, for *bound* seconds at most (0: `BOUND`).
    """

    what: str
    shown: str
    package: str
    alive: Callable[[], bool]
    directory: Optional[int] = None
    bound: float = 0.0


def by_fd(fd: int) -> str:
    """The name of an open file in a program that is given its descriptor."""
    return f"/proc/self/fd/{fd}"


def run(argv: Sequence[str], fds: Sequence[int], task: Task) -> str:
    """Run a program with the open files *fds*: "" if it went well, else what it said, in one line.

    `FastcopyError` if it is missing or takes too long, `Superseded` if the front-end goes away meanwhile.
    """
    bound = task.bound or BOUND
    try:
        ended = execute(argv, bound, task.alive, fds, None if task.directory is None else by_fd(task.directory))
    except TimeoutError:
        raise FastcopyError(f"{argv[0]} did not {task.what} within {bound:.0f} s; repeat the action") from None
    except OSError as error:
        raise FastcopyError(
            f"{argv[0]}, which is needed to {task.what}, cannot be run on this host ({error.strerror}): "
            f"install {task.package} there and repeat the action"
        ) from error
    if not ended.status:
        return ""
    problem = ended.problem
    for fd in fds:
        problem = problem.replace(by_fd(fd), task.shown)
    return problem
