"""Links that are cut, flip a bit or fall silent, at any byte: an error or the right result, never a wrong file."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Tuple

import pytest

from .scenarios import CLONE_COLD, MVDS, Scenario
from .site import Site
from .walk import Harness, Walk

# Bytes of messages after which the fault comes: in the first prefix and header, in a chunk, in a later one, at the end.
PLACES = (0, 3, 9, 60, 400, 3000, 66_000, 200_000)
SHORT = {"silence": 0.6, "ping": 0.1, "answer": 0.4}  # seconds
BOTH = pytest.mark.parametrize("scenario", [CLONE_COLD, MVDS], ids=["clone", "mvds"])
ON = pytest.mark.parametrize("on", ["lane", "control"])


def _faults(on: str, fault: str, places: Tuple[int, ...], **more: Any) -> Iterator[Dict[str, Any]]:
    for direction in ("in", "out"):
        for place in places:
            for once in (True, False) if on == "lane" else (True,):
                yield {"on": on, "once": once, "direction": direction, fault: place, **more}


@BOTH
@ON
@pytest.mark.parametrize("fault", ["drop_after", "flip_bit_in"])
def test_cut_and_flipped_links(harness: Harness, plain: Site, scenario: Scenario, on: str, fault: str) -> None:
    walk = Walk(harness, plain, scenario)
    codes = set()
    for faults in _faults(on, fault, PLACES):
        outcome, problems = walk.with_link(faults, SHORT)  # a length that a flipped bit made larger is waited for
        codes.add(outcome.code)
        assert problems == [], faults
    assert codes == {0, 1}, "some places must be survived, and some not"


@BOTH
@ON
def test_silent_links(harness: Harness, plain: Site, scenario: Scenario, on: str) -> None:
    """Nothing more comes through, and nobody is told.  Waits are shortened: what counts is that there are some."""
    walk = Walk(harness, plain, scenario)
    for faults in _faults(on, "stall_after", (60, 66_000)):
        outcome, problems = walk.with_link(faults, SHORT)
        assert problems == [], faults
        assert outcome.code in (0, 1)


@BOTH
def test_a_chunk_that_was_damaged_is_sent_again(harness: Harness, plain: Site, scenario: Scenario) -> None:
    walk = Walk(harness, plain, scenario)
    direction = "out" if scenario is CLONE_COLD else "in"
    outcome, problems = walk.with_link({"on": "lane", "once": True, "direction": direction, "flip_bit_in": 40_000})
    assert (outcome.code, problems) == (0, [])


@BOTH
def test_a_lane_that_broke_is_dialled_again(harness: Harness, plain: Site, scenario: Scenario) -> None:
    walk = Walk(harness, plain, scenario)
    for direction in ("in", "out"):
        outcome, problems = walk.with_link({"on": "lane", "once": True, "direction": direction, "drop_after": 200})
        assert (outcome.code, problems) == (0, [])
