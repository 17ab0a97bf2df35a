"""One at a time: install.sh and uninstall.sh read the ledger, plan, and act, and nobody else does meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Iterator

from ..core.errors import FastcopyError


@contextlib.contextmanager
def alone(library: Path) -> Iterator[None]:
    """No other installer or uninstaller is at work in *library*; `FastcopyError`, at once, if one is.

    The lock lies on the directory above, which is there before the first installation and after the last removal: the
    library itself comes and goes, and a lock on what was removed would keep nobody out.
    """
    fd = os.open(library.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise FastcopyError(f"another install.sh or uninstall.sh is at work in {library}: wait for it") from error
    try:
        yield
    finally:
        os.close(fd)
