"""What uninstall.sh takes away: the state directory, whatever an administrator has made of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tm_fastcopy.setup import uninstall


def fill(state: Path) -> Path:
    """A directory as the driver leaves it."""
    (state / "digests").mkdir(parents=True)
    (state / "digests/one").write_text("x")
    (state / "daemon.log").write_text("x")
    (state / "link").symlink_to("/etc/passwd")
    return state


def test_a_directory_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    assert uninstall.clear(fill(tmp_path / "fastcopy"), os.getuid()) == ""
    assert os.listdir(tmp_path) == []
    assert Path("/etc/passwd").exists()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """The state directory on a file system of its own."""
    state = tmp_path / "fastcopy"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(state)], check=True)
    try:
        yield state
    finally:
        subprocess.run(["umount", str(state)], check=True)


@pytest.mark.root
def test_a_mount_is_emptied_and_left_to_the_administrator(mount: Path) -> None:
    left = uninstall.clear(fill(mount), os.getuid())
    assert left == f"{mount} (a mount: unmount it, and remove it by hand)"
    assert os.listdir(mount) == []


@pytest.mark.root
def test_a_mount_below_it_is_named(tmp_path: Path) -> None:
    state = fill(tmp_path / "fastcopy")
    inner = state / "digests"
    subprocess.run(["mount", "-t", "tmpfs", "none", str(inner)], check=True)
    try:
        assert uninstall.clear(state, os.getuid()) == f"{inner} (a mount: unmount it, and remove it by hand)"
    finally:
        subprocess.run(["umount", str(inner)], check=True)
    assert os.listdir(state) == ["digests"]


def test_of_a_link_the_target_is_emptied(tmp_path: Path) -> None:
    target = fill(tmp_path / "elsewhere")
    state = tmp_path / "fastcopy"
    state.symlink_to(target)
    assert uninstall.clear(state, os.getuid()) == f"{target} (empty: {state} was a link to it)"
    assert not os.path.lexists(state)
    assert os.listdir(target) == []


def test_a_link_to_somebody_elses_directory_empties_nothing(tmp_path: Path) -> None:
    """The link lies where the user that oned runs as may write, and root follows it."""
    target = fill(tmp_path / "elsewhere")
    state = tmp_path / "fastcopy"
    state.symlink_to(target)
    left = uninstall.clear(state, os.getuid() + 1)
    assert left.startswith(f"{target} (")
    assert not os.path.lexists(state)
    assert sorted(os.listdir(target)) == ["daemon.log", "digests", "link"]


def test_a_link_that_leads_nowhere_goes(tmp_path: Path) -> None:
    state = tmp_path / "fastcopy"
    state.symlink_to(tmp_path / "gone")
    assert uninstall.clear(state, os.getuid()) == ""
    assert os.listdir(tmp_path) == []
