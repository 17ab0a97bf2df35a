"""Who runs when, what counts, and what is done about slow and failing drivers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, List, Sequence

import pytest

from bench.comparison import bounds
from bench.comparison.forecast import Forecast, in_words
from bench.comparison.meters import cpu_of
from bench.comparison.method import Bench, firsts, situations, turns
from bench.comparison.scenarios import WARM, Case, scenarios
from bench.comparison.values import Bound, Report
from bench.comparison.work import phases_of
from bench.testbed import LabError
from tests.unit.prolog.stage import HONEST, SIZE, Shell, make_site


def order(rounds: int, *names: str) -> str:
    drivers = [Shell(name, "", 10) for name in names]
    return " ".join(f"{turn}{driver.name}" for turn, driver in turns(drivers, rounds))


def test_drivers_take_turns_and_each_round_begins_with_another() -> None:
    assert order(2, "A", "B", "C") == "0A 0B 0C 1B 1C 1A 2C 2A 2B"
    assert order(1, "A") == "0A 1A"


def test_the_next_case_begins_with_another_driver_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the same driver would be first in every case of which the budget leaves one round."""
    drivers = [Shell("fastcopy", HONEST, 10), Shell("other", HONEST, 20)]
    _, site = make_site(tmp_path, monkeypatch, drivers)
    told: List[str] = []
    report = Report("", "", {}, {}, {}, [driver.contestant for driver in drivers])
    bench = Bench(site, drivers, 1, report, lambda what, left: told.append(what), 60.0)
    bench.run(situations([Case("one"), Case("two"), Case("three")], ["xfs"], ["none"]))
    assert [cell.driver for cell in report.cells] == ["fastcopy", "other"] * 3  # the report's order stays the same
    assert [what.split(": ")[1] for what in told if what.endswith("round 1")] == [
        "other, round 1", "fastcopy, round 1", "fastcopy, round 1", "other, round 1", "other, round 1",
        "fastcopy, round 1",
    ]  # fmt: skip


def test_no_driver_is_first_in_all_cases_on_a_file_system() -> None:
    todo = situations([Case("one"), Case("two"), Case("three")], ["xfs", "ext4"], ["none"])
    begun = {(one.case.scenario, one.fs): first % 2 for one, first in zip(todo, firsts(todo))}
    assert begun == {
        ("one", "xfs"): 0, ("one", "ext4"): 1, ("two", "xfs"): 1, ("two", "ext4"): 0, ("three", "xfs"): 0,
        ("three", "ext4"): 1,
    }  # fmt: skip


def test_situations_are_all_combinations_and_an_uplink_is_a_link_of_its_own() -> None:
    found = situations([Case("cold"), Case("fanout", uplink="200mbit")], ["xfs", "ext4"], ["none", "1gbit"])
    assert [(one.case.scenario, one.fs, one.link) for one in found] == [
        ("cold", "xfs", "none"), ("cold", "ext4", "none"), ("cold", "xfs", "1gbit"), ("cold", "ext4", "1gbit"),
        ("fanout", "xfs", "uplink 200mbit"),
    ]  # fmt: skip


def test_a_case_whose_question_is_another_comes_on_one_file_system() -> None:
    found = situations([Case("growth", once=True)], ["ext4", "xfs"], ["none", "1gbit"])
    assert [(one.fs, one.link) for one in found] == [("ext4", "none"), ("ext4", "1gbit")]


class Ticks:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drivers: List[Shell], case: Case, rounds: int, budget: float = 60.0
) -> Report:
    _, site = make_site(tmp_path, monkeypatch, drivers)
    report = Report("", "", {}, {}, {}, [driver.contestant for driver in drivers])
    Bench(site, drivers, rounds, report, lambda what, left: None, budget, clock=Ticks()).run(
        situations([case], ["xfs"], ["none"])
    )
    return report


def test_the_warm_up_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = [Shell("fastcopy", HONEST, 10), Shell("other", HONEST, 20)]
    report = measure(tmp_path, monkeypatch, drivers, Case("cold"), rounds=3)
    assert [(cell.driver, len(cell.runs)) for cell in report.cells] == [("fastcopy", 3), ("other", 3)]
    assert [len(driver.calls) for driver in drivers] == [4, 4]
    assert all(run.prolog > 0 and run.durable >= run.prolog for cell in report.cells for run in cell.runs)


