"""Eviction: which images go.  "a10 b20p c5+7" is an image a of 10 bytes, used first; b of 20, pinned, used after it;
and c, which holds 5 alone and shares 7.
"""

from __future__ import annotations

import re
from typing import Dict, List, Optional, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.agent.eviction import Candidate, for_limit, for_room, winnable


def images(text: str, places: Optional[Dict[str, Tuple[Tuple[int, int], ...]]] = None) -> List[Candidate]:
    """Images in the notation above, used at 0, 1, 2, ...; what one shares lies where *places* says, or by itself."""
    found = []
    for i, word in enumerate(text.split()):
        match = re.fullmatch(r"(\w)(\d+)(?:\+(\d+))?(p?)", word)
        assert match is not None
        name, alone, shared, pinned = match.group(1), int(match.group(2)), int(match.group(3) or 0), match.group(4)
        default = ((1000 * i, shared),) if shared else ()
        where = (places or {}).get(name, default)
        found.append(Candidate(name, alone + shared, alone, float(i), bool(pinned), where))
    return found


def names(chosen: List[Candidate]) -> str:
    return "".join(image.id for image in chosen)


@pytest.mark.parametrize(
    ("text", "shortfall", "expected"),
    [
        ("", 10, ""),
        ("a10 b10 c10", 0, ""),
        ("a10 b10 c10", -5, ""),
        ("a10 b10 c10", 1, "a"),
        ("a10 b10 c10", 10, "a"),
        ("a10 b10 c10", 11, "ab"),
        ("a10 b10 c10", 30, "abc"),
        ("a10 b10 c10", 31, ""),  # it would not suffice, so nothing is lost for it
        ("a10p b10 c10", 10, "b"),
        ("a10p b10p", 10, ""),
        ("a1 b10", 10, "b"),  # a is not needed
        ("a0+99 b10", 10, "b"),  # a's disks keep its blocks
        ("a0+99 b0+99", 1, ""),
        ("a5+99 b10", 15, "ab"),
    ],
)
def test_for_room(text: str, shortfall: int, expected: str) -> None:
    assert names(for_room(images(text), shortfall)) == expected


def test_what_entries_share_with_one_another_can_be_won() -> None:
    places = {"a": ((0, 90),), "b": ((10, 90),), "c": ((5000, 90),)}
    three = images("a10+90 b10+90 c0+90", places)
    assert winnable(three) == 20 + 80
    assert names(for_room(three, 20)) == "ab"
    assert names(for_room(three, 100)) == "ab"
    assert names(for_room(three, 101)) == ""
    assert names(for_room(images("a0+90 b10+90", places), 90)) == "ab"  # though a alone frees nothing


def test_an_image_that_repeats_itself_shares_with_nobody_else() -> None:
    assert winnable(images("a0+20", {"a": ((0, 10), (0, 10))})) == 0


@pytest.mark.parametrize(
    ("text", "excess", "min_age", "expected"),
    [
        ("a10 b10 c10", 0, 0, ""),
        ("a10 b10 c10", 10, 0, "a"),
        ("a0+10 b10", 10, 0, "a"),  # what it shares counts for the limit
        ("a10 b10 c10", 25, 0, "abc"),
        ("a10 b10 c10", 31, 0, ""),
        ("a10p b10 c10", 10, 0, "b"),
        ("a10 b10 c10", 10, 9, "a"),  # now is 10: b was used 9 s ago, a 10 s ago
        ("a10 b10 c10", 20, 10, ""),
        ("a10 b10 c10", 20, 9, "ab"),
        ("a10 b10 c10", 30, 9, ""),
    ],
)
def test_for_limit(text: str, excess: int, min_age: int, expected: str) -> None:
    assert names(for_limit(images(text), excess, min_age, 10.0)) == expected


def test_an_image_from_the_future_is_not_young() -> None:
    assert names(for_limit(images("a10"), 10, 5, -100.0)) == "a"


# --- whatever is there -------------------------------------------------------------------------------------------

_LETTERS = "abcdefgh"


@st.composite
def caches(draw: st.DrawFn) -> List[Candidate]:
    """A few images whose blocks overlap."""
    found = []
    for letter in draw(st.sets(st.sampled_from(_LETTERS))):
        runs = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=3))
        alone = draw(st.integers(0, 50))
        shared = sum(length for _, length in runs)
        used, pinned = float(draw(st.integers(0, 5))), draw(st.booleans())
        found.append(Candidate(letter, alone + shared, alone, used, pinned, tuple(runs)))
    return found


def blocks(image: Candidate) -> Set[int]:
    return {block for start, length in image.shared for block in range(start, start + length)}


@given(caches(), st.integers(-10, 300))
def test_room(cache: List[Candidate], shortfall: int) -> None:
    chosen = for_room(cache, shortfall)
    free = [image for image in cache if not image.pinned]
    twice = sum(1 for block in range(60) if sum(block in blocks(image) for image in free) >= 2)
    assert winnable(free) == sum(image.exclusive for image in free) + twice
    assert not any(image.pinned for image in chosen)
    assert len({image.id for image in chosen}) == len(chosen)
    assert chosen == sorted(chosen, key=lambda image: (image.used, image.id))
    assert bool(chosen) == (0 < shortfall <= winnable(free))
    won = sum(image.exclusive for image in chosen)
    if chosen and won >= shortfall and sum(image.exclusive for image in free) >= shortfall:
        assert all(won - image.exclusive < shortfall for image in chosen), "one of them is not needed"
        assert all(image.exclusive > 0 for image in chosen), "one of them frees nothing"


@given(caches(), st.integers(-10, 300), st.integers(0, 6), st.integers(0, 6))
def test_limit(cache: List[Candidate], excess: int, min_age: int, now: int) -> None:
    chosen = for_limit(cache, excess, min_age, now)
    assert not any(image.pinned or 0 <= now - image.used < min_age for image in chosen)
    assert chosen == sorted(chosen, key=lambda image: (image.used, image.id))
    won = sum(image.allocated for image in chosen)
    assert not chosen or won >= excess > 0
    assert all(won - image.allocated < excess for image in chosen), "one of them is not needed"
    free = [image for image in cache if not image.pinned and not 0 <= now - image.used < min_age]
    assert bool(chosen) == (0 < excess <= sum(image.allocated for image in free))


@given(caches(), st.integers(1, 200))
def test_removing_one_after_the_other_reaches_room_or_stops(cache: List[Candidate], shortfall: int) -> None:
    """Entries that share only with one another: every block that the last of them held is free then.

    Defect C2 of the stock drivers.
    """
    left = [image._replace(pinned=False) for image in cache]
    total = sum(image.exclusive for image in left) + len({block for image in left for block in blocks(image)})
    for image in list(left):
        overlapping = {block for other in left if other is not image for block in blocks(other)}
        if blocks(image) - overlapping:
            return  # a disk shares it: another test's matter
    won = 0
    for _ in range(len(cache) + 1):
        state = [_as_mapped(image, left) for image in left]
        chosen = for_room(state, shortfall - won)
        if not chosen:
            break
        left = [image for image in left if image.id != chosen[0].id]
        won = total - sum(i.exclusive for i in left) - len({block for image in left for block in blocks(image)})
    assert won >= min(shortfall, total) or shortfall > total


def _as_mapped(image: Candidate, present: List[Candidate]) -> Candidate:
    """The image as FIEMAP would show it beside those that are still present."""
    others = {block for other in present if other is not image for block in blocks(other)}
    mine = blocks(image)
    shared = tuple((block, 1) for block in sorted(mine & others))
    return image._replace(exclusive=image.exclusive + len(mine - others), shared=shared)
