"""How an image gets its name: written under another one, fsynced, renamed. What has the name is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """The path to write; it becomes `final` when the block ends, and is removed when the block fails.

    What a killed build left under that path is removed first; the caller holds the directory's `lock`.
    """
    temporary = final.with_name(f".{final.name}.building")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, final)
        _fsync(final.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """One build in a directory at a time; a second waits. The lock goes with its process.

    Child processes inherit it: should only the parent be killed, a build that still runs keeps it.
    """
    with (directory / ".lock").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
