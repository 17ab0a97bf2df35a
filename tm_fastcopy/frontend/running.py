"""Running: the calls that a process has in hand, as `fastcopy status` shows them and `fastcopy cancel` ends them."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Dict, List, Optional, Union

from .arguments import directory_and_name
from .progress import line

if TYPE_CHECKING:
    from .call import Call

MOST_SHOWN = 1000  # calls in one answer: as many transfers as there can be at all (`settings.MAX_TRANSFERS`)
_LONGEST = 256  # characters of a name that a call came with
_NOT_ENDED = ("delete",)  # who cancels wants less to be there, and a deletion is on its way to that

Row = Dict[str, Union[str, int, float, None]]


class Running:
    """One call: the action, and from its first steps on the call with its progress."""

    def __init__(self, action: str) -> None:
        self.action, self.began = action, time.monotonic()
        self.call: Optional[Call] = None
        self.task: Optional[asyncio.Future[Optional[str]]] = None
        self.ended_by = ""
        """By whom somebody has had it ended: the beginning of the sentence that it fails with."""

    @property
    def vm(self) -> Optional[int]:
        """The VM, once oned has said that there is one of this number: only then may a log line begin with it."""
        return self.call.vm_id if self.call else None

    def line(self, seconds: float) -> str:
        """What the log says of it after so many seconds."""
        phases = self.call.phases if self.call else None
        return line(phases.now if phases else "begun", seconds, phases.progress.snapshot()) if phases else "begun"

    def row(self) -> Row:
        """What `status` shows, and its `--json` prints: sizes in bytes, times in seconds, rates in bytes a second."""
        endpoint = self.call.endpoint if self.call else None
        directory, disk = directory_and_name(endpoint.path) if endpoint else ("", "")
        number = re.fullmatch(r".*/([0-9]{1,9})", directory)
        seen = self.call.phases.progress.snapshot() if self.call else None
        return {
            "vm": int(number.group(1)) if number else None,
            "disk": disk[:_LONGEST],
            "host": endpoint.host[:_LONGEST] if endpoint else "",
            "directory": directory[:_LONGEST],
            "action": self.action,
            "phase": self.call.phases.now if self.call else "",
            "done": seen.done if seen else 0,
            "total": seen.total if seen else 0,
            "rate": round(seen.rate, 1) if seen else 0.0,
            "left": round(seen.left, 1) if seen and seen.left is not None else None,
            "age": round(time.monotonic() - self.began, 1),
        }

    def sentence(self) -> str:
        """Why it has failed, once it was cancelled."""
        named = self.call.phases.named if self.call else ""
        ended = self.ended_by or f"{self.action} was ended"
        if named:
            return f"{ended} when {named}, and the rest not: repeat the action before anything is deleted"
        return f"{ended}; the destination is as it was, or complete: repeat the action"

    def ending(self) -> Row:
        """How it ended, once it was cancelled: `stays` says what is left ("": nothing), `clean` whether no more than
        was asked for, `looked` whether what earlier attempts had left was removed, too; `complete`, that it was done
        before it could be ended."""
        stays: List[str] = []
        clean, looked = True, False
        if self.task and self.task.done() and not self.task.cancelled():
            return {"stays": "", "clean": True, "looked": False, "complete": self.task.result() is None}
        if self.call and not self.call.discard:
            if self.call.phases.progress.snapshot().total:
                stays = ["what has arrived, for when the action is repeated"]
        elif self.call:
            looked = self.call.left is not None
            stays = self.call.left or []
            clean = not stays
        if self.call and self.call.shared:
            stays = [*stays, self.call.shared]
        if self.call and self.call.phases.named:
            clean, stays = False, [*stays, f"what was done before: {self.call.phases.named}"]
        text = " ".join("; ".join(stays).split())[:_LONGEST]
        return {"stays": text, "clean": clean, "looked": looked, "complete": False}

    def cancel(self, reason: str, keep: bool) -> None:
        """End it; the sentence that it fails with begins with *reason*.  *keep* what has arrived, for when the action
        is repeated."""
        if self.ended_by:
            return  # it is ending already, and cancelled once more it would not come to remove what it must
        self.ended_by = reason
        if self.call:
            self.call.discard = not keep
        if self.task:
            self.task.cancel()


class Calls:
    """The calls of a daemon, in the order in which they came."""

    def __init__(self) -> None:
        self._running: List[Running] = []

    def add(self, running: Running) -> None:
        """It has begun."""
        self._running.append(running)

    def remove(self, running: Running) -> None:
        """It is over."""
        self._running.remove(running)

    def rows(self) -> List[Row]:
        """All of them; at most `MOST_SHOWN`."""
        return [running.row() for running in self._running[:MOST_SHOWN]]

    async def cancel(self, vm: int, disk: str, keep: bool) -> List[Row]:
        """End what runs or waits for a VM's disk ("": for any), but for deletions; return when it has ended.

        *keep* what has arrived.  Each row says in `stays` what is left ("": nothing).
        """
        found = []
        for running in self._running:
            row = running.row()
            if row["vm"] == vm and disk in ("", row["disk"]) and running.action not in _NOT_ENDED:
                found.append((running, row))
        for running, row in found:
            what = f"{running.action} of {row['disk'] or 'the VM directory'}"
            running.cancel(f"{what} was ended by `fastcopy cancel`", keep)
        await asyncio.gather(*(running.task for running, _ in found if running.task), return_exceptions=True)
        return [{**row, **running.ending()} for running, row in found]
