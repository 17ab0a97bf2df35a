"""Kinds: how the text of a setting is read, and how what is allowed is said.

A value reads the same wherever it stands: in the environment, in a datastore's attribute, in the file.  Nothing is
guessed at: `read` raises `ValueError` for what it does not know, and whoever called it says where that was found.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol

_DIGITS = re.compile(r"[0-9]{1,19}")  # fits 64 bits; int() alone would take blanks, signs and other scripts' digits
_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}  # powers of two
_MOST_BYTES = 1 << 60  # 1 EiB: the largest file system there is (XFS has 8 EiB on paper)
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


class Limit(NamedTuple):
    """A part of a file system: *number* is percent of its size, or bytes."""

    number: int
    percent: bool

    def of(self, total: int) -> int:
        """The limit in bytes on a file system of *total* bytes."""
        return total * self.number // 100 if self.percent else self.number


class Kind(Protocol):
    """Reads the text of a value."""

    @property
    def allowed(self) -> str:
        """What is allowed, to follow "it must be"."""

    def read(self, text: str) -> Any:
        """The value; `ValueError` if the text is none."""


class Number:
    """A number with bounds; *unit* is said after it ("seconds")."""

    def __init__(self, least: int, most: int, unit: str = "") -> None:
        self.least, self.most, self.unit = least, most, unit

    @property
    def allowed(self) -> str:
        """See `Kind`."""
        return f"a number{self.unit and ' of ' + self.unit} from {self.least} to {self.most}"

    def read(self, text: str) -> int:
        """See `Kind`."""
        if not _DIGITS.fullmatch(text) or not self.least <= int(text) <= self.most:
            raise ValueError
        return int(text)


class Choice:
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    @property
    def allowed(self) -> str:
        """See `Kind`."""
        return f"{', '.join(self.words[:-1])} or {self.words[-1]}"

    def read(self, text: str) -> str:
        """See `Kind`.  Any case: attributes of OpenNebula are mostly written in capitals."""
        if text.lower() not in self.words:
            raise ValueError
        return text.lower()


class Switch:
    """Yes or no."""

    allowed = "yes or no"

    def read(self, text: str) -> bool:
        """See `Kind`.  What YAML calls true and false will do as well."""
        try:
            return _WORDS[text.lower()]
        except KeyError:
            raise ValueError from None


class Bytes:
    """Bytes with a suffix.

    A number below *least* is refused, but for 0: it is one whose suffix was forgotten, or percent that were meant.
    """

    def __init__(self, least: int) -> None:
        self.least = least

    @property
    def allowed(self) -> str:
        """See `Kind`."""
        return f"bytes with a suffix K, M, G or T (at least {shown(self.least)}, or 0)"

    def read(self, text: str) -> int:
        """See `Kind`."""
        suffix = text[-1:].upper() if text[-1:].isalpha() else ""
        digits = text[: len(text) - len(suffix)]
        if not _DIGITS.fullmatch(digits) or suffix not in _SUFFIXES:
            raise ValueError
        value = int(digits) << _SUFFIXES[suffix]
        if value and not self.least <= value <= _MOST_BYTES:
            raise ValueError
        return value


class Share:
    """Percent of a file system, or bytes: a `Limit`."""

    def __init__(self, least: int) -> None:
        self._bytes = Bytes(least)

    @property
    def allowed(self) -> str:
        """See `Kind`."""
        return f"0% to 100%, or {self._bytes.allowed}"

    def read(self, text: str) -> Limit:
        """See `Kind`."""
        if text.endswith("%"):
            return Limit(Number(0, 100).read(text[:-1]), True)
        return Limit(self._bytes.read(text), False)


class StockSwitch:
    """A switch of the stock driver: YES, and anything else is no."""

    allowed = "YES; anything else is no"

    def read(self, text: str) -> bool:
        """See `Kind`."""
        return text.upper() == "YES"


class StockPercent:
    """A number of the stock driver that means percent of a file system."""

    allowed = "a number from 0 to 100, percent of the file system"

    def read(self, text: str) -> Limit:
        """See `Kind`.  The stock driver takes a percent sign too."""
        return Limit(Number(0, 100).read(text[:-1] if text.endswith("%") else text), True)


def shown(size: int) -> str:
    """A number of bytes with the largest suffix that is exact."""
    exact = [suffix for suffix, bits in _SUFFIXES.items() if size and size % (1 << bits) == 0] or [""]
    return f"{size >> _SUFFIXES[exact[-1]]}{exact[-1]}"
