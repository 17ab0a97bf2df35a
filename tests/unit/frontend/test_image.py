"""Images on the front-end: what is one, its pages, and the store of manifests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Iterator, List

import pytest

from tests.support import CHUNK, RecordingFiles, content, make_file, manifest_of
from tm_fastcopy.core.errors import FastcopyError, Refused, SourceChanged
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.identity import SETTLED_NS, Identity, backdate
from tm_fastcopy.core.messages import PAGE_CHUNKS
from tm_fastcopy.frontend import image as module
from tm_fastcopy.frontend.image import Image, ManifestStore


class Store:
    """A datastore, with images that are open until the end of the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: List[Image] = []

    def open(self, name: str = "img", later: bool = True) -> Image:
        """Open an image as if it had been left alone for a while (or not)."""
        image = Image.open(str(self.path / name), [str(self.path)])
        self.opened.append(image)
        image.settled = image.identity.settled(time.time_ns() + (SETTLED_NS if later else -SETTLED_NS))
        return image


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    made = Store(tmp_path / "store")
    yield made
    for image in made.opened:
        image.close()


# --- opening -----------------------------------------------------------------------------------------------------


def test_an_image(store: Store) -> None:
    make_file(store.path / "img", "A-B").chmod(0o640)
    image = store.open()
    assert (image.size, image.mode, image.data) == (3 * CHUNK, 0o640, 2 * CHUNK)


def test_what_was_just_written_is_not_settled(store: Store) -> None:
    make_file(store.path / "img", "A")
    image = Image.open(str(store.path / "img"), [str(store.path)])
    store.opened.append(image)
    assert not image.settled


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "link", "outside"])
def test_what_is_no_image(store: Store, kind: str, tmp_path: Path) -> None:
    path = store.path / "img"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(make_file(tmp_path / "victim", "A"))
    elif kind == "outside":
        path = make_file(tmp_path / "victim", "A")
    with pytest.raises(Refused):
        Image.open(str(path), [str(store.path)])


def tree(store: Store, active: str = "0", *others: str) -> Path:
    """An image as the stock `local` driver leaves it."""
    path = store.path / "img"
    (store.path / "img.snap").mkdir()
    for number in (active, *others):
        make_file(store.path / "img.snap" / number, "QA")
    path.symlink_to(f"img.snap/{active}")
    return path


def test_a_qcow2_image_in_a_tree_is_read_through_its_link(store: Store) -> None:
    path = tree(store, "2")
    image = Image.open(str(path), [str(store.path)], "qcow2")
    store.opened.append(image)
    assert image.identity.inode == (store.path / "img.snap" / "2").stat().st_ino
    with pytest.raises(Refused):
        Image.open(str(path), [str(store.path)], "raw")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("snapshots", "has snapshots"),
        ("flat with snapshots", "has snapshots"),
        ("absolute", "not followed"),
        ("link in the tree", "link"),
        ("linked tree", "link"),
        ("leads nowhere", "there is no image"),
        ("no file", "there is no image"),
    ],
)
def test_a_qcow2_image_that_is_not_carried(store: Store, tmp_path: Path, wrong: str, words: str) -> None:
    path = tree(store, "0", *(["1"] if "snapshots" in wrong else []))
    active = store.path / "img.snap" / "0"
    if wrong == "flat with snapshots":
        path.unlink()
        make_file(path, "QA")
    elif wrong == "absolute":
        path.unlink()
        path.symlink_to(active)
    elif wrong == "link in the tree":
        active.unlink()
        active.symlink_to(make_file(tmp_path / "victim", "QA"))
    elif wrong == "linked tree":
        os.rename(store.path / "img.snap", store.path / "other")
        (store.path / "img.snap").symlink_to("other")
    elif wrong == "leads nowhere":
        active.unlink()
        (store.path / "img.snap").rmdir()
    elif wrong == "no file":
        active.unlink()
    with pytest.raises(Refused, match=words):
        Image.open(str(path), [str(store.path)], "qcow2")


def test_a_missing_directory_is_named(store: Store) -> None:
    with pytest.raises(FastcopyError, match="none"):
        Image.open(str(store.path / "none" / "img"), [str(store.path)])


@pytest.mark.parametrize("change", ["content", "size", "nothing"])
def test_a_change_while_it_is_read_is_seen(store: Store, change: str) -> None:
    path = make_file(store.path / "img", "AB")
    os.utime(path, (1, 1))
    image = store.open()
    if change == "nothing":
        image.check()
        return
    with open(path, "r+b") as file:
        if change == "size":
            file.truncate(CHUNK)
        else:
            file.write(b"x")
    with pytest.raises(SourceChanged, match="was written while it was copied"):
        image.check()


# --- pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letters", "pages"),
    [
        ("", []),
        ("A", [(0, 1)]),
        ("ABAB", [(0, 2), (2, 2)]),
        ("ABABA", [(0, 2), (2, 2), (4, 1)]),
        ("------", [(0, 6)]),
        ("A-----", [(0, 2), (2, 4)]),
        ("-----A", [(0, 5), (5, 1)]),
        ("A----B", [(0, 2), (2, 3), (5, 1)]),
    ],
)
def test_pages_are_small_where_data_is_and_holes_cost_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, letters: str, pages: List[object]
) -> None:
    monkeypatch.setattr(module, "_HASH_PAGE", 2)
    make_file(store.path / "img", letters)
    assert store.open().pages(CHUNK, None) == pages


