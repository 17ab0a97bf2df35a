"""Finding and ending the lab's own processes, by id.

Nothing is matched by program name: a holder is known by its whole argument vector (marker, lab directory,
node name), and a node's processes by the process namespace that they share with their holder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Optional

from bench.testbed.errors import LabError

MARKER = "fclab-node"
POLL = 0.02  # seconds between two looks at a condition


def wait_for(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Return as soon as `condition()` holds; LabError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"Waited {timeout:g} s in vain for {what}.")
        time.sleep(POLL)


def pids() -> Iterator[int]:
    """Every process id of the machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def arguments(pid: int) -> list[str]:
    """The argument vector of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return []


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process are open on; empty when it is gone."""
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry))
    return found


def holders(directory: Optional[Path] = None) -> list[tuple[int, str, str]]:
    """(pid, lab directory, node name) of every holder, and of the `unshare` that waits for it."""
    found = []
    for pid in pids():
        argv = arguments(pid)
        if MARKER not in argv[:-2]:
            continue
        lab, name = argv[-2:]
        if argv.index(MARKER) == len(argv) - 3 and (directory is None or lab == str(directory)):
            found.append((pid, lab, name))
    return found


def is_first(pid: int) -> bool:
    """Whether a process is number 1 of a process namespace below ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"


def holder_of(directory: Path, name: str) -> Optional[int]:
    """The process that holds a node's namespaces, or None."""
    return next((pid for pid, _, node in holders(directory) if node == name and is_first(pid)), None)


def members(holder: int) -> list[int]:
    """The processes of a node (those in its process namespace), without the holder."""
    wanted = os.readlink(f"/proc/{holder}/ns/pid")
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if pid != holder and os.readlink(f"/proc/{pid}/ns/pid") == wanted:
                found.append(pid)
    return found


def executable(pid: int) -> str:
    """File name of the program that a process runs; empty when it is gone."""
    try:
        return Path(os.readlink(f"/proc/{pid}/exe").replace(" (deleted)", "")).name
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(victims: Iterable[int], timeout: float = 10.0) -> None:
    """Kill these processes and wait until none is left; LabError when one remains after `timeout` seconds."""
    ids = list(victims)
    for pid in ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in ids), timeout, f"processes {ids} to end")
