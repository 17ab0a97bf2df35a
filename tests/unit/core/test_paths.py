"""Paths: what is refused, and that links below a datastore are never followed."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import List

import pytest

from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.core.paths import (
    DiskPath,
    disk_name,
    disk_path,
    has,
    open_base,
    open_below,
    open_directory,
    open_parent,
    relative_to_any,
)

BASE = "/var/lib/one/datastores/100"


@pytest.mark.parametrize("name", ["disk.0", "disk.12", "kernel", "initrd"])
@pytest.mark.parametrize("base", [BASE, BASE + "/"])
def test_a_disk(base: str, name: str) -> None:
    assert disk_path(f"{BASE}/42/{name}", base) == DiskPath(BASE, 42, name)
    assert str(disk_path(f"{BASE}/42/{name}", base)) == f"{BASE}/42/{name}"


def test_doubled_slashes_mean_one() -> None:
    assert disk_path(f"{BASE}//42///disk.0", BASE) == DiskPath(BASE, 42, "disk.0")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "disk.0",
        "42/disk.0",
        BASE,
        f"{BASE}/",
        f"{BASE}/42",
        f"{BASE}/42/",
        f"{BASE}/42/disk.0/",
        f"{BASE}/disk.0",
        f"{BASE}/42/disk.",
        f"{BASE}/42/disk.0.snap",
        f"{BASE}/42/disk.0/x",
        f"{BASE}/42/deployment.0",
        f"{BASE}/42/kernel2",
        f"{BASE}/x/disk.0",
        f"{BASE}/-1/disk.0",
        f"{BASE}/4 2/disk.0",
        f"{BASE}/1234567890/disk.0",
        f"{BASE}/../100/42/disk.0",
        f"{BASE}/42/../43/disk.0",
        f"{BASE}/./42/disk.0",
        f"{BASE}/42/..",
        f"{BASE}1/42/disk.0",
        "/etc/passwd",
        f"{BASE}/42/disk.0\0",
        f"{BASE}/42/disk.0\n",
        f"{BASE}/42/disk.0\nrm -rf /",
        "/" + "x" * 5000,
    ],
)
def test_what_is_no_disk(path: str) -> None:
    with pytest.raises(Refused):
        disk_path(path, BASE)


@pytest.mark.parametrize("name", ["", ".", "..", "disk", "disk.0/x", "../disk.0", "disk.0\n", "Disk.0", "disk.-1"])
def test_what_is_no_name_of_a_disk(name: str) -> None:
    with pytest.raises(Refused):
        disk_name(name)


def test_the_innermost_datastore_counts() -> None:
    assert relative_to_any("/a/b/c/file", ["/a", "/a/b/", "/x"]) == ("/a/b/", "c/file")
    assert relative_to_any("/a/c/file", ["/a", "/a/b"]) == ("/a", "c/file")


@pytest.mark.parametrize("path", ["/a", "/a/", "/ab/file", "/b/file", "a/file", "/a/../b/file", "/a/b/../../etc/x"])
def test_what_lies_in_no_datastore(path: str) -> None:
    with pytest.raises(Refused):
        relative_to_any(path, ["/a"])


# --- opening -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A datastore with images/img and, beside it, a place that nobody must reach."""
    (tmp_path / "store" / "images").mkdir(parents=True)
    (tmp_path / "store" / "images" / "img").write_text("image")
    (tmp_path / "outside" / "images").mkdir(parents=True)
    (tmp_path / "outside" / "images" / "img").write_text("secret")
    return tmp_path / "store"


def read(base: Path, rest: str) -> str:
    directory, fd, _ = open_below(str(base), rest, os.O_RDONLY)
    os.close(directory)
    with open(fd) as file:
        return file.read()


def open_descriptors() -> List[str]:
    gc.collect()  # what earlier tests left is not counted
    return sorted(os.listdir("/proc/self/fd"))


def test_a_file_is_opened(store: Path) -> None:
    assert read(store, "images/img") == "image"


def test_the_datastore_itself_may_be_a_link(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("store")
    assert read(tmp_path / "link", "images/img") == "image"


@pytest.mark.parametrize("level", ["images", "images/img"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_planted_link_is_followed_at_no_level(store: Path, level: str, relative: bool) -> None:
    planted = store / level
    planted.rename(store / "aside")
    target = store.parent / "outside" / level
    planted.symlink_to(os.path.relpath(target, planted.parent) if relative else target)
    before = open_descriptors()
    with pytest.raises((Refused, OSError)) as caught:
        read(store, "images/img")
    assert "secret" not in str(caught.value)
    assert open_descriptors() == before


def test_a_link_in_the_way_is_named(store: Path) -> None:
    (store / "link").symlink_to("images")
    with pytest.raises(Refused, match=r"link is not a directory, or is a symbolic link, which is not followed"):
        open_parent(str(store), "link/img")


def test_a_missing_directory_is_named_and_nothing_leaks(store: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FastcopyError, match=r"opening .*/store/images/deep: No such file"):
        open_parent(str(store), "images/deep/er/img")
    assert open_descriptors() == before


def test_a_missing_file_is_for_the_caller_to_explain(store: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        open_below(str(store), "images/none", os.O_RDONLY)
    assert open_descriptors() == before


def test_a_base_must_be_an_absolute_directory(store: Path) -> None:
    for base in ("relative", str(store / "images" / "img"), str(store / "none"), f"{store}/../store"):
        with pytest.raises(FastcopyError):
            open_base(base)


def test_a_directory_is_opened_below_another(store: Path) -> None:
    base = open_base(str(store))
    fd = open_directory(base, "images", "shown")
    assert os.listdir(fd) == ["img"]
    for name in ("none", "img"):
        with pytest.raises(FastcopyError, match="shown"):
            open_directory(fd, name, "shown")
    os.close(fd)
    os.close(base)


def test_has_looks_at_the_name_itself(store: Path) -> None:
    (store / "link").symlink_to("nowhere")
    directory = open_base(str(store))
    assert has(directory, "none") is None
    assert has(directory, "link") is not None
    os.close(directory)
