"""What goes into a context, by the words that oned passes; the image of it is in tests/contract/test_iso.py."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.frontend import contents as module
from tm_fastcopy.frontend.contents import Contents


def fetch(address: str) -> int:
    """What a web server would give: the address."""
    fd = os.memfd_create("fetched")
    os.write(fd, address.encode())
    return fd


def names(words: Sequence[str]) -> dict[str, str]:
    """Names in the context and where they come from."""
    contents = Contents.of(words, fetch)
    try:
        return {"/".join(name): piece.path for name, piece in contents.pieces.items()}
    finally:
        contents.close()


@pytest.fixture
def top(tmp_path: Path) -> str:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_text("f")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{}/a"], {"a": "{}/a"}),
        (["{}/a", "{}/b:c"], {"a": "{}/a", "c": "{}/b"}),
        (["{}/a:'init.sh'"], {"init.sh": "{}/a"}),
        (["{}/a:'my", "init", "script'", "{}/b"], {"my init script": "{}/a", "b": "{}/b"}),
        (["{}/a:'it's'"], {"it's": "{}/a"}),
        (["{}/a:'", "x'"], {" x": "{}/a"}),
        (["{}/a:x", "{}/b:x"], {"x": "{}/b"}),
        (["{}/d"], {"d": "{}/d", "d/e": "{}/d/e", "d/e/f": "{}/d/e/f"}),
        (["{}/d/", "{}/a:d/a"], {"d": "{}/d", "d/e": "{}/d/e", "d/e/f": "{}/d/e/f", "d/a": "{}/a"}),
        (["http://h/x/y.sh?z=1"], {"y.sh": "http://h/x/y.sh?z=1"}),
        (["HTTPS://h:81/a%20b"], {"a b": "HTTPS://h:81/a%20b"}),
        (["http://h/one", "http://i/one"], {"one": "http://i/one"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_and_names(top: str, words: list[str], expected: dict[str, str]) -> None:
    assert names([word.format(top) for word in words]) == {name: path.format(top) for name, path in expected.items()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/missing"], "No such file"),
        (["relative"], "absolute path"),
        (["{}/a:../b"], "cannot be the name"),
        (["{}/a:/etc/passwd"], "cannot be the name"),
        (["{}/a:x/y"], "no directory x"),
        (["{}/a:"], "no name after the colon"),
        (["{}/a:'x"], "no end"),
        (["{}/a:''"], "no end"),
        (["{}/a:x\ty"], "cannot be the name"),
        (["{}/a:" + "x" * 201], "cannot be the name"),
        (["{}/a:d", "{}/d"], "a file and a directory named d"),
        (["http://h/"], "names no file"),
        (["http://h/%2e%2e"], "cannot be the name"),
        (["/dev/null"], "neither a file nor a directory"),
        (["/"], "cannot be the name"),
        (["file:///etc/passwd"], "absolute path"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_sentence(top: str, words: list[str], said: str) -> None:
    with pytest.raises(FastcopyError, match=said) as caught:
        names([word.format(top) for word in words])
    assert "\n" not in str(caught.value)


def test_a_link_that_is_named_is_followed_and_one_below_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link").symlink_to("/etc/passwd")
    (tmp_path / "named").symlink_to("d")
    contents = Contents.of([str(tmp_path / "named"), str(tmp_path / "named:other")], fetch)
    assert {name: piece.target for name, piece in contents.pieces.items() if piece.is_link} == {
        ("named", "link"): "/etc/passwd", ("other", "link"): "/etc/passwd",
    }  # fmt: skip
    contents.close()


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a", "b"):
        (tmp_path / "d" / name).write_bytes(bytes(1000))
    words = [str(tmp_path / "d")]
    with monkeypatch.context() as patch, pytest.raises(Refused, match="more than 2 files"):
        patch.setattr(module, "MAX_FILES", 2)
        names(words)
    with monkeypatch.context() as patch, pytest.raises(Refused, match="more than 0 MiB"):
        patch.setattr(module, "MAX_BYTES", 1999)
        names(words)
    deep = tmp_path / "/".join("d" * 9)
    deep.mkdir(parents=True)
    with pytest.raises(Refused, match="nested deeper"):
        names(words)


def test_what_was_fetched_is_let_go_of(top: str) -> None:
    gc.collect()  # what earlier tests left
    before = os.listdir("/proc/self/fd")
    names(["http://h/x", "http://h/x", f"{top}/a:x"])
    with pytest.raises(Refused):
        names(["http://h/x", "relative"])
    assert os.listdir("/proc/self/fd") == before
