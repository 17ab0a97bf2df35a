"""File systems that volatile disks may have: what `datastore.conf` of OpenNebula says of them.

The stock scripts source that file in a shell.  Here its assignments are read, and nothing in it is executed.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Dict, List

from ..core.errors import FastcopyError, Refused

SUPPORTED = "ext2,ext3,ext4,xfs"
"""What OpenNebula's own file says; where it says nothing, or is missing, this holds."""

_MOST = 64 * 1024  # bytes; it has some twenty lines
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_NAME = re.compile(r"[a-z0-9]{1,16}")


def options(fs: str, conf: Path) -> List[str]:
    """The words that mkfs gets for the file system *fs*; `Refused` if it is none that volatile disks may have."""
    values = _read(conf)
    supported = _words("SUPPORTED_FS", values, conf) if "SUPPORTED_FS" in values else [SUPPORTED]
    names = [name for word in supported for name in word.split(",") if name]
    if fs not in names or not _NAME.fullmatch(fs):
        raise Refused(f"{fs!r:.40} is no file system for volatile disks: SUPPORTED_FS in {conf} has {', '.join(names)}")
    name = f"FS_OPTS_{fs}"
    if name not in values:
        return []
    return [word for words in _words(name, values, conf) for word in shlex.split(words)]


def _read(conf: Path) -> Dict[str, str]:
    """The right sides of all assignments, the last of each name, as they were written."""
    try:
        with conf.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST).splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FastcopyError(f"{conf} cannot be read ({error.strerror}): make it readable for oneadmin") from error
    matches = (_ASSIGNMENT.match(line.strip()) for line in lines)
    return {match.group(1): match.group(2) for match in matches if match}


def _words(name: str, values: Dict[str, str], conf: Path) -> List[str]:
    text = values[name]
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise Refused(f"{name} in {conf} cannot be read ({error}): write it in one line, in quotes") from error
    if "$" in text or "`" in text:
        raise Refused(f"{name} in {conf} is more than plain text, which is all that fastcopy reads there: write it out")
    return words
