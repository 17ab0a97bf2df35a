"""A release: readable to the user that oned runs as."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tm_fastcopy.setup import release

USER = "nobody"


@pytest.fixture
def made() -> Iterator[Path]:
    """A release as far as it is looked at here: a Python, and wheels for one kind of hosts."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        path = Path(top, "1.0")
        (path / "venv/bin").mkdir(parents=True)
        (path / "venv/bin/python3").symlink_to(os.path.realpath(sys.executable))
        (path / "wheels/cp311-x86_64").mkdir(parents=True)
        (path / "wheels/cp311-x86_64/blake3.whl").write_bytes(b"wheel")
        yield path


def modes(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): path.lstat().st_mode & 0o777 for path in sorted(top.rglob("*"))}


def test_a_release_is_readable_to_all_whatever_the_modes_were_where_it_was_copied_from(made: Path) -> None:
    outside = made.parent / "outside"
    outside.write_text("not ours")
    outside.chmod(0o600)
    (made / "link").symlink_to(outside)
    (made / "run").write_text("#!/bin/sh\n")
    (made / "run").chmod(0o700)
    (made / "wheels/cp311-x86_64/blake3.whl").chmod(0o600)
    for path in ("wheels/cp311-x86_64", "wheels"):
        (made / path).chmod(0o700)
    release.open_to_all(made)
    found = modes(made)
    assert found["run"] == found["wheels"] == found["wheels/cp311-x86_64"] == 0o755
    assert found["wheels/cp311-x86_64/blake3.whl"] == 0o644
    assert outside.stat().st_mode & 0o777 == 0o600


@pytest.mark.root
@pytest.mark.parametrize("closed", ["wheels", "wheels/cp311-x86_64", "wheels/cp311-x86_64/blake3.whl"])
def test_wheels_that_the_user_cannot_read_are_a_problem(
    made: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "_CHECK", "pass")  # its packages are not there
    assert pwd.getpwnam(USER).pw_uid
    assert release._problem(made, USER) == ""
    (made / closed).chmod(0o600)
    assert closed in release._problem(made, USER)
