"""The rule of `tests/conftest.py`: what needs root is left out elsewhere, and counted aloud."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"
TESTS = """
import pytest

@pytest.mark.root
def test_of_root(): pass

def test_of_anybody(): pass
"""


def run(directory: Path, user: int, tests: str = TESTS) -> str:
    shutil.copy(CONFTEST, directory)
    (directory / "test_two.py").write_text(tests)
    (directory / "pytest.ini").write_text("[pytest]\nmarkers = root: x\n")
    code = f"import os, sys, pytest; os.geteuid = lambda: {user}; sys.exit(pytest.main(['-p', 'no:cacheprovider']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout


def test_root_runs_all(tmp_path: Path) -> None:
    output = run(tmp_path, 0)
    assert "2 passed" in output
    assert "left out" not in output


def test_others_are_told_what_was_left_out(tmp_path: Path) -> None:
    output = run(tmp_path, 1000)
    assert "1 passed, 1 deselected" in output
    assert [line for line in output.splitlines() if "left out" in line] == [
        "1 left out: tests marked `root`, because this user is not root"
    ]


def test_nothing_but_what_was_left_out_is_no_failure(tmp_path: Path) -> None:
    assert "1 deselected" in run(tmp_path, 1000, TESTS.partition("def test_of_anybody")[0])


@pytest.mark.root
def test_root_is_root() -> None:
    import os

    assert os.geteuid() == 0
