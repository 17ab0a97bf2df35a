"""Sizes that oned passes on a command line: whole MiB."""

from __future__ import annotations

import re

from ..core.errors import Refused

_MIB = 1024 * 1024


def mib(text: str) -> int:
    """The bytes of a size in MiB; `Refused` if it is none, or nothing."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise Refused(f"{text!r} is not the size of a disk, which is a number of MiB")
    return int(text) * _MIB
