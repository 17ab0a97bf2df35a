"""Programs of a host: qemu-img, mkfs and their like.

They are given open files (`/proc/self/fd/N`), not paths, so they follow no name.  They hold the file's lock while they
run: should the agent be killed, the next action cannot touch the file before they have ended.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from typing import Callable, Dict, NamedTuple, Optional, Sequence

from ..core.errors import FastcopyError, Superseded

BOUND = 300.0  # seconds; they write tables, and reserve room where that was asked for. The front-end waits for 600
_LOOK = 0.02  # seconds between looks whether it has ended, which takes about as long when nothing is reserved
_LONGEST = 300  # characters of what it says


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
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=fds,
                cwd=None if task.directory is None else by_fd(task.directory),
                env=_environment(),
            )
        except OSError as error:
            raise FastcopyError(
                f"{argv[0]}, which is needed to {task.what}, cannot be run on this host ({error.strerror}): "
                f"install {task.package} there and repeat the action"
            ) from error
        _wait(process, argv[0], task)
        said.seek(0)
        words = " ".join(said.read(4096).decode("utf-8", "replace").split())
    for fd in fds:
        words = words.replace(by_fd(fd), task.shown)
    if not process.returncode:
        return ""
    return words[:_LONGEST] or f"it ended with status {process.returncode}"


def _environment() -> Dict[str, str]:
    # A non-interactive login may have a short PATH, and mkfs is where only root looks.
    path = os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    return {"PATH": path, "LC_ALL": "C"}


def _wait(process: subprocess.Popen[bytes], name: str, task: Task) -> None:
    bound = task.bound or BOUND
    deadline = time.monotonic() + bound
    try:
        while True:
            try:
                process.wait(_LOOK)
                return
            except subprocess.TimeoutExpired:
                pass
            if not task.alive():
                raise Superseded(f"the front-end went away while {name} was run to {task.what}")
            if time.monotonic() > deadline:
                raise FastcopyError(f"{name} did not {task.what} within {bound:.0f} s; repeat the action")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
