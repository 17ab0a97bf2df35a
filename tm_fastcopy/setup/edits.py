"""Edits of a text: what is put in, and how that is found again to be taken out.

An edit is written down with the installation, and its inverse looks for what was put in, not for where: what an
administrator has changed around it since stays.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Dict, Iterable, List


@dataclass(frozen=True)
class Edit:
    """*inserted* instead of *removed* at the character *at*; *wish* says what for, and finds it again."""

    wish: str
    at: int
    inserted: str
    removed: str = ""

    def record(self) -> Dict[str, str]:
        """What is written down."""
        return {"wish": self.wish, "inserted": self.inserted, "removed": self.removed}


@dataclass(frozen=True)
class Hand:
    """What only an administrator can decide: why, and the lines that belong into the file (or out of it)."""

    why: str
    lines: str = ""


@dataclass
class Plan:
    """What is to be done to a text: edits, what is there already, what must be done by hand, and advice."""

    edits: List[Edit] = field(default_factory=list)
    present: List[str] = field(default_factory=list)
    by_hand: List[Hand] = field(default_factory=list)
    advice: List[str] = field(default_factory=list)

    def apply(self, text: str) -> str:
        """The text with all edits made."""
        for edit in sorted(self.edits, key=lambda edit: edit.at, reverse=True):
            end = edit.at + len(edit.removed)
            assert text[edit.at : end] == edit.removed
            text = text[: edit.at] + edit.inserted + text[end:]
        return text


def take_out(text: str, start: int, end: int, inserted: str, items: Iterable[str], separator: str) -> str:
    """*text* without what was put into the list `text[start:end]`: *inserted* as it stands, or its *items* one by one.

    *separator* is a pattern for what stands between items.  An item that is not there needs nothing.
    """
    listed = text[start:end]
    at = listed.rfind(inserted)
    while at >= 0:
        left, right = listed[:at], listed[at + len(inserted) :]
        if _ends(left, inserted, separator) and (not right.strip() or re.match(separator, right)):
            return text[:start] + left + right + text[end:]
        at = listed.rfind(inserted, 0, at)
    for item in items:
        word = re.escape(item)
        listed = re.sub(f"(?:{separator})+{word}(?=(?:{separator})|\\s*$)", "", listed, count=1)
        listed = re.sub(f"^{word}(?:(?:{separator})+|$)", "", listed, count=1)
    return text[:start] + listed + text[end:]


def _ends(left: str, inserted: str, separator: str) -> bool:
    """Whether an item begins where *inserted* does."""
    return not left or re.match(separator, inserted) is not None or re.search(f"(?:{separator})$", left) is not None


def diff(path: str, before: str, after: str) -> str:
    """The unified diff of a file."""
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), path, path)
    shown = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    return "".join(shown).replace("\r\n", "\n")
