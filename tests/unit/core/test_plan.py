"""The planner, as a specification in its own notation."""

from __future__ import annotations

from typing import Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.core.plan import CACHE, HOLE, KEEP, LANE, SELF, Step

from .notation import places, render, steps


def test_the_notation() -> None:
    assert render("ABA", have="A--", cached="B") == "keep:A cache:B self:A"


@pytest.mark.parametrize(
    ("wanted", "have", "cached", "expected"),
    [
        # nothing is there
        ("", "", "", ""),
        ("ABC", "", "", "lane:ABC"),
        ("ABC", "???", "", "lane:ABC"),
        ("ABC", "XYZ", "", "lane:ABC"),
        # keep comes first, whatever else has it
        ("ABC", "ABC", "", "keep:ABC"),
        ("ABC", "ABC", "ABC", "keep:ABC"),
        ("ABC", "AXC", "", "keep:A lane:B keep:C"),
        # self before the cache, the cache before a lane
        ("AA", "", "A", "cache:A self:A"),
        ("AA", "", "", "lane:A self:A"),
        ("ABC", "", "ABC", "cache:ABC"),
        ("ABC", "", "B", "lane:A cache:B lane:C"),
        # what is kept serves chunks that stand before it, too
        ("AA", "-A", "", "self:A keep:A"),
        # but not what is about to be overwritten
        ("BA", "AB", "", "lane:BA"),
        # holes
        ("--", "", "", ""),
        ("--", "--", "", ""),
        ("-A-", "---", "", "lane:A"),
        ("--", "XX", "", "hole:--"),
        ("--", "??", "", "hole:--"),
        ("A-B", "XXX", "", "lane:A hole:- lane:B"),
        ("-A", "A-", "", "hole:- lane:A"),
        # a hole is never a source, and never looked for
        ("--AA", "??--", "-", "hole:-- lane:A self:A"),
    ],
)
def test_the_cheapest_source_is_taken(wanted: str, have: str, cached: str, expected: str) -> None:
    assert render(wanted, have, cached) == expected


@pytest.mark.parametrize(
    ("wanted", "have", "cached", "expected", "at"),
    [
        ("ABC", "", "XABC", "cache:ABC", "cache[1-3]"),  # one copy for a run that lies in one piece
        ("ABC", "", "CAB", "cache:AB cache:C", "cache[1-2] cache[0]"),  # two where it does not
        ("ABAB", "AB", "", "keep:AB self:AB", "[0-1]"),
        ("AAAA", "A", "", "keep:A self:A self:A self:A", "[0] [0] [0]"),
        ("ABABAB", "", "", "lane:AB self:AB self:AB", "[0-1] [0-1]"),
        ("ABAB", "--AB", "", "self:A self:B keep:AB", "[2] [3]"),  # from further on, chunk by chunk: never an overlap
    ],
)
def test_neighbours_are_joined_where_one_copy_serves_them(
    wanted: str, have: str, cached: str, expected: str, at: str
) -> None:
    assert render(wanted, have, cached) == expected
    assert places(wanted, have, cached) == at


def test_a_second_page_knows_what_the_first_has_put_in_place() -> None:
    earlier: Dict[bytes, int] = {}
    assert render("AB", have="A-", earlier=earlier) == "keep:A lane:B"
    second = steps("BCA-", have="???X", cached="ABC", first=2, earlier=earlier)
    assert [(step.kind, step.first, step.count, step.place and step.place.index) for step in second] == [
        (SELF, 2, 1, 1),
        (CACHE, 3, 1, 2),
        (SELF, 4, 1, 0),
        (HOLE, 5, 1, None),
    ]


def test_what_a_page_keeps_is_known_to_the_next() -> None:
    earlier: Dict[bytes, int] = {}
    assert render("A", have="A", earlier=earlier) == "keep:A"
    assert render("A", have="?", earlier=earlier, first=1) == "self:A"


letters = st.text("ABC-", min_size=1, max_size=12)


class File:
    """A staging file of letters, in which steps are carried out and every read of it is watched."""

    def __init__(self, wanted: str, have: str, cached: str) -> None:
        self.wanted, self.cached = wanted, cached
        self.now = list(have)
        self.fetched: List[str] = []

    def do(self, step: Step) -> None:
        """Carry a step out, chunk by chunk."""
        for i in range(step.count):
            index = step.first + i
            if step.kind == HOLE:
                self.now[index] = "-"
            elif step.kind == LANE:
                self.fetched.append(self.wanted[index])
                self.now[index] = self.wanted[index]
            elif step.kind == CACHE:
                assert step.place is not None
                self.now[index] = self.cached[step.place.index + i]
            elif step.kind == SELF:
                assert step.place is not None
                source = step.place.index + i
                assert self.now[source] == self.wanted[source], "a place was read that does not hold its content yet"
                self.now[index] = self.now[source]
            else:
                assert step.kind == KEEP


@given(letters, letters, st.text("ABCX", max_size=6), st.integers(1, 12), st.booleans(), st.data())
def test_carrying_out_the_plan_makes_the_wanted_file(
    wanted: str, there: str, cached: str, page: int, copies_last: bool, data: st.DataObject
) -> None:
    """Whatever lies there, page by page, with the copies in order or (as the assembly does) after all the rest."""
    have = "".join(data.draw(st.sampled_from([letter, "?"])) for letter in there)
    have = have.ljust(len(wanted), "-")[: len(wanted)]
    real = have.replace("?", "U")  # content that is none of the wanted
    file, earlier, later = File(wanted, real, cached), {}, []
    whole: List[Step] = []
    for first in range(0, len(wanted), page):
        part = steps(wanted[first : first + page], have[first : first + page], cached, first, earlier)
        whole += part
        for step in part:
            if step.kind == SELF and copies_last:
                later.append(step)
            else:
                file.do(step)
    for step in later:
        file.do(step)
    assert "".join(file.now) == wanted
    assert [step.first for step in whole] == sorted(step.first for step in whole)
    # Nothing is fetched that this machine has, and nothing twice.
    assert not set(file.fetched) & set(cached)
    assert len(file.fetched) == len(set(file.fetched))
    for step in whole:
        if step.kind == LANE:
            kept = {w for w, h in zip(wanted[: step.first + 1], have) if w == h}
            assert not kept & set(wanted[step.first : step.first + step.count])
