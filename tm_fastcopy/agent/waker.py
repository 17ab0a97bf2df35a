"""Waker: a program that lets a guest go on if the agent that made it stand still does not.

    python3 -I -S waker.py URI DOMAIN SECONDS

Standard library only, and a process of its own session that holds nothing of the agent's, so that it outlives agent,
connection and front-end.  It says `!` when it is ready.  The agent writes, on its standard input, a letter before each
step and one after its undoing: `F` freeze, `f` thawed, `S` suspend, `s` resumed.  When its input ends, or nothing was
heard for SECONDS after a step, it undoes what is outstanding, and goes on trying for ten minutes.  It stays until its
input ends: a step that was under way when it lost patience may still be done, and is then undone, too.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

_TRIES = 600  # once a second: libvirtd may be restarting
_THAWS = 30  # a guest agent that does not answer will not answer later either
_STEP = 60.0  # seconds for virsh


def virsh(uri: str, command: str, domain: str) -> bool:
    """Whether virsh did it."""
    argv = ["virsh", "--connect", uri, command, domain]
    null = subprocess.DEVNULL
    try:
        return subprocess.run(argv, stdin=null, stdout=null, stderr=null, timeout=_STEP).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def is_paused(uri: str, domain: str) -> bool:
    """Whether the guest stands still; also if that cannot be found out."""
    argv = ["virsh", "--connect", uri, "domstate", domain]
    try:
        said = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_STEP)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return said.returncode != 0 or said.stdout.strip() == b"paused"


def watch(pending: set[str], bound: float | None) -> bool:
    """Keep *pending* what is to be undone, until the input ends (True) or a guest has stood still for too long."""
    while True:
        if not select.select([0], [], [], bound if pending else None)[0]:
            return False
        letters = os.read(0, 64).decode("ascii", "replace")
        if not letters:
            return True
        for letter in letters:
            if letter in "FS":
                pending.add(letter)
            else:
                pending.discard(letter.upper())


def undo(uri: str, domain: str, pending: set[str]) -> None:
    """Let the guest go on, and then its file systems: a guest agent answers only when the guest runs."""
    for attempt in range(_TRIES):
        if "S" in pending and (virsh(uri, "resume", domain) or not is_paused(uri, domain)):
            pending.discard("S")
        if pending == {"F"} and (virsh(uri, "domfsthaw", domain) or attempt >= _THAWS):
            pending.discard("F")
        if not pending:
            return
        time.sleep(1.0)


def main(uri: str, domain: str, bound: float) -> None:
    """Serve one agent."""
    os.write(1, b"!")
    pending: set[str] = set()
    if not watch(pending, bound):
        os.close(1)  # the agent sees that it was not waited for any longer
        undo(uri, domain, set(pending))
        watch(pending, None)
    undo(uri, domain, pending)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
