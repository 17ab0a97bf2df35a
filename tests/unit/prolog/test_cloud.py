"""bench/prolog --cloud against a cloud in memory: it asks, is bounded, and leaves nothing behind."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from bench.comparison import cloud
from bench.comparison.__main__ import main
from bench.comparison.cloud import Machines, measure
from bench.comparison.oned_api import CloudError
from bench.comparison.places import Plan, make_plan, name_of
from bench.comparison.places import images as parse_images
from bench.comparison.report import matrix
from bench.comparison.values import Contestant, Report
from bench.testbed.oned import calls, life, objects


class Cloud:
    """oned's stand-in, without a server: documents and lives of VMs are the lab's own.

    `driver` runs an entry point; `calls` is what was asked, `before` is called with each method first.
    """

    def __init__(self) -> None:
        self.state = objects.nothing()
        self.calls: List[str] = []
        self.drivers: List[Tuple[str, str]] = []
        self.before: Callable[[str], None] = lambda method: None
        self.code = 0
        for number, type, driver in ((0, "SYSTEM", "fastcopy"), (1, "IMAGE", "fastcopy"), (100, "SYSTEM", "ssh")):
            store = objects.datastore(number, f"ds-{number}", type, driver, f"/ds/{number}", {})
            self.state["datastores"][str(number)] = store
        self.state["images"]["5"] = objects.image(5, "debian", 1, "/ds/1/debian", 4096, "raw", False, "OS")
        for number, name, state in ((0, "host1", 2), (1, "host2", 2), (2, "ill", 3)):
            self.state["hosts"][str(number)] = objects.host(number, name, state, {})
        self.life = life.Life(lambda how: how(self.state), self._run, lambda work: work())

    def _run(self, driver: str, action: str, words: List[str]) -> int:
        self.drivers.append((driver, f"{action} {words[-3] if action == 'clone' else words[0]}"))
        return self.code if action == "clone" else 0

    def __call__(self, method: str, *arguments: Any) -> Any:
        self.before(method)
        self.calls.append(method)
        asked = ["a:b", *arguments]
        done = self.life.answer(method, asked) if method in calls.CHANGES else calls.answer(self.state, method, asked)
        if not done[0]:
            raise CloudError(str(done[1]))
        return done[1]

    def alive(self) -> List[str]:
        return [vm["NAME"] for vm in self.state["vms"].values() if vm["STATE"] != life.DONE]


def machines(api: Cloud) -> Machines:
    ticks = iter(range(1_000_000))
    return Machines(api, 10.0, lambda: float(next(ticks)), lambda seconds: None)


def report() -> Report:
    return Report("", "", {}, {}, {}, [])


def test_the_plan_is_every_fitting_datastore_on_every_host() -> None:
    plan = make_plan(Cloud(), [{5: ""}], ["host1", "host2"], [], 3)
    assert [(place.driver, place.datastore, place.host_name) for place in plan.places] == [
        ("fastcopy", 0, "host1"), ("fastcopy", 0, "host2"),
    ]  # fmt: skip
    assert plan.count == 6
    assert "creates 6 VMs" in plan.words() and "datastore 0 (ds-0) on host2" in plan.words()


def test_a_datastore_of_another_driver_fits_if_the_image_datastore_says_so() -> None:
    api = Cloud()
    api.state["datastores"]["1"]["TEMPLATE"]["TM_MAD_SYSTEM"] = "ssh, qcow2"
    assert [place.datastore for place in make_plan(api, [{5: ""}], ["host1"], [], 1).places] == [0, 100]
    api.state["datastores"]["1"]["TEMPLATE"]["COMPATIBLE_SYS_DS"] = "100"
    assert [place.datastore for place in make_plan(api, [{5: ""}], ["host1"], [], 1).places] == [100]


def with_stock() -> Cloud:
    """A cloud in which image 12 is what 5 is, in a datastore of the stock driver."""
    api = Cloud()
    api.state["datastores"]["101"] = objects.datastore(101, "ds-101", "IMAGE", "ssh", "/ds/101", {})
    api.state["images"]["12"] = objects.image(12, "debian-ssh", 101, "/ds/101/debian", 4096, "raw", False, "OS")
    return api


def test_images_of_two_drivers_are_one_row_and_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    api, made = with_stock(), report()
    made.drivers = [Contestant(name, name) for name in ("fastcopy (0)", "ssh (100)")]
    plan = make_plan(api, [parse_images("fastcopy=5,ssh=12")], ["host1"], [], 2)
    monkeypatch.setattr(Machines, "prolog", lambda self, number, place: {"fastcopy": 10.0, "ssh": 20.0}[place.driver])
    measure(plan, machines(api), made, lambda what: None)
    assert [(cell.scenario, cell.variant, cell.driver) for cell in made.cells] == [
        ("images 5, 12", "first VM", "fastcopy (0)"), ("images 5, 12", "first VM", "ssh (100)"),
        ("images 5, 12", "next VM", "fastcopy (0)"), ("images 5, 12", "next VM", "ssh (100)"),
    ]  # fmt: skip
    assert "20 (2.0x, n=1)" in matrix(made).render()


def test_one_image_is_a_row_of_its_own() -> None:
    places = make_plan(with_stock(), [parse_images("5"), parse_images("12")], ["host1"], [], 1).places
    assert [place.row for place in places] == ["image 5", "image 12"]


def test_a_cell_is_named_by_the_driver_that_ran() -> None:
    """That is the image datastore's; the system datastore's is named where it is another one."""
    api = Cloud()
    api.state["datastores"]["1"]["TEMPLATE"]["TM_MAD_SYSTEM"] = "ssh"
    places = make_plan(api, [{5: ""}], ["host1"], [], 1).places
    assert [name_of(place) for place in places] == ["fastcopy (0)", "fastcopy on ssh (100)"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh=5,fastcopy=12", "image 5 has the driver fastcopy, not ssh"),
        ("fastcopy=5,fastcopy=6", "two of the images 5, 6 have the same driver"),
        ("fastcopy=5,ssh=13", "are not of the same size"),
    ],
)
def test_pairs_that_make_no_comparison_are_refused(text: str, words: str) -> None:
    api = with_stock()
    for number, store, size in ((6, 1, 4096), (13, 101, 10)):
        api.state["images"][str(number)] = objects.image(number, f"{number}", store, "/x", size, "raw", False, "OS")
    with pytest.raises(CloudError, match=words):
        make_plan(api, [parse_images(text)], ["host1"], [], 1)


@pytest.mark.parametrize("text", ["", "x", "ssh=", "=5", "fastcopy=5,12", "5,12", "fastcopy=5,ssh=5", "-1"])
def test_what_is_no_image_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="neither ID nor DRIVER=ID,"):
        parse_images(text)


@pytest.mark.parametrize(
    ("images", "hosts", "stores", "words"),
    [
        ([{5: ""}], ["nowhere"], [], "no host nowhere"),
        ([{5: ""}], ["ill"], [], "not in state MONITORED"),
        ([{6: ""}], ["host1"], [], "6"),
        ([{5: ""}], ["host1"], [100], "no system datastore"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_created(
    images: List[Dict[int, str]], hosts: List[str], stores: List[int], words: str
) -> None:
    api = Cloud()
    with pytest.raises(CloudError, match=words):
        make_plan(api, images, hosts, stores, 1)
    assert api.state["vms"] == {}


def test_each_vm_is_timed_by_oned_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    api, made = Cloud(), report()
    clock = iter([100, 107])  # PSTIME and PETIME
    plan = Plan(make_plan(api, [{5: ""}], ["host1"], [], 1).places, 1)
    monkeypatch.setattr(life.time, "time", lambda: next(clock, 200) if api.state["vms"] else 50)
    measure(plan, machines(api), made, lambda what: None)
    (cell,) = made.cells
    assert (cell.driver, cell.variant, cell.fs, cell.failures) == ("fastcopy (0)", "first VM", "host1", [])
    assert [run.prolog for run in cell.runs] == [7.0]
    assert api.alive() == [] and made.notes == []
    assert [driver for driver, _ in api.drivers] == ["fastcopy", "fastcopy"]
    assert api.drivers[1][1].startswith("delete host1:/ds/0/")


def test_the_first_vm_on_a_host_is_a_case_of_its_own() -> None:
    api, made = Cloud(), report()
    measure(make_plan(api, [{5: ""}], ["host1"], [], 4), machines(api), made, lambda what: None)
    assert [(cell.variant, len(cell.runs)) for cell in made.cells] == [("first VM", 1), ("next VM", 3)]


def test_a_prolog_that_fails_is_shown_and_its_vm_deleted() -> None:
    api, made = Cloud(), report()
    api.code = 1
    measure(make_plan(api, [{5: ""}], ["host1"], [], 1), machines(api), made, lambda what: None)
    assert made.cells[0].runs == [] and "the prolog of VM 10000 failed" in made.cells[0].failures[0]
    assert api.alive() == []


@pytest.mark.parametrize("where", ["one.vm.deploy", "one.vm.info", "one.vm.recover"])
def test_an_interrupt_leaves_no_vm(where: str) -> None:
    api, made = Cloud(), report()
    hits = []

    def interrupt(method: str) -> None:
        if method == where and not hits:
            hits.append(method)
            raise KeyboardInterrupt

    api.before = interrupt
    ending = measure(make_plan(api, [{5: ""}], ["host1"], [], 3), machines(api), made, lambda what: None)
    assert (ending.interrupted, ending.left) == (True, False)
    assert hits and api.state["vms"] and api.alive() == []
    assert made.notes == ["interrupted; what had been created was deleted"]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_a_second_one_does_not_stop_the_deletion(first: signal.Signals) -> None:
    api, made = Cloud(), report()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def kill(method: str) -> None:
        if method == "one.vm.deploy":
            os.kill(os.getpid(), first)
        elif method in ("one.vmpool.info", "one.vm.recover"):
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)

    api.before = kill
    ending = measure(make_plan(api, [{5: ""}], ["host1"], [], 3), machines(api), made, lambda what: None)
    assert (ending.interrupted, ending.left, api.alive()) == (True, False, [])
    assert len(api.state["vms"]) == 1
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_after_an_interrupt_nothing_is_said_to_be_gone_that_is_not() -> None:
    api, made = Cloud(), report()

    def fail(method: str) -> None:
        if method == "one.vm.deploy":
            raise KeyboardInterrupt
        if method == "one.vm.recover":
            raise CloudError("not authorized")

    api.before = fail
    ending = measure(make_plan(api, [{5: ""}], ["host1"], [], 3), machines(api), made, lambda what: None)
    assert (ending.interrupted, ending.left) == (True, True)
    assert made.notes[0].startswith("interrupted; not all") and "VM 10000 is still there" in made.notes[1]


def test_a_list_of_vms_that_cannot_be_read_leaves_the_names_to_look_for() -> None:
    api, made = Cloud(), report()

    def fail(method: str) -> None:
        if method == "one.vmpool.info":
            raise CloudError("oned does not answer")

    api.before = fail
    ending = measure(make_plan(api, [{5: ""}], ["host1"], [], 1), machines(api), made, lambda what: None)
    assert ending.left
    assert f"fastcopy-bench-{os.getpid()}-" in made.notes[0] and "oned does not answer" in made.notes[0]


def test_all_that_is_left_is_asked_to_go_before_any_is_waited_for() -> None:
    api = Cloud()
    found = machines(api)
    for number in range(3):
        api("one.vm.allocate", f'NAME = "{found.prefix}{number}"\nDISK = [ IMAGE_ID = "5" ]', True)
    api.calls.clear()
    assert found.leftovers() == []
    assert api.calls == ["one.vmpool.info", *["one.vm.recover"] * 3, *["one.vm.info"] * 3]


@pytest.mark.parametrize("how", ["fails", "takes too long"])
def test_a_vm_whose_prolog_went_wrong_is_gone_before_the_next(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api, made = Cloud(), report()
    there: List[List[str]] = []
    api.before = lambda method: there.append(api.alive()) if method == "one.vm.allocate" else None
    if how == "fails":
        api.code = 1
    else:
        monkeypatch.setattr(api.life, "_prolog", lambda number, lines: None)
    measure(make_plan(api, [{5: ""}], ["host1"], [], 3), machines(api), made, lambda what: None)
    assert there == [[], [], []]
    assert sum(len(cell.failures) for cell in made.cells) == 3


def test_what_was_measured_is_saved_after_every_vm() -> None:
    api, made, seen = Cloud(), report(), []
    save = lambda: seen.append(sum(len(cell.runs) for cell in made.cells))  # noqa: E731
    measure(make_plan(api, [{5: ""}], ["host1"], [], 3), machines(api), made, lambda what: None, save)
    assert seen == [1, 2, 3, 3]


def test_an_interrupt_while_a_vm_is_created_leaves_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """oned has created it, and we have not heard its number: it is found by its name."""
    api, made = Cloud(), report()
    answer = api.life.answer

    def interrupted(method: str, parameters: List[Any]) -> List[Any]:
        done = answer(method, parameters)
        if method == "one.vm.allocate":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(api.life, "answer", interrupted)
    ending = measure(make_plan(api, [{5: ""}], ["host1"], [], 1), machines(api), made, lambda what: None)
    assert ending.interrupted
    assert len(api.state["vms"]) == 1 and api.alive() == []


def test_strangers_vms_are_left_alone() -> None:
    api, made = Cloud(), report()
    api("one.vm.allocate", 'NAME = "fastcopy-bench-other"\nDISK = [ IMAGE_ID = "5" ]', True)
    measure(make_plan(api, [{5: ""}], ["host1"], [], 1), machines(api), made, lambda what: None)
    assert api.alive() == ["fastcopy-bench-other"]


def test_a_vm_that_cannot_be_deleted_is_named_and_no_other_is_made() -> None:
    api, made = Cloud(), report()

    def refuse(method: str) -> None:
        if method == "one.vm.recover":
            raise CloudError("oned refuses one.vm.recover: not authorized")

    api.before = refuse
    ending = measure(make_plan(api, [{5: ""}], ["host1"], [], 3), machines(api), made, lambda what: None)
    assert "stopped" in made.notes[0] and len(api.state["vms"]) == 1
    assert "VM 10000 is still there" in made.notes[1] and "onevm recover --delete 10000" in made.notes[1]
    assert ending.left and [len(cell.runs) for cell in made.cells] == [1]


# -- the command -----------------------------------------------------------------------------------------------

ARGUMENTS = ["--cloud", "--image", "5", "--host", "host1", "--rounds", "2"]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    found = Cloud()
    found.endpoint = "http://oned/RPC2"  # type: ignore[attr-defined]
    monkeypatch.setattr(cloud, "OnedApi", lambda environ: found)
    monkeypatch.setattr(cloud.signal, "signal", lambda number, handler: None)
    return found


def test_it_says_what_it_will_do_and_asks_first(
    api: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda question: "no")
    assert main(ARGUMENTS) == 1
    said = capsys.readouterr().err
    assert "creates 3 VMs" in said and "Nothing was done" in said
    assert api.state["vms"] == {}


def test_nobody_there_to_answer_means_no(api: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert main(ARGUMENTS) == 1
    assert api.state["vms"] == {}


def test_more_vms_than_allowed_are_refused(api: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--yes", "--most", "2"]) == 1
    assert "would be 3 VMs" in capsys.readouterr().err
    assert api.state["vms"] == {}


def test_the_same_table_and_json(api: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert main([*ARGUMENTS, "--yes", "--json", str(file)]) == 0
    assert "fastcopy (0) s" in capsys.readouterr().out
    found: Dict[str, Any] = json.loads(file.read_text())
    assert [len(cell["runs"]) for cell in found["cells"]] == [1, 2]
    assert api.alive() == []


@pytest.mark.parametrize(
    "arguments", [["--cloud"], ["--cloud", "--image", "5"], ["--drivers", "nonesuch"], ["--scenarios", "nonesuch"]]
)
def test_bad_options_are_one_sentence(arguments: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("prolog: ") and said.count("\n") == 1
