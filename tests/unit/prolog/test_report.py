"""What a report says of its figures: medians, failures as failures, and nothing compared that should not be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.comparison import output, page, report
from bench.comparison.plots import adapt, plots
from bench.comparison.values import CLOUD, Contestant, Report, from_json, to_json
from tests.unit.prolog.reports import cell, fixed


def row(text: str, *words: str) -> str:
    """The first line of a table that has all these words."""
    return next(line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words))


def test_the_matrix_has_medians_and_how_many_times_ours_they_are() -> None:
    line = row(report.matrix(fixed()).render(), "cold")
    cells = [text.strip() for text in line.strip("|").split("|")]
    assert cells == ["cold", "xfs", "1gbit", "2.00", "10.00 (5.0x)", "20.00 (n=1)"]


def test_a_figure_of_one_run_says_so_beside_its_ratio() -> None:
    line = row(report.matrix(fixed()).render(), "growth, 16 MiB")
    cells = [text.strip() for text in line.strip("|").split("|")]
    assert cells[3:5] == ["0.100 (n=1)", "1.00 (10.0x, n=1)"]


def test_the_rounds_that_did_not_happen_are_counted() -> None:
    made = fixed()
    assert "fewer" not in report.rounds_text(made, 1, 120.0)
    text = report.rounds_text(made, 3, 120.0)
    # Failed ones are shown as such: what is left out here was left out on purpose.
    assert text.startswith("3 that count") and "7 of 10 cells have fewer" in text and "120 s" in text


def test_what_is_no_headline_is_marked_and_not_compared() -> None:
    text = report.matrix(fixed()).render()
    assert "[shared] s" in text and "20.00 (n=1)" in text and "x" not in row(text, "20.00").split("20.00")[1]


def test_a_failed_run_is_shown_as_failed_and_compared_with_nothing() -> None:
    made = fixed()
    made.cells[1].failures.append("round 3: short")
    assert "FAILED 1 of 4" in row(report.matrix(made).render(), "cold")
    assert "FAILED 1 of 1" in row(report.matrix(made).render(), "warm")
    assert "FAILED 1 of 4" in row(report.details(made).render(), "cold", "ssh")
    assert "round 3: short" in report.render(made)
    assert report.ratio(made.cells[1], made.cells[0]) is None
    assert report.ratio(made.cells[0], made.cells[1]) is None


def test_details_have_spread_bound_and_costs() -> None:
    line = row(report.details(fixed()).render(), "cold", "fastcopy")
    assert "2.00 (1.00-3.00)" in line and "0.500 s line" in line and " 4.0 " in line and "1000 B" in line
    assert "1.0 MiB" in line


def test_cells_in_which_a_rival_is_faster_are_named() -> None:
    assert report.slower(fixed()) == ["warm, xfs, 1gbit: ssh takes 0.750 s, fastcopy 1.50 s"]


def test_what_is_compared_with_nothing_is_not_among_those_that_are_faster() -> None:
    made = fixed()
    made.drivers[1] = Contestant("ssh", "stock ssh", headline=False)
    assert report.slower(made) == []


def test_phases_are_means_and_what_they_leave_is_said() -> None:
    table = report.phases(fixed())
    assert table is not None
    assert table.headings[4:] == ("oned", "transfer", "outside")
    assert table.rows[0][4:] == ("0.250", "0.500", "0.250")


def test_json_comes_back_as_it_was() -> None:
    assert to_json(from_json(to_json(fixed()))) == to_json(fixed())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "fastcopy-prolog 0"}', '{"schema": "fastcopy-prolog 1"}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no report"):
        from_json(text)


def test_a_cell_without_runs_has_no_median_to_lie_with() -> None:
    with pytest.raises(ValueError):  # statistics.StatisticsError is one
        cell("ssh").middle("prolog")


def test_the_page_needs_nothing_but_itself_and_follows_the_readers_colours() -> None:
    text = page.render(fixed())
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert not re.search(r"url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 3 and "currentColor" in text
    assert "#010203" not in text and "#000000" not in text
    assert "FAILED 1 of 1" in text


def test_the_page_escapes_what_it_quotes() -> None:
    text = page.render(fixed())
    assert "a &lt;fast&gt; one" in text and "&lt;wrong&gt;" in text
    assert "<fast>" not in text and "<wrong>" not in text


def test_letters_of_a_plot_stay_letters() -> None:
    assert re.search(r"<text[^>]*>stock ssh</text>", page.render(fixed()))


def test_a_drawing_takes_the_pages_colour_and_width() -> None:
    drawn = adapt('<?xml?><svg height="10pt" width="20pt" viewBox="0 0 20 10"><text style="font: 10px \'x\'; fill: '
                  '#010203">a</text></svg>')  # fmt: skip
    assert drawn.startswith('<svg width="100%" viewBox="0 0 20 10">') or 'width="100%"' in drawn
    assert "height=" not in drawn and "currentColor" in drawn and "'x'" not in drawn


def test_without_costs_only_the_prolog_is_shown() -> None:
    made = fixed()
    for one in made.cells:
        one.runs = [type(run)(run.prolog, run.prolog, 0, 0.0, 0.0) for run in one.runs]
    assert "peak fe" not in report.render(made)
    assert "Bytes on the wire" not in page.render(made)


def cloudy(ours: float, theirs: float) -> Report:
    """What a cloud's whole seconds are."""
    made = fixed()
    made.cells = [cell(driver, seconds, link=CLOUD) for driver, seconds in (("fastcopy", ours), ("ssh", theirs))]
    return made


