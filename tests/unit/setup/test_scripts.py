"""install.sh, uninstall.sh and wheels.sh as root runs them: from any directory, with any environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTALL = Path(__file__).resolve().parents[3] / "install"
POISON = "raise SystemExit('code of the current directory was run')\n"


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh", "wheels.sh"])
def test_no_code_is_taken_from_the_current_directory_or_the_environment(tmp_path: Path, script: str) -> None:
    setup = tmp_path / "tm_fastcopy/setup"
    setup.mkdir(parents=True)
    for path in (tmp_path / "argparse.py", tmp_path / "runpy.py", setup.parent / "__init__.py", setup / "__init__.py",
                 setup / f"{script[:-3]}.py"):  # fmt: skip
        path.write_text(POISON)
    environ = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONHOME": str(tmp_path)}
    for poison in ({}, {"PYTHONPATH": str(tmp_path)}):
        done = subprocess.run([INSTALL / script, "--help"], cwd=tmp_path, env={**environ, **poison},
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: {script} ")
    assert not list(tmp_path.rglob("__pycache__"))
