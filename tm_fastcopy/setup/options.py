"""The ARGUMENTS of a driver in oned.conf: its options, and where their values stand.

The drivers read them with Ruby's GetoptLong: `-d LIST`, `-dLIST`, `--tm-types LIST` and `--tm-types=LIST` are the same,
and of an option that is there twice the last one holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

TM = {"threads": "t", "tm-types": "d", "timeout": "w"}
"""Long names of one_tm's options, and the letters that stand for them."""
DATASTORE = {"threads": "t", "ds-types": "d", "system-ds-types": "s", "timeout": "w"}
"""The same of one_datastore."""


class Unclear(Exception):
    """The words are not understood; the text says which."""


@dataclass(frozen=True)
class Option:
    """An option's letter, and its value with the place where it begins (None: it has none)."""

    letter: str
    text: str = ""
    start: Optional[int] = None

    @property
    def items(self) -> List[str]:
        """The value as the list that it is."""
        return [item.strip() for item in self.text.split(",") if item.strip()]


def read(raw: str, names: Dict[str, str]) -> List[Option]:
    """The options in *raw*, in their order; places are counted from its beginning.  `Unclear` for anything else."""
    if set("\"'\\$`") & set(raw):
        raise Unclear("there are quotes in it")
    words = [(word[0], word.start()) for word in re.finditer(r"\S+", raw)]
    found: List[Option] = []
    while words:
        word, at = words.pop(0)
        letter, value, start = _option(word, at, names)
        if value is None and words and not words[0][0].startswith("-"):
            value, start = words.pop(0)
        found.append(Option(letter, value or "", start if value is not None else None))
    return found


def _option(word: str, at: int, names: Dict[str, str]) -> Tuple[str, Optional[str], int]:
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        if name in names:
            return names[name], value if equals else None, at + len(name) + 3
    elif word[:1] == "-" and word[1:2] in set(names.values()):
        return word[1], word[2:] or None, at + 2
    raise Unclear(f"{word!r} is not an option that is known here")
