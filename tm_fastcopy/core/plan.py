"""The plan: which steps make a staging file equal to what is wanted.  Pure: values in, values out.

For every chunk the cheapest source is taken, in this order:

    hole    the chunk holds no data: punch whatever lies there
    keep    the staging file has it already, at its place
    self    it stands (or will stand) elsewhere in this same file
    cache   a file on this machine has it
    lane    fetch it from the other machine

Steps are ordered by place and neighbours are joined where one operation can serve them: `count` chunks from `first` on,
for `self` and `cache` taken from consecutive places of one source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Protocol, Sequence

from .manifest import ZERO_DIGEST

HOLE = "hole"
KEEP = "keep"
SELF = "self"
CACHE = "cache"
LANE = "lane"


@dataclass(frozen=True)
class Place:
    """Where a chunk can be copied from: a source's name ("" is the file itself) and a chunk index there."""

    source: str
    index: int


@dataclass(frozen=True)
class Step:
    """One operation on chunks `first` to `first + count - 1`; `place` is where the first of them comes from."""

    kind: str
    first: int
    count: int
    place: Optional[Place] = None


class Seeds(Protocol):
    """What tells whether a chunk lies on this machine, and where."""

    def find(self, digest: bytes) -> Optional[Place]:
        """The place of a chunk with this digest, or None."""


def plan(
    wanted: Sequence[bytes],
    have: Sequence[Optional[bytes]],
    cached: Seeds,
    first: int = 0,
    earlier: Optional[Dict[bytes, int]] = None,
) -> List[Step]:
    """Return the steps for the chunks `wanted`, the first of which has the index *first*.

    `have` says what lies in the staging file at the same places: a digest, `ZERO_DIGEST` for a hole, None for content
    that nobody knows.  `earlier` maps digests to the index of a chunk of this file that an earlier page of the plan
    has put there; it is extended, so that pages of one file can be planned one after another.
    """
    known = {} if earlier is None else earlier
    steps: List[Step] = []
    # A chunk that is kept can serve any other of the page, also one that stands before it.
    for index, (digest, present) in enumerate(zip(wanted, have), first):
        if digest != ZERO_DIGEST and digest == present:
            known.setdefault(digest, index)
    for index, (digest, present) in enumerate(zip(wanted, have), first):
        if digest == present:
            if digest != ZERO_DIGEST:
                _append(steps, Step(KEEP, index, 1))
            continue
        if digest == ZERO_DIGEST:
            _append(steps, Step(HOLE, index, 1))
            continue
        _append(steps, _source_of(digest, index, known, cached))
        known.setdefault(digest, index)
    return steps


def _source_of(digest: bytes, index: int, known: Dict[bytes, int], cached: Seeds) -> Step:
    if digest in known:
        return Step(SELF, index, 1, Place("", known[digest]))
    place = cached.find(digest)
    return Step(LANE, index, 1) if place is None else Step(CACHE, index, 1, place)


def _append(steps: List[Step], step: Step) -> None:
    if steps and _continues(steps[-1], step):
        steps[-1] = replace(steps[-1], count=steps[-1].count + step.count)
    else:
        steps.append(step)


def _continues(before: Step, step: Step) -> bool:
    if before.kind != step.kind or before.first + before.count != step.first:
        return False
    if before.place is None or step.place is None:
        return True
    follows = before.place.index + before.count == step.place.index
    # A run that is copied within the file must not read what it has itself just been asked to write.
    overlaps = step.kind == SELF and before.place.index + before.count >= before.first
    return before.place.source == step.place.source and follows and not overlaps
