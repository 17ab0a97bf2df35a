"""The configuration file: what is read of it, and the sentence for everything that is wrong with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.frontend import configfile
from tm_fastcopy.frontend.configfile import MAX_FILE, Entry, entries, read


def found(text: str) -> dict[str, tuple[str, int]]:
    return {name: tuple(entry) for name, entry in entries(text, "F").items()}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("\n\n", {}),
        ("# only\n  # comments\n", {}),
        ("---\n", {}),
        ("{}", {}),
        ("a: 1", {"a": ("1", 1)}),
        ("# x\n\na: 1 # y\nb: 'two words'\n", {"a": ("1", 3), "b": ("two words", 4)}),
        ("g:\n  a: 1\n  b: 2\nc: 3\n", {"g.a": ("1", 2), "g.b": ("2", 3), "c": ("3", 4)}),
        ("g.a: 1", {"g.a": ("1", 1)}),
        ("{a: 1, g: {b: 2}}", {"a": ("1", 1), "g.b": ("2", 1)}),
        ("g:\na: 1\n", {"g": ("", 1), "a": ("1", 2)}),
        ("g: {}", {}),
        ("\ufeffa: 1", {"a": ("1", 1)}),
        # Texts are what was written, not what YAML makes of them.
        ("a: 010\nb: no\nc: 1:30\nd: ~\ne: 2026-01-01\nf: 80%\n",
         {"a": ("010", 1), "b": ("no", 2), "c": ("1:30", 3), "d": ("~", 4), "e": ("2026-01-01", 5), "f": ("80%", 6)}),
    ],
)  # fmt: skip
def test_what_is_read(text: str, expected: dict[str, tuple[str, int]]) -> None:
    assert found(text) == expected


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\na: 2", "F, line 2: 'a' stands on line 1 already"),
        ("g: {a: 1}\ng.a: 2", "F, line 2: 'g.a' stands on line 1 already"),
        ("a: 1\nb: &x 2", "F, line 2: anchors"),
        ("a: *x", "F, line 1: anchors"),
        ("a: !!python/object/apply:os.system ['true']", "F, line 1: anchors"),
        ("a: !!int 2", "F, line 1: anchors"),
        ("&x a: 1", "F, line 1: anchors"),
        (BOMB, "F, line 1: anchors"),
        ("a:\n- 1", "F, line 2: a list begins here; no setting has one"),
        ("- a", "F, line 1: a list begins here"),
        ("word", "F, line 1: 'word' is not of the form NAME: VALUE"),
        ("a: {b: {c: 1}}", "F, line 1: no setting is nested like this"),
        ("? {a: 1}\n: 2", "F, line 1: no setting is nested like this"),
        ("a: 1\n---\nb: 2", "F, line 2: a second document begins here; there must be one"),
        ("a: 1\nb\n", "F, line 3: this is not YAML: could not find expected ':'"),
        ("a: 'x\n\n", "F, line 3: this is not YAML: found unexpected end of stream"),
        ("a:\n\t- b", "F, line 2: this is not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n b: 2", "F, line 2: this is not YAML: mapping values are not allowed here"),
        ("a: 1\nb: \0", "F, line 2: this is not YAML: there is a control character"),
        ("[" * 60_000, "F, line 1: a list begins here"),
        ("{" * 60_000, "F, line 1: no setting is nested like this"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)), "F, line 3: no setting is nested like this"),
    ],
    ids=lambda text: repr(text)[:25],
)
def test_what_is_wrong_is_one_sentence_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        entries(text, "F")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@given(st.text(st.sampled_from("ab:?-{}[],&*!|>'\"%@# \n\t\\\0é~<=10"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        entries(text, "F")
    except Refused as error:
        assert str(error).startswith("F")


def test_a_missing_file_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "none" / "fastcopy.yaml") == {}


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "fastcopy.yaml"
    file.write_text("# ü\na: 1\n")
    assert read(file) == {"a": Entry("1", 2)}


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "fastcopy.yaml"
    file.write_text("#" * MAX_FILE)
    assert read(file) == {}
    file.write_text("#" * (MAX_FILE + 1))
    with pytest.raises(Refused, match=rf"{file} is larger than 64 KiB"):
        read(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "fastcopy.yaml"
    file.write_bytes(b"# one\na: \xff\n")
    with pytest.raises(Refused, match=rf"{file}, line 2: this is not UTF-8 text"):
        read(file)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "fifo")  # in a process of its own, which a wait that never ends does not take with it
    program = "import pathlib, sys; from tm_fastcopy.frontend import configfile as c; c.read(pathlib.Path(sys.argv[1]))"
    argv = [sys.executable, "-c", program, str(tmp_path / "fifo")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "Refused: the configuration" in done.stderr and "is not a file" in done.stderr


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(configfile.os, "open", refuse)  # root may read everything
    with pytest.raises(FastcopyError, match=r"the configuration .*fastcopy\.yaml cannot be read: Permission denied"):
        read(tmp_path / "fastcopy.yaml")


def test_a_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    with pytest.raises(FastcopyError, match="cannot be read: Not a directory"):
        read(tmp_path / "etc" / "fastcopy.yaml")


@pytest.mark.parametrize(("text", "imported"), [("", "no"), ("# comments\n", "no"), ("a: 1\n", "yes")])
def test_yaml_is_imported_only_for_a_file_that_says_something(tmp_path: Path, text: str, imported: str) -> None:
    file = tmp_path / "fastcopy.yaml"
    file.write_text(text)
    program = (
        "import sys; from pathlib import Path; from tm_fastcopy.frontend import configfile, call;"
        "configfile.read(Path(sys.argv[1])); print('yes' if 'yaml' in sys.modules else 'no')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == imported
