"""The text of oned.conf: which attributes there are, and at which characters they stand.

It reads what oned itself reads (OpenNebula's src/parsers/template_parser.l): `NAME = VALUE`, `NAME = "VALUE"`, and
`NAME = [ NAME = VALUE, ... ]`, comments from `#` to the end of the line wherever no value is expected.  Nothing is ever
written from what was read, so a caller can change single characters and leave all others as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Optional, Tuple

MAX_FILE = 4 * 1024 * 1024  # bytes; the file has 60 KB
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_BARE = re.compile(r"[^=#\s,\[\]]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_END_OF_LINE = re.compile(r"\r?(?:\n|\Z)")


class Unreadable(Exception):
    """This is not what oned reads; the text says where and what."""


@dataclass(frozen=True)
class Value:
    """A value without its quotes, where it begins and ends without them, and where it ends with them."""

    text: str
    start: int
    end: int
    close: int

    @property
    def quoted(self) -> bool:
        """Whether it stands in quotes: only then may it hold blanks and commas."""
        return self.close > self.end


@dataclass(frozen=True)
class Pair:
    """`NAME = VALUE` in a vector; the name in capitals."""

    name: str
    start: int
    value: Value


@dataclass(frozen=True)
class Attribute:
    """An attribute, from the first character of its name to the last of its value; the name in capitals.

    A vector has `pairs` and no `value`; `NAME =` alone has neither.
    """

    name: str
    start: int
    end: int
    value: Optional[Value] = None
    pairs: Optional[Tuple[Pair, ...]] = None

    def all(self, name: str) -> List[Pair]:
        """The pairs of this name."""
        return [pair for pair in self.pairs or () if pair.name == name]

    def get(self, name: str) -> Optional[str]:
        """The value that oned takes: the first of this name."""
        found = self.all(name)
        return found[0].value.text if found else None


def line_of(text: str, at: int) -> int:
    """The line, counted from 1, of a character."""
    return text.count("\n", 0, at) + 1


def parse(text: str) -> List[Attribute]:
    """The attributes in their order; `Unreadable` if oned could not read the text."""
    return _Reader(text).attributes()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def attributes(self) -> List[Attribute]:
        found = []
        self._skip()
        while self._at < len(self._text):
            found.append(self._attribute())
            self._skip()
        return found

    def _attribute(self) -> Attribute:
        start, name = self._at, self._name()
        if _END_OF_LINE.match(self._text, self._at):
            return Attribute(name, start, self._at)
        if self._text[self._at] != "[":
            value = self._value()
            return Attribute(name, start, value.close, value)
        self._at += 1
        pairs = self._pairs()
        return Attribute(name, start, self._at, pairs=tuple(pairs))

    def _pairs(self) -> List[Pair]:
        pairs: List[Pair] = []
        self._skip()
        if self._take("]"):
            return pairs
        while True:
            start, name = self._at, self._name()
            pairs.append(Pair(name, start, self._value()))
            self._skip()
            if self._take("]"):
                return pairs
            if not self._take(","):
                raise self._error("a comma or ] is missing")
            self._skip()

    def _name(self) -> str:
        name = _NAME.match(self._text, self._at)
        if not name:
            raise self._error("the name of an attribute is missing")
        self._at = name.end()
        self._skip()
        equals = _EQUALS.match(self._text, self._at)
        if not equals:
            raise self._error("= is missing")
        self._at = equals.end()
        return name[0].upper()

    def _value(self) -> Value:
        start = self._at
        if self._text.startswith('"', start):
            found = _QUOTED.match(self._text, start)
            if not found:
                raise self._error('a closing " is missing')
            self._at = found.end()
            return Value(found[0][1:-1].replace('\\"', '"'), start + 1, self._at - 1, self._at)
        found = _BARE.match(self._text, start)
        if not found:
            raise self._error("a value is missing")
        self._at = found.end()
        return Value(found[0], start, self._at, self._at)

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at

    def _take(self, character: str) -> bool:
        if not self._text.startswith(character, self._at):
            return False
        self._at += 1
        return True

    def _error(self, what: str) -> Unreadable:
        return Unreadable(f"line {line_of(self._text, self._at)}: {what}")
