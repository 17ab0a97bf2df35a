"""What an open directory shows, on btrfs, which shows a descriptor that was open before nothing that has come since."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tm_fastcopy.core.paths import list_names

pytestmark = pytest.mark.root


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    image, place = tmp_path / "image", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "--quiet", image], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_what_came_since_the_directory_was_opened_is_seen(btrfs: Path) -> None:
    fd = os.open(btrfs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for count in range(5):
            assert sorted(list_names(fd)) == [str(number) for number in range(count)]
            (btrfs / str(count)).touch()
    finally:
        os.close(fd)


def test_of_a_directory_that_was_removed_nothing_is_seen(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    place.rmdir()
    assert list_names(fd) == []
    os.close(fd)