@pytest.mark.parametrize(
    ("ours", "theirs", "times"), [(0, 7, None), (7, 0, None), (0, 0, None), (4, 40, None), (5, 10, 2.0)]
)
def test_whole_seconds_are_compared_only_where_they_mean_something(ours: int, theirs: int, times: object) -> None:
    """PETIME - PSTIME is 0 for a clone of less than a second."""
    made = cloudy(ours, theirs)
    assert report.ratio(made.cells[1], made.cells[0]) == times
    assert f"{ours}" in row(report.matrix(made).render(), "cold")
    assert ("x, n=1)" in report.render(made)) == (times is not None)
    page.render(made)


def test_the_json_is_there_though_nothing_can_be_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(made: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(report, "render", broken)
    with pytest.raises(ZeroDivisionError):
        output.write(fixed(), tmp_path / "report.json", None)
    assert from_json((tmp_path / "report.json").read_text()) == fixed()


def test_a_cell_with_a_failed_run_is_no_ordinary_point() -> None:
    made = fixed()
    before = dict(plots(made))
    for one in made.cells:
        if one.driver == "ssh" and one.scenario in ("cold", "growth"):
            one.failures.append("round 3: short")
    after = dict(plots(made))
    assert all("FAILED" not in drawn for drawn in before.values())
    assert "FAILED 1 of 4" in after["Prolog time, link 1gbit"]
    assert after["Growth with the image's size, xfs, 1gbit"].count("FAILED 1 of 2") == 2


def test_a_line_of_a_driver_that_is_not_compared_says_so() -> None:
    made = fixed()
    made.drivers[1] = Contestant("ssh", "stock ssh", headline=False)
    (drawn,) = [drawn for title, drawn in plots(made) if title.startswith("Growth")]
    assert "stock ssh (not compared)" in drawn


def test_a_name_with_dollars_is_drawn_as_it_is() -> None:
    made = fixed()
    made.drivers[1] = Contestant("ssh", "stock $x^2$")
    for one in made.cells:
        one.fs = "a $y^2$ b"
    for title, drawn in plots(made):
        assert ">stock $x^2$<" in drawn
        assert ", a $y^2$ b<" in drawn or title.startswith("Growth")
