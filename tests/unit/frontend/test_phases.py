"""Phases are counted by the clock that they are given, and nothing is lost between them."""

from __future__ import annotations

from tm_fastcopy.frontend.phases import Phases


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_entered_again_is_added_up_and_the_sum_is_all_of_the_time() -> None:
    clock = Clock()
    phases = Phases(clock)
    for name, seconds in (("oned", 0.25), ("host", 1.0), ("transfer", 2.0), ("host", 0.5)):
        phases.enter(name)
        clock.now += seconds
    assert str(phases) == "3.750 s (oned 0.250, host 1.500, transfer 2.000)"


def test_asked_twice_counts_nothing_twice() -> None:
    clock = Clock()
    phases = Phases(clock)
    phases.enter("oned")
    clock.now += 1
    assert str(phases) == "1.000 s (oned 1.000)"
    assert str(phases) == "1.000 s (oned 1.000)"


def test_time_before_the_first_phase_is_not_counted() -> None:
    clock = Clock()
    phases = Phases(clock)
    clock.now += 5
    phases.enter("oned")
    assert str(phases) == "0.000 s (oned 0.000)"
