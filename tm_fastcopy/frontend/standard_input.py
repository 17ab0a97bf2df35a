"""Standard input of a call: only some actions get one, and only for them it is read."""

from __future__ import annotations

import os
import select

ACTIONS = ("premigrate", "postmigrate", "failmigrate")
"""The actions that oned gives something to on standard input (remotes/client.py has the same list)."""

MOST = 4 * 1024 * 1024  # bytes: a VM's XML in base64, which oned itself keeps below a few hundred KiB
_PATIENCE = 30.0  # seconds for more to come: oned writes all at once, and closes


def read(action: str, fd: int = 0) -> str:
    """What was given to *action*; "" if nothing was, or a terminal is there.  What is longer than `MOST` is cut."""
    if action not in ACTIONS or os.isatty(fd):
        return ""
    found = b""
    try:
        while len(found) < MOST and select.select([fd], [], [], _PATIENCE)[0]:
            piece = os.read(fd, min(65536, MOST - len(found)))
            if not piece:
                break
            found += piece
    except (OSError, ValueError):
        pass  # it is closed
    return found.decode("utf-8", "replace")
