"""Waker: a program that lets a guest go on if the agent that made it stand still does not.

    python3 -I -S waker.py SECONDS HOW

HOW is JSON: the calls of programs `resume`, `thaw` and `state`, and what the last prints of a guest that is `paused`.
Standard library only, and a process of its own session that holds nothing of the agent's, so that it outlives agent,
connection and front-end.  It says `!` when it is ready.  The agent writes, on its standard input, a letter before each
step and one after its undoing: `F` freeze, `f` thawed, `S` suspend, `s` resumed.  When its input ends, or nothing was
heard for SECONDS after a step, it undoes what is outstanding, and goes on trying for ten minutes.  It stays until its
input ends: a step that was under way when it lost patience may still be done, and is then undone, too.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

_TRIES = 600  # once a second: libvirtd may be restarting
_THAWS = 30  # a guest agent that does not answer will not answer later either
_STEP = 60.0  # seconds for a program


def did(argv: list[str]) -> bool:
    """Whether the program did it; yes if there is nothing to do."""
    null = subprocess.DEVNULL
    try:
        return not argv or subprocess.run(argv, stdin=null, stdout=null, stderr=null, timeout=_STEP).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def is_paused(state: list[str], paused: str) -> bool:
    """Whether the guest stands still; also if that cannot be found out."""
    try:
        said = subprocess.run(state, stdin=subprocess.DEVNULL, capture_output=True, timeout=_STEP)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return said.returncode != 0 or said.stdout.strip() == paused.encode()


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


def undo(how: Any, pending: set[str]) -> None:
    """Let the guest go on, and then its file systems: a guest agent answers only when the guest runs."""
    for attempt in range(_TRIES):
        if "S" in pending and (did(how["resume"]) or not is_paused(how["state"], how["paused"])):
            pending.discard("S")
        if pending == {"F"} and (did(how["thaw"]) or attempt >= _THAWS):
            pending.discard("F")
        if not pending:
            return
        time.sleep(1.0)


def main(bound: float, how: Any) -> None:
    """Serve one agent."""
    os.write(1, b"!")
    pending: set[str] = set()
    if not watch(pending, bound):
        os.close(1)  # the agent sees that it was not waited for any longer
        undo(how, set(pending))
        watch(pending, None)
    undo(how, pending)


if __name__ == "__main__":
    main(float(sys.argv[1]), json.loads(sys.argv[2]))