def test_a_slow_driver_gets_fewer_rounds_but_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = [Shell("fastcopy", HONEST, 10), Shell("other", HONEST, 20)]
    report = measure(tmp_path, monkeypatch, drivers, Case("cold"), rounds=5, budget=0.5)
    assert [len(cell.runs) for cell in report.cells] == [1, 1]


def test_a_driver_that_fails_twice_is_not_tried_again_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = [Shell("fastcopy", HONEST, 10), Shell("broken", "echo it broke >&2; exit 1", 20)]
    report = measure(tmp_path, monkeypatch, drivers, Case("cold"), rounds=4)
    good, bad = report.cells
    assert (len(good.runs), good.failures) == (4, [])
    assert bad.runs == [] and len(bad.failures) == 2 and len(drivers[1].calls) == 2
    assert bad.failures[0].startswith("warm-up") and "it broke" in bad.failures[0]


def test_a_warm_host_got_the_image_before_and_that_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Shell("fastcopy", HONEST, 10)
    driver.remembers = True
    measure(tmp_path, monkeypatch, [driver], Case("warm", state=WARM), rounds=2)
    assert len(driver.calls) == 1 + 3


def test_many_vms_and_disks_are_all_made_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Shell("fastcopy", HONEST, 10)
    report = measure(tmp_path, monkeypatch, [driver], Case("x", vms=3, also=("system",)), rounds=1)
    (cell,) = report.cells
    assert cell.failures == [] and cell.data == 3 * 2 * SIZE
    assert len(driver.calls) == 2 * 3 * 2 and len(set(driver.calls)) == 2 * 3


@pytest.mark.parametrize("linked", ["cp", "ln -s"])
def test_a_persistent_image_is_linked_and_its_change_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: str
) -> None:
    """A driver whose disks lie beside the images makes a symbolic link, and has nothing to bring back."""
    driver = Shell("other", HONEST, 20)
    driver.linked = linked
    if linked == "ln -s":
        monkeypatch.setattr(driver, "persistent", lambda lab, disk, image: (lab.fe, disk.path, image))
    report = measure(tmp_path, monkeypatch, [driver], Case("writeback", "contiguous", change="contiguous"), rounds=2)
    (cell,) = report.cells
    assert (cell.failures, len(cell.runs), driver.calls) == ([], 2, [])


def test_a_link_to_something_else_is_no_persistent_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Shell("other", HONEST, 20)
    driver.linked = "to_another() { ln -s /etc/passwd $2; }; to_another"
    monkeypatch.setattr(driver, "persistent", lambda lab, disk, image: (lab.fe, disk.path, image))
    report = measure(tmp_path, monkeypatch, [driver], Case("writeback", "contiguous", change="contiguous"), rounds=1)
    (cell,) = report.cells
    assert cell.runs == [] and cell.failures and all("link" in failure for failure in cell.failures)


def test_nothing_is_left_of_a_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(tmp_path, monkeypatch, [Shell("fastcopy", HONEST, 10)], Case("cold"), rounds=1)
    assert list((tmp_path / "datastores/11").iterdir()) == []


def test_all_scenarios_of_the_issue_exist() -> None:
    wanted = ["cold", "warm", "tiny", "incompressible", "update", "stampede", "multidisk", "writeback", "fanout"]
    assert set(wanted) <= set(scenarios())
    assert [case.hosts for case in scenarios()["fanout"].cases] == [1, 2, 4, 8]
    assert scenarios()["stampede"].cases[0].vms == 10
    assert len(scenarios()["multidisk"].cases[0].images) == 3


def test_the_forecast_learns_by_kind() -> None:
    forecast = Forecast(1000.0)
    assert forecast.left(["a", "b"]) == 0.0
    forecast.add("a", 10.0)
    forecast.add("a", 20.0)
    forecast.add("b", 5.0)
    assert forecast.left(["a", "b", "b"]) == 25.0
    assert forecast.left(["unknown"]) == 10.0
    assert forecast.left(["a"] * 3) == 45.0
    assert (in_words(2), in_words(61), in_words(200)) == ("5 s", "60 s", "3 min")


def test_the_forecast_knows_that_a_slow_driver_gets_fewer_rounds() -> None:
    forecast = Forecast(45.0)
    forecast.add("slow", 60.0)
    assert forecast.left(["slow"] * 3) == 60.0
    forecast.add("slow", 60.0)
    assert forecast.left(["slow"] * 3) == 0.0
    forecast.add("quick", 20.0)
    assert forecast.left(["quick"] * 3) == 40.0


