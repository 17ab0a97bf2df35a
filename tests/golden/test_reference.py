"""What administrators read about settings is what the table says: docs/CONFIGURATION.md and the default file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tm_fastcopy.frontend import reference
from tm_fastcopy.frontend.configfile import entries
from tm_fastcopy.frontend.settings import TABLE, Settings

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("path", "text"),
    [(reference.DOCUMENT, reference.document()), (reference.DEFAULT_FILE, reference.default_file())],
    ids=["document", "default file"],
)
def test_the_files_are_up_to_date(path: Path, text: str) -> None:
    assert (CHECKOUT / path).read_text() == text, f"{path} is not what the table says: run `make reference`"


def test_the_default_file_says_nothing() -> None:
    assert Settings.of({}, CHECKOUT / reference.DEFAULT_FILE) == Settings.of({})
    assert entries(reference.default_file(), "F") == {}


def test_without_its_number_signs_the_default_file_says_the_defaults(tmp_path: Path) -> None:
    lines = reference.default_file().splitlines()
    # As its header says: explanations have one blank after the sign.
    bare = "\n".join(line[1:] if line[1:2] != " " or line[1:3] == "  " else line for line in lines)
    found = entries(bare, "F")
    assert {name: entry.text for name, entry in found.items()} == {s.name: s.default for s in TABLE}
    (tmp_path / "f").write_text(bare)
    assert Settings.of({}, tmp_path / "f") == Settings.of({})


def test_every_setting_is_in_the_document() -> None:
    text = reference.document()
    for setting in TABLE:
        assert f"| `{setting.name}` | `{setting.attribute}` |" in text


def test_the_driver_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (reference.DOCUMENT, reference.DEFAULT_FILE):
        path.parent.mkdir()
    reference.main()
    assert (tmp_path / reference.DOCUMENT).read_text() == reference.document()
    assert (tmp_path / reference.DEFAULT_FILE).read_text() == reference.default_file()
