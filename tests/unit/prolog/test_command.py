"""bench/prolog's command: whatever happens, what was measured is shown, and what cannot be written is said first."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List

import pytest

from bench.comparison import __main__ as command
from bench.comparison import output
from bench.comparison.values import from_json
from bench.testbed import LabError
from tests.unit.prolog.reports import cell, fixed

WORDS = ["--synthetic", "--scenarios", "tiny", "--drivers", "fastcopy"]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """A lab of nothing. What it did."""
    found: List[str] = []

    @contextlib.contextmanager
    def up(config: Any) -> Iterator[Any]:
        found.append("up")
        yield SimpleNamespace(oned=SimpleNamespace(unknown_calls=[]))
        found.append("down")

    monkeypatch.setattr(command, "Lab", SimpleNamespace(up=up))
    monkeypatch.setattr(command, "Site", lambda lab, pictures: None)
    monkeypatch.setattr(command, "_drivers", lambda options, checkout: [])
    monkeypatch.setattr(command, "_handle_signals", lambda: None)
    return found


def bench(end: BaseException | None, runs: int = 1) -> Any:
    """Stands for Bench: measures a cell, and ends so."""

    def make(site: Any, drivers: Any, rounds: int, report: Any, *more: Any) -> Any:
        def run(todo: Any) -> None:
            report.cells += [cell("fastcopy", 1.0)] * runs
            if end:
                raise end

        return SimpleNamespace(run=run)

    return make


@pytest.mark.parametrize(
    ("end", "code", "note"),
    [(None, 0, ""), (KeyboardInterrupt(), 130, "interrupted"), (LabError("the lab broke"), 1, "the lab broke"),
     (OSError("no space"), 1, "no space")],
)  # fmt: skip
def test_what_was_measured_is_shown_however_it_ends(
    begun: List[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    end: BaseException | None, code: int, note: str,
) -> None:  # fmt: skip
    file = tmp_path / "report.json"
    monkeypatch.setattr(command, "Bench", bench(end))
    assert command.main([*WORDS, "--json", str(file)]) == code
    report = from_json(file.read_text())
    assert len(report.cells) == 1 and note in " ".join(report.notes) and bool(report.notes) == bool(note)
    assert "cold" in capsys.readouterr().out


def test_an_end_before_anything_was_measured_is_one_sentence(
    begun: List[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Bench", bench(LabError("the lab broke"), runs=0))
    assert command.main(WORDS) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "prolog: the lab broke\n")


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("where", ["nowhere/x", "."])
@pytest.mark.parametrize("kind", [[], ["--cloud", "--image", "5", "--host", "host1"]])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_begun(
    begun: List[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, where: str, kind: List[str]
) -> None:
    assert command.main([*WORDS, *kind, option, str(tmp_path / where)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert begun == []


def test_a_page_without_matplotlib_is_refused_before_anything_is_begun(
    begun: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert command.main([*WORDS, "--html", str(tmp_path / "x.html")]) == 1
    assert "needs matplotlib" in capsys.readouterr().err
    assert begun == []


def test_a_report_that_cannot_be_saved_is_printed_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError):
        output.write(fixed(), tmp_path / "nowhere/report.json", None)
    assert "stock ssh" in capsys.readouterr().out
