"""qemu-img on a host: makes qcow2 disks, makes them larger, lays one over another, takes one out of a chain.

It is given open files, or plain names in an open directory, and the format, so it probes nothing and follows no name
out of that directory (`program.py`).
"""

from __future__ import annotations

import json
from typing import Callable, List, Optional

from ..core.errors import FastcopyError, Refused
from .program import Task, by_fd, run

PROGRAM = "qemu-img"
_PACKAGE = "qemu-utils"
LONG = 3000.0  # seconds in which all of a disk is read, and much of it written. The front-end waits for 3600
_RESERVE = "preallocation=falloc"


def resize(fd: int, size: int, reserve: bool, shown: str, alive: Callable[[], bool], overlay: bool = False) -> None:
    """Make the qcow2 image in the open file *fd* *size* bytes large, as the guest sees it.

    *reserve* allocates what is added.  An *overlay* is opened without its backing file, of which nothing is needed.
    `Refused`, with what it says, if it cannot do that to this image (encrypted ones, some with internal snapshots).
    """
    reservation = [f"--{_RESERVE}"] if reserve else []
    image = [_without_backing(fd)] if overlay else ["-f", "qcow2", by_fd(fd)]
    task = Task(f"make {shown} larger", shown, _PACKAGE, alive)
    problem = run([PROGRAM, "resize", "-q", *(image[:-1]), *reservation, image[-1], str(size)], [fd], task)
    if problem:
        raise Refused(f"{shown} cannot be made larger: {problem}")


def _without_backing(fd: int) -> str:
    """An image as QEMU's JSON names it: the formats of all layers are said, and there is no other file."""
    file = {"driver": "file", "filename": by_fd(fd)}
    return "json:" + json.dumps({"driver": "qcow2", "file": file, "backing": None})


def create(fd: int, size: int, reserve: bool, shown: str, alive: Callable[[], bool]) -> None:
    """Make an empty qcow2 image of *size* bytes in the open file *fd*; *reserve* allocates all of it."""
    argv = [PROGRAM, "create", "-q", "-f", "qcow2", *_reservation(reserve), by_fd(fd), str(size)]
    _make(argv, [fd], shown, alive)


def convert(source: int, fd: int, reserve: bool, shown: str, alive: Callable[[], bool]) -> None:
    """Make a qcow2 image of the raw one in the open file *source*; otherwise as `create`."""
    argv = [PROGRAM, "convert", "-q", "-f", "raw", "-O", "qcow2", *_reservation(reserve), by_fd(source), by_fd(fd)]
    _make(argv, [source, fd], shown, alive)


def flatten(tree: int, name: str, fd: int, shown: str, alive: Callable[[], bool]) -> None:
    """Make the open file *fd* the qcow2 image of what a guest sees in the image *name* of the directory *tree*."""
    argv = [PROGRAM, "convert", "-q", "-f", "qcow2", "-O", "qcow2", name, by_fd(fd)]
    problem = run(argv, [fd], Task(f"make {shown} one file", shown, _PACKAGE, alive, tree, LONG))
    if problem:
        raise FastcopyError(f"{PROGRAM} cannot make one file of {shown}: {problem}")


def _reservation(reserve: bool) -> List[str]:
    return ["-o", _RESERVE] if reserve else []


def _make(argv: List[str], fds: List[int], shown: str, alive: Callable[[], bool]) -> None:
    problem = run(argv, fds, Task(f"make {shown}", shown, _PACKAGE, alive))
    if problem:
        raise FastcopyError(f"{PROGRAM} cannot make {shown}: {problem}")


def make_overlay(fd: int, backing: str, size: int, shown: str, alive: Callable[[], bool]) -> None:
    """Make the open file *fd* an empty qcow2 image of *size* bytes that rests on the file *backing* beside it.

    That file is not opened: who calls has looked at it.
    """
    options = ["-u", "-F", "qcow2", "-b", backing]
    _make([PROGRAM, "create", "-q", "-f", "qcow2", *options, by_fd(fd), str(size)], [fd], shown, alive)


def rebase(tree: int, name: str, fd: int, base: Optional[str], shown: str, alive: Callable[[], bool]) -> None:
    """Have the qcow2 image *name* in the directory *tree*, open as *fd*, rest on *base* there, or on nothing (None).

    What it has from the files between is written into it, so its content stays.
    """
    argv = [PROGRAM, "rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base or "", name]
    task = Task(f"make {shown} independent of the snapshot", shown, _PACKAGE, alive, tree, LONG)
    problem = run(argv, [fd], task)
    if problem:
        raise FastcopyError(f"{shown} cannot be made independent of the snapshot: {problem}")


def same(tree: int, one: str, other: str, fd: int, shown: str, alive: Callable[[], bool]) -> bool:
    """Whether a guest sees the same in two qcow2 images of a directory.  *fd* is one of them, whose lock is kept."""
    argv = [PROGRAM, "compare", "-q", "-f", "qcow2", "-F", "qcow2", one, other]
    return not run(argv, [fd], Task(f"compare {shown}", shown, _PACKAGE, alive, tree, LONG))
