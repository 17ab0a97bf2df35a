"""qemu-img on a host: makes a qcow2 disk larger, lays a new file over another, takes one out of a chain.

It is given open files, or plain names in an open directory, and the format, so it probes nothing and follows no name
out of that directory.  It holds the lock of the file that it writes while it runs: should the agent be killed, the next
action cannot touch the file before it has ended.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from typing import Callable, Dict, NamedTuple, Optional, Sequence

from ..core.errors import FastcopyError, Refused, Superseded

PROGRAM = "qemu-img"
_BOUND = 300.0  # seconds; it writes tables, and reserves room where that was asked for. The front-end waits for 600
_LONG = 3000.0  # seconds in which all of a disk is read, and much of it written. The front-end waits for 3600
_LOOK = 0.02  # seconds between looks whether it has ended, which takes about as long when nothing is reserved
_LONGEST = 300  # characters of what it says


class _Wish(NamedTuple):
    """What a run of qemu-img is for, in words: "made larger", and what to do when it refuses."""

    done: str
    advice: str
    long: bool = False


_RESIZE = _Wish("made larger", "deploy it in the size of its image")
_OVERLAY = _Wish("given a new file for what its guest writes", "look at it with `qemu-img check`")
_REBASE = _Wish("made independent of the snapshot", "look at it with `qemu-img check`", long=True)
_COMPARE = _Wish("compared", "look at it with `qemu-img check`", long=True)


def resize(
    fd: int,
    size: int,
    reserve: bool,
    shown: str,
    alive: Callable[[], bool],
    tree: Optional[int] = None,
    name: str = "",
) -> None:
    """Make the qcow2 image in the open file *fd* *size* bytes large, as the guest sees it.

    One that rests on others is *name* in the directory *tree*, whose headers were looked at.

    *reserve* allocates what is added.  `Refused`, with what it says, if it cannot do that to this image (encrypted
    ones, some with internal snapshots); `FastcopyError` if it is missing or takes too long.
    """
    reservation = ["--preallocation=falloc"] if reserve else []
    argv = ["resize", "-q", "-f", "qcow2", *reservation, name or _name(fd), str(size)]
    _run(_RESIZE, argv, [fd], shown, alive, tree)


def make_overlay(fd: int, backing: str, size: int, shown: str, alive: Callable[[], bool]) -> None:
    """Make the open file *fd* an empty qcow2 image of *size* bytes that rests on the file *backing* beside it.

    That file is not opened: who calls has looked at it.
    """
    options = ["-u", "-F", "qcow2", "-b", backing]
    _run(_OVERLAY, ["create", "-q", "-f", "qcow2", *options, _name(fd), str(size)], [fd], shown, alive)


def rebase(tree: int, name: str, fd: int, base: Optional[str], shown: str, alive: Callable[[], bool]) -> None:
    """Have the qcow2 image *name* in the directory *tree*, open as *fd*, rest on *base* there, or on nothing (None).

    What it has from the files between is written into it, so its content stays.
    """
    argv = ["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base or "", name]
    _run(_REBASE, argv, [fd], shown, alive, tree)


def same(tree: int, one: str, other: str, fd: int, shown: str, alive: Callable[[], bool]) -> bool:
    """Whether a guest sees the same in two qcow2 images of a directory.  *fd* is one of them, whose lock is kept."""
    return _run(_COMPARE, ["compare", "-q", "-f", "qcow2", "-F", "qcow2", one, other], [fd], shown, alive, tree, 1)


def _name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _run(
    wish: _Wish,
    arguments: Sequence[str],
    fds: Sequence[int],
    shown: str,
    alive: Callable[[], bool],
    directory: Optional[int] = None,
    no: Optional[int] = None,
) -> bool:
    """Run it in *directory*, with *fds* open; False if it ends with the status *no*."""
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=fds,
                cwd=None if directory is None else _name(directory),
                env=_environment(),
            )
        except OSError as error:
            raise FastcopyError(
                f"{shown} must be {wish.done}, and {PROGRAM} cannot be run on this host ({error.strerror}): "
                "install qemu-utils there and repeat the action"
            ) from error
        _wait(process, wish, shown, alive)
        said.seek(0)
        words = " ".join(said.read(4096).decode("utf-8", "replace").split()).replace(_name(fds[0]), shown)
    if process.returncode and process.returncode != no:
        words = words[:_LONGEST] or f"it ended with status {process.returncode}"
        raise Refused(f"{shown} cannot be {wish.done}: {words}; {wish.advice}")
    return not process.returncode


def _environment() -> Dict[str, str]:
    # A non-interactive login may have a short PATH.
    return {"PATH": os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}


def _wait(process: subprocess.Popen[bytes], wish: _Wish, shown: str, alive: Callable[[], bool]) -> None:
    bound = _LONG if wish.long else _BOUND
    deadline = time.monotonic() + bound
    try:
        while True:
            try:
                process.wait(_LOOK)
                return
            except subprocess.TimeoutExpired:
                pass
            if not alive():
                raise Superseded(f"the front-end went away while {shown} was {wish.done}")
            if time.monotonic() > deadline:
                raise FastcopyError(f"{shown} was not {wish.done} within {bound:.0f} s by {PROGRAM}; repeat the action")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
