"""What doctor finds out on the front-end, with files and processes as they can be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tm_fastcopy.commands import facts

REMOTES = Path(facts.__file__).resolve().parent.parent / "remotes"


def test_entry_points_of_another_version_are_found(tmp_path: Path) -> None:
    place = tmp_path / "fastcopy"
    shutil.copytree(REMOTES, place, symlinks=True)
    assert facts._entries(place) == []
    (place / "prebackup").unlink()
    (place / "monitor_ds.py").write_text("# of an older version\n")
    (place / "backup").chmod(0o644)
    found = facts._entries(place)
    assert set(found) == {"prebackup", "monitor_ds.py", "monitor_ds", "backup", "postbackup", "postbackup_live",
                          "prebackup_live"}  # fmt: skip
    assert "clone" in facts._entries(tmp_path / "nowhere")


@pytest.mark.parametrize("changed", [False, True])
def test_an_oned_that_has_not_read_its_configuration_is_found(tmp_path: Path, changed: bool) -> None:
    conf = tmp_path / "oned.conf"
    conf.touch()
    os.utime(conf, (time.time() - 3600, time.time() - 3600))
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'oned', 0, 0, 0); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as oned:
        assert oned.stdout and oned.stdin
        oned.stdout.readline()
        if changed:
            os.utime(conf, (time.time() + 5, time.time() + 5))
        assert facts._stale(conf) == changed
        oned.stdin.close()
    assert not facts._stale(tmp_path / "nowhere")
