"""What all tests share: who may run what, and how hypothesis looks for examples."""

from __future__ import annotations

import os
from typing import List

import hypothesis
import pytest

# No deadline: a loaded machine is not a defect.  No database: a run leaves nothing behind in the tree.  The same
# examples in each run: what fails once fails again; HYPOTHESIS_RANDOM=1 draws others.
hypothesis.settings.register_profile(
    "fastcopy", deadline=None, database=None, derandomize="HYPOTHESIS_RANDOM" not in os.environ, print_blob=True
)
hypothesis.settings.load_profile("fastcopy")

_LEFT_OUT = "left out: tests marked `root`"


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    """Leave the tests marked `root` out where we are not root; the summary counts them."""
    if os.geteuid() == 0:
        return
    left_out = [item for item in items if item.get_closest_marker("root")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("root")]
        config.hook.pytest_deselected(items=left_out)
        config.fastcopy_left_out = len(left_out)  # type: ignore[attr-defined]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where all tests were left out there is none to fail: pytest alone would call that an error."""
    if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and hasattr(session.config, "fastcopy_left_out"):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say in one line how many tests were left out, and why; and what tests have counted."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "counted":
                terminalreporter.write_line(str(value))
    count = getattr(config, "fastcopy_left_out", 0)
    if count:
        terminalreporter.write_line(f"{count} {_LEFT_OUT}, because this user is not root", yellow=True)
