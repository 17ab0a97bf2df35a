"""Programs: what runs beside us on the front-end, OpenNebula's own and qemu-img, to its end.

argv vectors and open files; what they say on standard error is kept for the sentence.  Whoever is cancelled ends them
first, with all that they have started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from typing import IO, Callable, Mapping, Sequence

from ..core.errors import FastcopyError

_LOOK = 1.0  # seconds between looks whether it goes on
_ENDING = 5.0  # seconds that it may take to end when it is asked to
_POLL = 0.01  # seconds between looks whether its children have ended, too
_SAID = 64 * 1024  # bytes of its last words that are read
_LONGEST = 300  # characters of them that a sentence repeats


async def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    output: IO[bytes],
    input: bytes = b"",
    pass_fds: Sequence[int] = (),
    stall: float = 300.0,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Run a program that reads *input* and writes to *output*.

    `FastcopyError` with its last words if it fails, or if *progress* has the same value for *stall* seconds.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
        given.write(input)
        given.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=given, stdout=output, stderr=said, env=dict(environ), pass_fds=tuple(pass_fds),
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise FastcopyError(f"{argv[0]} cannot be run: {error.strerror}") from error
        try:
            await _wait(process, argv[0], stall, progress)
        finally:
            await _end(process)
        if process.returncode:
            raise FastcopyError(f"{argv[0]} failed: {_words(said) or f'it ended with status {process.returncode}'}")


async def _wait(
    process: asyncio.subprocess.Process, name: str, stall: float, progress: Callable[[], object]
) -> None:
    seen, since = progress(), time.monotonic()
    ended = asyncio.ensure_future(process.wait())
    try:
        while not (await asyncio.wait([ended], timeout=_LOOK))[0]:
            now = progress()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > stall:
                raise FastcopyError(f"{name} made no progress for {stall:.0f} s, and was ended: repeat the action")
    finally:
        ended.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it and its children, if it has not ended by itself."""
    if process.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(process.pid, number)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_gone(process), _ENDING)
            return


async def _gone(process: asyncio.subprocess.Process) -> None:
    """Wait until neither it nor a child of its lives: who is asked to end may do so later than its parent."""
    await process.wait()
    while _signal(process.pid, 0):
        await asyncio.sleep(_POLL)


def _signal(group: int, number: int) -> bool:
    """Send a signal; whether there was a process of ours to send it to."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _words(said: IO[bytes]) -> str:
    """The last line of what it said; the tails of Ruby's traces and of shell scripts say least in their first."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _SAID))
    lines = [line.strip() for line in said.read().decode("utf-8", "replace").splitlines()]
    return " ".join(" ".join(line for line in lines if line)[-_LONGEST:].split())


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What they are given: all that this process has, and what the call brought.  Programs may lie beside oned's."""
    return {**os.environ, **environ, "PATH": os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin"}