def test_cpu_time_is_read_with_that_of_reaped_children() -> None:
    stat = "17 (a (b) c) S 1 1 1 0 -1 4194304 1 2 3 4 100 50 30 20 20 0 1 0 5 6 7"
    assert cpu_of(stat) == 2.0


def test_phases_are_read_from_the_log_line() -> None:
    line = "INFO: clone: /a is /b: lanes, on the wire 1.0 MiB; 0.512 s (oned 0.012, host 0.100, transfer 0.400)"
    assert phases_of([line, "INFO: clone: nothing (of the kind)", line]) == {
        "oned": 0.024, "host": 0.2, "transfer": 0.8,
    }  # fmt: skip


def test_what_was_measured_is_saved_after_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, seen = Shell("fastcopy", HONEST, 10), []
    _, site = make_site(tmp_path, monkeypatch, [driver])
    report = Report("", "", {}, {}, {}, [driver.contestant])
    save = lambda: seen.append(sum(len(cell.runs) for cell in report.cells))  # noqa: E731
    cases = [Case("cold"), Case("again")]
    Bench(site, [driver], 1, report, lambda what, left: None, 60.0, save).run(situations(cases, ["xfs"], ["none"]))
    assert seen == [1, 2]


# -- bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reflinks", [True, False])
def test_a_copy_is_the_median_of_several_of_a_durable_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reflinks: bool
) -> None:
    """Pages that are still to be written would be counted to the first copy."""
    lab, site = make_site(tmp_path, monkeypatch, [])
    done: List[str] = []
    original, times = lab.hosts["host1"].run, iter([0.0, 1.0, 10.0, 19.0, 20.0, 22.0])

    def run(argv: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[bytes]:
        words = [str(word).replace("always", "auto") for word in argv]
        if "--reflink=always" in argv and not reflinks:
            return subprocess.CompletedProcess(words, 1, b"", b"")
        done.append(str(argv[1]))
        return original(words, **options)

    def clock() -> float:
        done.append("clock")
        return next(times)

    monkeypatch.setattr(lab.hosts["host1"], "run", run)
    monkeypatch.setattr(bounds.os, "fsync", lambda fd: done.append("fsync"))
    assert bounds.copy_bound(site, "host1", "system", clock) == Bound(
        2.0, "reflink on the host" if reflinks else "copy on the host"
    )
    assert done.index("fsync") < done.index("clock") and done.count("clock") == 6
    assert sorted(path.name for path in lab.datastores.iterdir()) == [".bench"]


# -- what fails outside a turn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["line_rate", "disk_rate", "ssh_rates"])
def test_a_bound_that_cannot_be_measured_is_a_note_and_drivers_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    driver = Shell("fastcopy", HONEST, 10)
    _, site = make_site(tmp_path, monkeypatch, [driver])

    def broken(lab: object, host: str) -> float:
        raise LabError("no such program")

    monkeypatch.setattr(bounds, what, broken)
    report = Report("", "", {}, {}, {}, [driver.contestant])
    todo = situations([Case("one"), Case("two")], ["xfs"], ["none"])
    Bench(site, [driver], 1, report, lambda what, left: None, 60.0).run(todo)
    assert [len(cell.runs) for cell in report.cells] == [1, 1]
    assert all((cell.bound is None) == (what != "ssh_rates") for cell in report.cells)
    assert report.notes and all("no such program" in note for note in report.notes)


@pytest.mark.parametrize("what", ["trim", "save", "rate"])
def test_what_fails_around_a_case_is_a_note_and_the_next_one_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    driver = Shell("fastcopy", HONEST, 10)
    lab, site = make_site(tmp_path, monkeypatch, [driver])
    hits: List[int] = []

    def broken(*_: object) -> None:
        hits.append(1)
        if len(hits) == 1:
            raise OSError("no space left")

    if what != "save":
        monkeypatch.setattr(site if what == "trim" else lab, what, broken)
    report = Report("", "", {}, {}, {}, [driver.contestant])
    todo = situations([Case("one"), Case("two")], ["xfs"], ["none"])
    save = broken if what == "save" else lambda: None
    Bench(site, [driver], 1, report, lambda what, left: None, 60.0, save).run(todo)
    assert [len(cell.runs) for cell in report.cells] == ([1] if what == "rate" else [1, 1])
    assert len(report.notes) == 1 and "no space left" in report.notes[0]
