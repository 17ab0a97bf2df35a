"""Perform: runs one action, and puts how it went into words for oned."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Callable, Optional

from ..core.errors import FastcopyError, classify
from .call import Call

ACTIONS = (
    "clone", "ln", "mvds", "cpds", "delete", "mkimage", "mkswap", "context", "resize", "restore",
    "mv", "premigrate", "postmigrate", "failmigrate",
    "snap_create", "snap_create_live", "snap_revert", "snap_delete",
)  # fmt: skip
_LONGEST = 2000  # characters; oned keeps an error in a VM's attribute

Log = Callable[[str], None]


async def perform(action: str, make_call: Callable[[], Call]) -> Optional[str]:
    """Run an action on the call that *make_call* makes; None, or the one sentence that says why it failed."""
    module = importlib.import_module(f"{__package__}.actions.{action}")
    try:
        await module.run(make_call())
    except (FastcopyError, OSError) as error:
        return sentence(str(classify(error, action)))
    except Exception as error:  # a defect of ours: still one sentence for oned, and the trace for whoever mends it
        if environ_debug():
            raise
        logging.getLogger("fastcopyd").info("a defect", exc_info=True)  # INFO: nobody prints it outside the daemon
        return sentence(f"{action} failed because of a defect in fastcopy: {type(error).__name__}: {error}")
    return None


def unknown(argv: list[str]) -> Optional[str]:
    """Why these are not the words of an action; None if they are."""
    if argv and argv[0] in ACTIONS:
        return None
    return f"fastcopy has no action {argv[0]!r}" if argv else "fastcopy was called without an action"


def log_line(action: str, text: str, vm: Optional[int] = None) -> str:
    """A line that oned takes for a log line: of the VM, if it is one that oned knows, and of its own otherwise."""
    return f"INFO: {'' if vm is None else f'{vm} '}{action}: {one_line(text)}"


def sentence(text: str) -> str:
    """A line that oned takes for the error; it shows nothing of one that begins with a dash."""
    return one_line(text).lstrip("- ")


def one_line(text: str) -> str:
    """*text* without line breaks, and no longer than oned keeps."""
    return " ".join(text.split())[:_LONGEST]


def environ_debug() -> bool:
    """Whether FASTCOPY_DEBUG asks for a trace of defects."""
    return os.environ.get("FASTCOPY_DEBUG", "") not in ("", "0", "no")
