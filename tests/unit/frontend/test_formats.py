"""Formats: what a clone asks for, by what oned says of the disk and what the image's header says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.support import make_file, qcow2_header
from tm_fastcopy.core.errors import Refused
from tm_fastcopy.frontend.actions.clone import _wanted
from tm_fastcopy.frontend.image import Image
from tm_fastcopy.frontend.oned import Disk, check_format
from tm_fastcopy.frontend.push import Wanted

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    """A qcow2 image of 1 MiB, as its guest sees it."""
    made = Image.open(str(make_file(tmp_path / "image", "QA")), [str(tmp_path)], "qcow2")
    yield made
    made.close()


def disk(size: Any = None, original: Any = None, format: str = "qcow2", sparse: bool = True) -> Disk:
    return Disk(0, size, original, format, sparse)


@pytest.mark.parametrize(
    ("size", "original", "virtual"),
    [(None, None, 0), (1, 1, 0), (3, 2, 3 * MIB), (3, None, 0), (1, 2, 0), (2, 2, 0), (0, 0, 0)],
)
def test_a_qcow2_disk_is_made_larger_for_its_guest_only(image: Image, size: Any, original: Any, virtual: int) -> None:
    assert _wanted(disk(size, original), "qcow2", image) == Wanted(image.size, image.mode, True, "qcow2", virtual)


def test_a_qcow2_disk_that_is_as_large_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(qcow2_header(size=4 * MIB))
    image = Image.open(str(path), [str(tmp_path)])
    assert _wanted(disk(4, 1), "qcow2", image).virtual == 0
    image.close()


def test_a_raw_disk_is_made_larger_as_a_file_and_its_bytes_are_not_looked_at(image: Image) -> None:
    assert _wanted(disk(3, 1, "raw"), "raw", image) == Wanted(3 * MIB, image.mode, True, "raw", 0)


def test_a_boot_file_is_the_image_as_it_is(image: Image) -> None:
    assert _wanted(None, "raw", image) == Wanted(image.size, image.mode, True, "raw", 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"raw bytes", "no qcow2 image, though oned says so"),
        (qcow2_header(backing=b"/etc/passwd"), "outside its own directory"),
        (qcow2_header(backing=b"base"), "several files"),
        (qcow2_header(features=4, data_file=b"nbd://x/y"), "outside its own directory"),
    ],
)
def test_an_image_that_is_not_to_be_carried_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    image = Image.open(str(path), [str(tmp_path)], "qcow2")
    with pytest.raises(Refused, match=reason):
        _wanted(disk(), "qcow2", image)
    image.close()


@pytest.mark.parametrize("format", ["vmdk", "qcow", "vdi", "", "RAW "])
def test_only_raw_and_qcow2_are_handled(format: str) -> None:
    with pytest.raises(Refused, match="raw and qcow2"):
        check_format(disk(format=format))
    assert [check_format(disk(format=known)) for known in ("raw", "qcow2")] == ["raw", "qcow2"]
