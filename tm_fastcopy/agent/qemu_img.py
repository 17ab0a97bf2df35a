"""qemu-img on a host: makes a qcow2 disk larger.

It is given an open file, not a path, and the format, so it probes nothing and follows no name.  It holds the file's
lock while it runs: should the agent be killed, the next action cannot touch the file before it has ended.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from typing import Callable, Dict

from ..core.errors import FastcopyError, Refused, Superseded

PROGRAM = "qemu-img"
_BOUND = 300.0  # seconds; it writes tables, and reserves room where that was asked for. The front-end waits for 600
_LOOK = 0.02  # seconds between looks whether it has ended, which takes about as long when nothing is reserved
_LONGEST = 300  # characters of what it says


def resize(fd: int, size: int, reserve: bool, shown: str, alive: Callable[[], bool]) -> None:
    """Make the qcow2 image in the open file *fd* *size* bytes large, as the guest sees it.

    *reserve* allocates what is added.  `Refused`, with what it says, if it cannot do that to this image (encrypted
    ones, some with internal snapshots); `FastcopyError` if it is missing or takes too long.
    """
    reservation = ["--preallocation=falloc"] if reserve else []
    name = f"/proc/self/fd/{fd}"
    argv = [PROGRAM, "resize", "-q", "-f", "qcow2", *reservation, name, str(size)]
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[fd], env=_environment()
            )
        except OSError as error:
            raise FastcopyError(
                f"{shown} must be made larger, and {PROGRAM} cannot be run on this host ({error.strerror}): "
                "install qemu-utils there and repeat the action"
            ) from error
        _wait(process, shown, alive)
        said.seek(0)
        words = " ".join(said.read(4096).decode("utf-8", "replace").split()).replace(name, shown)
    if process.returncode:
        words = words[:_LONGEST] or f"it ended with status {process.returncode}"
        raise Refused(f"{shown} cannot be made larger: {words}; deploy it in the size of its image")


def _environment() -> Dict[str, str]:
    # A non-interactive login may have a short PATH.
    return {"PATH": os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}


def _wait(process: subprocess.Popen[bytes], shown: str, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _BOUND
    try:
        while True:
            try:
                process.wait(_LOOK)
                return
            except subprocess.TimeoutExpired:
                pass
            if not alive():
                raise Superseded(f"the front-end went away while {shown} was made larger")
            if time.monotonic() > deadline:
                raise FastcopyError(f"{PROGRAM} did not make {shown} larger within {_BOUND:.0f} s; repeat the action")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