def test_no_page_is_larger_than_the_wire_allows(store: Store) -> None:
    os.truncate(make_file(store.path / "img", ""), (PAGE_CHUNKS * 2 + 1) * CHUNK)
    assert store.open().pages(CHUNK, None) == [(0, 1024), (1024, 1024), (2048, 1)]


@pytest.mark.parametrize(("letters", "size"), [("AB-A", -1), ("AB", CHUNK + 1), ("--", -1), ("", -1)])
@pytest.mark.parametrize("known", [False, True])
def test_pages_make_the_manifest(store: Store, letters: str, size: int, known: bool) -> None:
    make_file(store.path / "img", letters, size)
    image, manifest = store.open(), manifest_of(letters, size)
    given = manifest if known else None
    pages = [image.page(CHUNK, first, count, given) for first, count in image.pages(CHUNK, given)]
    assert b"".join(page.digests for page in pages) == manifest.digests


def test_a_known_image_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(store.path / "img", "AB")
    monkeypatch.setattr(module, "hash_page", None)
    page = store.open().page(CHUNK, 1, 1, manifest_of("AB"))
    assert page.digests == manifest_of("B").digests
    assert page.runs == [(CHUNK, CHUNK)]


# --- the store of manifests --------------------------------------------------------------------------------------


@pytest.fixture
def manifests(tmp_path: Path) -> ManifestStore:
    return ManifestStore(tmp_path / "manifests", Files())


def test_a_settled_image_is_remembered(store: Store, manifests: ManifestStore, tmp_path: Path) -> None:
    make_file(store.path / "img", "AB")
    assert manifests.get(store.open()) is None
    manifests.put(store.open(), manifest_of("AB"))
    assert manifests.get(store.open()) == manifest_of("AB")
    assert (tmp_path / "manifests").stat().st_mode & 0o777 == 0o700


def test_an_image_that_is_not_settled_is_not_remembered(
    store: Store, manifests: ManifestStore, tmp_path: Path
) -> None:
    make_file(store.path / "img", "AB")
    manifests.put(store.open(later=False), manifest_of("AB"))
    assert not (tmp_path / "manifests").exists()


def test_an_image_of_our_own_is_recognized_at_once_and_any_write_shows(store: Store, manifests: ManifestStore) -> None:
    path = make_file(store.path / "img", "AB")
    with open(path, "r+b") as file:
        backdate(Files(), file.fileno())
        manifests.put_written(Identity.of(os.fstat(file.fileno())), manifest_of("AB"))
        image = store.open(later=False)
        assert not image.settled and manifests.get(image) == manifest_of("AB")
        assert image.identity.mtime_ns + SETTLED_NS <= image.identity.ctime_ns  # so no write can give it this time
        file.write(b"!")
        file.flush()
    assert manifests.get(store.open(later=False)) is None


def test_a_changed_image_is_not_recognized(store: Store, manifests: ManifestStore) -> None:
    path = make_file(store.path / "img", "AB")
    os.utime(path, (1, 1))
    manifests.put(store.open(), manifest_of("AB"))
    with open(path, "r+b") as file:
        file.write(b"x")
    assert manifests.get(store.open()) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "of another image"])
def test_a_damaged_manifest_is_not_used(store: Store, manifests: ManifestStore, tmp_path: Path, damage: str) -> None:
    make_file(store.path / "img", "AB")
    manifests.put(store.open(), manifest_of("AB"))
    (path,) = (tmp_path / "manifests").iterdir()
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[:-1], "changed": raw[:30] + b"x" + raw[31:]}.get(damage, manifest_of("A").encode()))
    assert manifests.get(store.open()) is None


@pytest.mark.parametrize("failing", ["create", "write", "sync", "rename"])
def test_a_store_that_cannot_be_written_fails_nothing(store: Store, tmp_path: Path, failing: str) -> None:
    make_file(store.path / "img", "AB")
    manifests = ManifestStore(tmp_path / "manifests", RecordingFiles(failing={failing: 28}))
    manifests.put(store.open(), manifest_of("AB"))
    assert manifests.get(store.open()) is None
    assert os.listdir(tmp_path / "manifests") == []


def test_a_file_in_the_stores_place_fails_nothing(store: Store, tmp_path: Path) -> None:
    make_file(store.path / "img", "AB")
    (tmp_path / "manifests").write_bytes(content("A"))
    manifests = ManifestStore(tmp_path / "manifests", Files())
    manifests.put(store.open(), manifest_of("AB"))
    assert manifests.get(store.open()) is None


def test_the_store_does_not_grow_for_ever(store: Store, manifests: ManifestStore, tmp_path: Path) -> None:
    for name in "ABC":
        make_file(store.path / name, name)
    manifests._KEEP = 2  # type: ignore[misc]
    for age, name in enumerate("ABC"):
        manifests.put(store.open(name), manifest_of(name))
        for path in (tmp_path / "manifests").iterdir():
            os.utime(path, (path.stat().st_mtime - 10 * (3 - age),) * 2)
    assert len(list((tmp_path / "manifests").iterdir())) == 2
    assert manifests.get(store.open("A")) is None
    assert manifests.get(store.open("C")) == manifest_of("C")
