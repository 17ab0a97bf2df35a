"""Messages of a conversation in which a disk is restored from a backup.  core/wire.py carries them."""

from __future__ import annotations

from dataclasses import dataclass

from .wire import Message


@dataclass(frozen=True)
class DropTree(Message):
    """Remove the tree of what had the disk's name before, snapshots and all: the raw disk that was just made supersedes
    it, as its *receipt* says.  Answer: Done."""

    receipt: str
