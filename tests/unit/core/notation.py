"""A notation for plans, so that a test of the planner is one line.

A letter is a chunk with that content, "-" a hole, "?" content that nobody knows.

    render("ABA", have="A--", cached="B") == "keep:A cache:B self:A"
"""

from __future__ import annotations

from typing import Dict, List, Optional

from tm_fastcopy.core.manifest import DIGEST_SIZE, ZERO_DIGEST
from tm_fastcopy.core.plan import Place, Step, plan


def digest_of(letter: str) -> bytes:
    """The digest that stands for a letter."""
    return ZERO_DIGEST if letter == "-" else letter.encode() * DIGEST_SIZE


def present(letters: str) -> List[Optional[bytes]]:
    """What lies in a staging file: a digest for each letter, None for "?"."""
    return [None if letter == "?" else digest_of(letter) for letter in letters]


class Cached:
    """One image of the cache, named "cache"."""

    def __init__(self, letters: str) -> None:
        self._places = {digest_of(letter): i for i, letter in enumerate(letters) if letter != "-"}

    def find(self, digest: bytes) -> Optional[Place]:
        """Where the image has a chunk."""
        index = self._places.get(digest)
        return None if index is None else Place("cache", index)


def steps(
    wanted: str, have: str = "", cached: str = "", first: int = 0, earlier: Optional[Dict[bytes, int]] = None
) -> List[Step]:
    """The plan itself.  What *have* does not tell is a hole."""
    lying = have.ljust(len(wanted), "-")
    return plan([digest_of(letter) for letter in wanted], present(lying), Cached(cached), first, earlier)


def render(
    wanted: str, have: str = "", cached: str = "", first: int = 0, earlier: Optional[Dict[bytes, int]] = None
) -> str:
    """The plan as words: kind and the chunks that it serves."""
    return " ".join(
        f"{step.kind}:{wanted[step.first - first : step.first - first + step.count]}"
        for step in steps(wanted, have, cached, first, earlier)
    )


def places(wanted: str, have: str = "", cached: str = "") -> str:
    """The places that chunks are copied from: "source[index]" or "source[from-to]", "" being the file itself."""
    found = []
    for step in steps(wanted, have, cached):
        if step.place:
            last = step.place.index + step.count - 1
            span = str(step.place.index) if step.count == 1 else f"{step.place.index}-{last}"
            found.append(f"{step.place.source}[{span}]")
    return " ".join(found)
