"""What is remembered, and what is deleted, when an image that was brought back gets its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from tests.support import CHUNK, RecordingFiles, content, make_file, manifest_of
from tm_fastcopy.core.errors import NoSpace
from tm_fastcopy.core.files import Files, lock
from tm_fastcopy.core.publish import staging_name
from tm_fastcopy.core.staging import Staging
from tm_fastcopy.frontend.image import Image, ManifestStore
from tm_fastcopy.frontend.pull import Pull, discard_pulled
from tm_fastcopy.frontend.settings import Settings

STAGING = staging_name("img")


class Interrupted(RecordingFiles):
    """Something happens when the image has just got its name."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self._happens = happens

    def sync_directory(self, directory: int) -> None:
        """Which it has by then."""
        super().sync_directory(directory)
        self._happens()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A datastore with an image, and its successor under the staging name."""
    (tmp_path / "store").mkdir()
    make_file(tmp_path / "store" / "img", "AB")
    make_file(tmp_path / "store" / STAGING, "CD")
    yield tmp_path / "store"


def pull_to(store: Path, files: Files) -> Any:
    """The part of a pull that has all chunks."""
    host: Any = None
    settings = Settings.of({})
    manifests = ManifestStore(store.parent / "manifests", Files())
    return Pull(host, str(store / "img"), [str(store)], manifests, settings, files)


@pytest.mark.parametrize("written", [False, True])
def test_what_was_written_when_the_image_just_had_its_name_is_not_remembered_as_what_was_brought_back(
    store: Path, written: bool
) -> None:
    def write() -> None:
        with (store / "img").open("r+b") as file:
            file.write(b"!" if written else b"")

    pull = pull_to(store, Interrupted(write))
    staging = Staging.open(Files(), pull._directory, STAGING, 2 * CHUNK)
    assert staging is not None
    pull._publish(staging, manifest_of("CD"), 0o660)
    staging.close()
    os.close(pull._directory)
    assert (store / "img").read_bytes() == (b"!" if written else content("C")[:1]) + content("CD")[1:]
    image = Image.open(str(store / "img"), [str(store)])
    assert pull._store.get(image) == (None if written else manifest_of("CD"))
    image.close()


def test_a_full_datastore_right_after_the_exchange_does_not_cost_the_old_image(store: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pull = pull_to(store, Interrupted(full))
    staging = Staging.open(Files(), pull._directory, STAGING, 2 * CHUNK)
    assert staging is not None
    with pytest.raises(OSError) as caught:
        pull._publish(staging, manifest_of("CD"), 0o660)
    assert isinstance(pull._told(caught.value, staging), NoSpace)
    staging.close()
    os.close(pull._directory)
    assert (store / "img").read_bytes() == content("CD")
    assert (store / STAGING).read_bytes() == content("AB")  # no receipt was issued


# --- what an action that was ended has staged ---------------------------------------------------------------------


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_was_staged_beside_an_image_is_discarded(store: Path, format: str) -> None:
    (store / staging_name("img.snap")).mkdir()
    make_file(store / staging_name("img.snap") / staging_name("0"), "C")
    assert discard_pulled(str(store / "img"), [str(store)], format, Files()) == ""
    assert os.listdir(store) == ["img"]
    assert (store / "img").read_bytes() == content("AB")


def test_what_was_staged_in_an_images_tree_is_discarded(store: Path) -> None:
    (store / "img.snap").mkdir()
    os.rename(store / "img", store / "img.snap" / "0")
    os.rename(store / STAGING, store / "img.snap" / staging_name("0"))
    (store / "img").symlink_to("img.snap/0")
    assert discard_pulled(str(store / "img"), [str(store)], "qcow2", Files()) == ""
    assert os.listdir(store / "img.snap") == ["0"]
    assert (store / "img").read_bytes() == content("AB")


@pytest.mark.parametrize("tree", [False, True])
def test_what_another_action_is_at_stays(store: Path, tree: bool) -> None:
    """Another front-end, say: there is no guard on an image."""
    if tree:
        (store / "img.snap").mkdir()
        os.rename(store / "img", store / "img.snap" / "0")
        os.rename(store / STAGING, store / "img.snap" / staging_name("0"))
        (store / "img").symlink_to("img.snap/0")
    place = store / "img.snap" / staging_name("0") if tree else store / STAGING
    with place.open() as file:
        assert lock(file.fileno())
        assert "another action" in discard_pulled(str(store / "img"), [str(store)], "qcow2" if tree else "raw", Files())
    assert place.read_bytes() == content("CD")
    assert discard_pulled(str(store / "img"), [str(store)], "qcow2" if tree else "raw", Files()) == ""
    assert not place.exists()
