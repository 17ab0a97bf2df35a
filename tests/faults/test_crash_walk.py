"""The crash walk, by kills and by calls that fail, on whatever file system tests run on.  It needs no root."""

from __future__ import annotations

import pytest

from .arrows import Plan
from .conftest import Totals
from .invariants import left_over
from .order import broken_rules
from .scenarios import CLONE_COLD, RESIZE, SCENARIOS, VOLATILE, Scenario
from .site import Site
from .walk import Harness, Walk

_ONE_NAME = ("/.disk.0.fastcopy.part", "/..monitor.fastcopy.part")
NAMES = [scenario.name for scenario in SCENARIOS]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_killed_before_and_after_every_arrow(
    harness: Harness, plain: Site, totals: Totals, scenario: Scenario
) -> None:
    walk = Walk(harness, plain, scenario).without_common()
    assert len(walk.arrows) >= (3 if scenario is RESIZE else 6 if scenario in VOLATILE else scenario.least)
    assert broken_rules(walk.lines) == []
    report = walk.kills()
    totals.add(walk, report)
    assert report.kills == 2 * len(walk.arrows)
    assert report.wrong == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_every_call_fails_once(harness: Harness, plain: Site, totals: Totals, scenario: Scenario) -> None:
    """A failed call is an error with everything in order, or (in what is optional) none at all."""
    walk = Walk(harness, plain, scenario).without_common()
    report = walk.failures()
    totals.add(walk, report)
    assert report.failures == len(walk.arrows)
    assert report.wrong == []


def test_nothing_is_left_for_ever_when_the_image_never_comes_again(harness: Harness, plain: Site) -> None:
    """What a kill leaves, and no repeated action takes up, is taken away when room is made.

    Not so two files that have one name each: the disk's staging file lies in the VM's directory, and goes with it;
    that of `.monitor` is taken up by the next action in the datastore.
    """
    walk = Walk(harness, plain, CLONE_COLD)
    for arrow in walk.arrows:
        plain.restore(None)
        harness.run({**walk.spec, "plan": Plan(arrow, "after", "kill", str(harness.hit)).encode()})
        left = [name for name in left_over(plain) if not name.endswith(_ONE_NAME)]
        assert left == [], str(arrow)
