"""Order: the write order of publish, held against what a run recorded.

A crash shows a wrong order only where the file system lets it; XFS and ext4 log changes of names in order, and forgive
some.  These rules ask for what POSIX asks for:

1. what is renamed, or exchanged, was synced after it was last written;
2. the directory is synced afterwards;
3. what an exchange has put aside is removed only after that;
4. what is below a tree counts as the tree.
"""

from __future__ import annotations

import os
from typing import Dict, Iterable, List, Set

from .arrows import Line

_WRITES = {"create", "write", "truncate", "fill", "punch", "clone", "clone_range", "copy_range"}
# Memory that is made anew when it is gone.
_MAY_VANISH = ("remembered manifest", "monitor")


def broken_rules(lines: List[Line]) -> List[str]:
    """What in a recorded run, of all processes together, breaks a rule."""
    problems: List[str] = []
    unsynced: Set[str] = set()
    waiting: Dict[str, Line] = {}
    aside: Set[str] = set()
    for line in lines:
        if not line.done:
            continue
        path = line.paths[0]
        if line.method in _WRITES:
            unsynced.add(path)
        elif line.method == "sync":
            unsynced.discard(path)
        elif line.method in ("rename", "exchange", "move"):
            # What was given one name, and then another, needs its directory only for the last of them.
            waiting.pop(path, None)
            if _at_or_below(path, unsynced) or _at_or_below(path, waiting):
                problems.append(f"{line.change} before the content is durable")
            if not line.change.endswith(_MAY_VANISH):
                waiting[line.paths[1]] = line
            if line.method == "exchange":
                aside.add(path)
        elif line.method == "sync_directory":
            settled = {name for name in waiting if os.path.dirname(name) == path}
            waiting = {name: other for name, other in waiting.items() if name not in settled}
            aside = {name for name in aside if os.path.dirname(name) != path}
        elif line.method in ("unlink", "remove_directory") and any(_at_or_below(name, [path]) for name in aside):
            problems.append(f"{line.change} before the exchange is durable")
        elif line.method == "unlink":
            unsynced.discard(path)
    return problems + [f"{line.change}, and its directory is never synced" for line in waiting.values()]


def _at_or_below(top: str, paths: Iterable[str]) -> bool:
    return any(path == top or path.startswith(f"{top}/") for path in paths)
