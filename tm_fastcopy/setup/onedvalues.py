"""Single values of oned.conf, as oned and its drivers would take them."""

from __future__ import annotations

from typing import Optional

from . import options
from .conftext import Unreadable, parse

ONE_TM_THREADS = 15
"""How many scripts one_tm runs at once where nothing is said (one_tm.rb)."""


def threads(text: str) -> Optional[int]:
    """How many scripts one_tm runs at once; None where that is not clear."""
    try:
        values = [pair.value for item in parse(text) if item.name == "TM_MAD" for pair in item.all("ARGUMENTS")]
        given = [option for value in values for option in options.read(text[value.start : value.end], options.TM)]
    except (Unreadable, options.Unclear):
        return None
    numbers = [option.text for option in given if option.letter == "t"]
    if len(values) != 1 or not all(number.isdecimal() for number in numbers):
        return None
    return int(numbers[-1]) if numbers else ONE_TM_THREADS


def single(text: str, name: str, default: str) -> str:
    """The value of the attribute *name*; *default* where there is none."""
    try:
        found = [item.value.text for item in parse(text) if item.name == name and item.value]
    except Unreadable:
        return default
    return found[-1] if found else default
