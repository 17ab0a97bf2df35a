"""Which hosts reach each other: remembered for a while, either way."""

from __future__ import annotations

from tm_fastcopy.frontend.hops import Hops


def test_what_was_tried_is_remembered_for_an_hour_and_for_that_pair() -> None:
    now = 100.0
    hops = Hops(lambda: now)
    assert hops.known("a", "b") is None
    hops.note("a", "b", False)
    hops.note("b", "a", True)
    assert (hops.known("a", "b"), hops.known("b", "a"), hops.known("a", "c")) == (False, True, None)
    now += 3599
    assert hops.known("a", "b") is False
    now += 2
    assert (hops.known("a", "b"), hops.known("b", "a")) == (None, None)
    hops.note("a", "b", True)
    assert hops.known("a", "b") is True
