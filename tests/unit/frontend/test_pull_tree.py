"""The staging tree of an image with snapshots belongs to one action, and is published with all of its files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import make_file
from tm_fastcopy.core.errors import FastcopyError, NoSpace, Refused
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.publish import staging_name
from tm_fastcopy.core.tree_messages import TreeListed, pack_names
from tm_fastcopy.frontend.phases import Phases
from tm_fastcopy.frontend.pull_tree import PullTree


def pull_to(store: Path, *names: str) -> Any:
    """A pull of a raw disk with snapshots."""
    none: Any = None
    listed = TreeListed("", pack_names(names))
    return PullTree(none, str(store / "img"), [str(store)], none, none, Files(), "raw", Phases(), listed)


def close(pull: Any) -> None:
    for fd in (pull._parent, pull._tree, pull._old):
        if fd is not None and fd >= 0:
            os.close(fd)


def test_who_comes_second_touches_nothing_of_who_is_at_work(tmp_path: Path) -> None:
    first, second = pull_to(tmp_path, "0", "1"), pull_to(tmp_path, "0", "1")
    first._open()
    staged = tmp_path / staging_name("img.snap")
    make_file(staged / "0", "A")
    make_file(staged / "1", "B")
    with pytest.raises(FastcopyError, match="another action"):
        second._open()
    assert sorted(os.listdir(staged)) == ["0", "1"]
    first._publish()
    assert sorted(os.listdir(tmp_path / "img.snap")) == ["0", "1"]
    close(first)
    close(second)


def test_a_tree_in_which_a_file_is_missing_is_not_published(tmp_path: Path) -> None:
    make_file(tmp_path / "img", "A")
    (tmp_path / "img.snap").mkdir()
    make_file(tmp_path / "img.snap" / "0", "A")
    pull = pull_to(tmp_path, "0", "1")
    pull._open()
    make_file(tmp_path / staging_name("img.snap") / "1", "B")
    with pytest.raises(Refused, match=r"the files 0 of .*img are gone again"):
        pull._publish()
    assert os.listdir(tmp_path / "img.snap") == ["0"]
    close(pull)


def test_a_full_datastore_is_not_kept_full_by_the_files_that_have_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(tmp_path / "img", "A")
    (tmp_path / "img.snap").mkdir()
    make_file(tmp_path / "img.snap" / "0", "A")
    pull = pull_to(tmp_path, "0", "1")

    async def full(slot: Any) -> None:
        make_file(tmp_path / staging_name("img.snap") / slot.name, "B")
        if slot.name == "1":
            raise NoSpace("the datastore is full")

    monkeypatch.setattr(pull, "_pull", full)
    with pytest.raises(NoSpace):
        asyncio.run(pull.run())
    assert sorted(os.listdir(tmp_path)) == ["img", "img.snap"] and os.listdir(tmp_path / "img.snap") == ["0"]
