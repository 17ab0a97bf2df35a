"""What doctor says of facts: each thing that can be wrong, by itself, in an installation that is well otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, List

import pytest

from tm_fastcopy.commands import checks
from tm_fastcopy.commands.checks import FAILED, NOTE, OK, Check, FrontEndFacts, HostFacts
from tm_fastcopy.core.examine_messages import DatastoreExamined, Examined
from tm_fastcopy.frontend.examination import Clock
from tm_fastcopy.frontend.oned import Datastore, HostRecord

BASE = "/var/lib/one/datastores/100"
SYSTEM = Datastore(100, BASE, True, {"SHARED": "NO"}, "fast", "fastcopy")
IMAGES = Datastore(1, "/var/lib/one/datastores/1", False, {"LN_TARGET": "SYSTEM", "CLONE_TARGET": "SYSTEM"}, "default",
                   "fastcopy")  # fmt: skip
QCOW2 = Datastore(5, "/var/lib/one/datastores/5", False, {"TM_MAD_SYSTEM": "ssh"}, "images", "qcow2")
OTHER = Datastore(0, "/var/lib/one/datastores/0", True, {}, "system", "ssh")

WELL = FrontEndFacts(
    version="1", python="3.11", edits={"/etc/one/oned.conf": ([], [])}, configuration="", transfers=15, threads=30,
    entries=[], state="", daemon="no daemon runs now", oned="", datastores=[SYSTEM, IMAGES, OTHER], remotes="ab",
)  # fmt: skip
EXAMINED = Examined("3.11.2", "7.2", "oneadmin", "oneadmin", "ab")
STORE = DatastoreExamined("xfs", True, True, 100 << 30, 50 << 30, True)
HOST = HostFacts(
    HostRecord(3, "host3", 2, 0, "kvm"), examined=EXAMINED, clock=Clock(0.1, 0.05), stores={BASE: STORE},
    reached={"host4": ""},
)  # fmt: skip


def host(facts: HostFacts) -> List[Check]:
    return checks.host(facts, "ab", "oneadmin")


def not_well(found: List[Check]) -> List[Check]:
    """What is not; each such check says what to do, and in a sentence that reads as one."""
    bad = [check for check in found if check.state != OK]
    for check in bad:
        assert check.advice and len(check.sentence) > 15 and "\n" not in check.sentence + check.advice
    return bad


def test_an_installation_that_is_well_is_well() -> None:
    found = checks.front_end(WELL) + host(HOST)
    assert not_well(found) == []
    assert len({(check.where, check.name, check.sentence) for check in found}) == len(found)
    assert {check.name for check in found} >= {
        "version", "oned.conf", "settings", "oned", "daemon", "datastores", "one_tm's slots", "entry points", "ssh",
        "python", "remotes", "libvirt", "clock", "space", "reflink", "ssh to hosts",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "state", "name", "words"),
    [
        ({"edits": {"/e/oned.conf": (["tm-driver"], [])}}, FAILED, "oned.conf", ["tm-driver", "--enable"]),
        ({"edits": {"/e/oned.conf": ([], ["two -s"])}}, FAILED, "oned.conf", ["two -s", "--dry-run"]),
        ({"configuration": "fastcopy.yaml, line 3: no"}, FAILED, "settings", ["line 3"]),
        ({"entries": ["clone"]}, FAILED, "entry points", ["clone", "install.sh"]),
        ({"state": "/var cannot be written by x"}, FAILED, "state", ["/var"]),
        ({"daemon_problem": "the daemon has not answered for 60 s; see its log"}, FAILED, "daemon",
         ["60 s", "end that"]),
        ({"daemon_version": "0.9"}, FAILED, "daemon", ["of release 0.9, and 1 is installed", "SIGTERM"]),
        ({"stale": True}, NOTE, "oned", ["after oned was started", "restart oned"]),
        ({"image_tm": ["qcow2"], "datastores": [SYSTEM, QCOW2]}, FAILED, "datastores",
         ["5 (images) cannot use", "TM_MAD_SYSTEM", "onedatastore update 5"]),
        ({"oned": "oned does not answer"}, FAILED, "oned", ["start oned"]),
        ({"threads": 15}, NOTE, "one_tm's slots", ["--threads 30"]),
        ({"threads": None}, NOTE, "one_tm's slots", ["-t"]),
        ({"datastores": [OTHER, IMAGES]}, NOTE, "datastores", ["no system datastore", "onedatastore update"]),
        ({"datastores": [replace(SYSTEM, attributes={})]}, FAILED, "datastores",
         ["100 (fast) lacks SHARED", "onedatastore update 100"]),
        ({"datastores": [SYSTEM, replace(IMAGES, attributes={"CLONE_TARGET": "SYSTEM"})]}, FAILED, "datastores",
         ["1 (default) lacks LN_TARGET"]),
        ({"wrong_settings": {100: "FASTCOPY_LANES is 'x' in datastore 100"}}, FAILED, "settings", ["FASTCOPY_LANES"]),
    ],
)  # fmt: skip
def test_what_can_be_wrong_on_the_front_end(changes: Any, state: str, name: str, words: List[str]) -> None:
    (check,) = not_well(checks.front_end(replace(WELL, **changes)))
    assert (check.where, check.name, check.state) == (checks.FRONT_END, name, state)
    for word in words:
        assert word in f"{check.sentence} {check.advice}"


@pytest.mark.parametrize(
    ("changes", "state", "name", "words"),
    [
        ({"problem": "host3 cannot be reached with ssh: no route", "unreachable": True}, FAILED, "ssh",
         ["no route", "sudo -u oneadmin ssh host3 true"]),
        ({"problem": "host3 has no python3, which the agent needs"}, FAILED, "agent", ["python3", "on the host"]),
        ({"bulk": "host3 did not start the agent within 30 s"}, FAILED, "lanes", ["ssh host3"]),
        ({"examined": EXAMINED.__class__("3.9", "7", "root", "oneadmin", "ab")}, FAILED, "user", ["root", "oneadmin"]),
        ({"examined": EXAMINED.__class__("3.9", "7", "oneadmin", "oneadmin", "cd")}, FAILED, "remotes",
         ["not those of the front-end", "onehost sync --force"]),
        ({"examined": EXAMINED.__class__("3.9", "7", "oneadmin", "oneadmin", "")}, FAILED, "remotes",
         ["are not there", "onehost sync --force"]),
        ({"examined": EXAMINED.__class__("3.9", "", "oneadmin", "oneadmin", "ab")}, NOTE, "qemu-img", ["qemu-utils"]),
        ({"examined": EXAMINED.__class__("3.9", "7", "oneadmin", "libvirt-qemu", "ab")}, FAILED, "libvirt",
         ["libvirt-qemu", 'user = "oneadmin"', "qemu.conf"]),
        ({"examined": EXAMINED.__class__("3.9", "7", "oneadmin", "", "ab")}, NOTE, "libvirt", ["no virsh"]),
        ({"examined": EXAMINED.__class__("3.9", "7", "oneadmin", "?", "ab")}, NOTE, "libvirt", ["virsh"]),
        ({"clock": Clock(3601.0, 0.1)}, FAILED, "clock", ["3601.0 s ahead of", "chrony"]),
        ({"clock": Clock(-5.0, 0.1)}, NOTE, "clock", ["5.0 s behind"]),
        ({"stores": {BASE: DatastoreExamined("xfs", True, True, 100 << 30, 1 << 30, True)}}, FAILED, "space",
         ["1.0 GiB of 100 GiB free", "make room"]),
        ({"stores": {BASE: DatastoreExamined("xfs", True, True, 100 << 30, 9 << 30, True)}}, NOTE, "space",
         ["nearly full"]),
        ({"stores": {BASE: DatastoreExamined("ext4", True, False, 100 << 30, 50 << 30, True)}}, NOTE, "reflink",
         ["ext4", "XFS or btrfs"]),
        ({"stores": {BASE: DatastoreExamined("xfs", False, False, 100 << 30, 50 << 30, True)}}, FAILED, "datastore",
         ["cannot be written", "mounted"]),
        ({"stores": {}, "store_problems": {BASE: "opening the datastore: No such file or directory"}}, FAILED,
         "datastore", ["No such file", f"mkdir -p {BASE}"]),
        ({"reached": {"host4": "Permission denied (publickey)"}}, FAILED, "ssh to hosts",
         ["cannot log into host4", "publickey", "tried on host3"]),
        ({"offline": True}, NOTE, "ssh", ["offline", "onehost enable host3"]),
    ],
)  # fmt: skip
def test_what_can_be_wrong_on_a_host(changes: Any, state: str, name: str, words: List[str]) -> None:
    (check,) = not_well(host(replace(HOST, **changes)))
    assert (check.where, check.name, check.state) == ("host3", name, state)
    for word in words:
        assert word in f"{check.sentence} {check.advice}"


def test_an_image_datastore_that_names_us_is_well() -> None:
    named = replace(QCOW2, attributes={"TM_MAD_SYSTEM": "ssh, fastcopy"})
    assert not_well(checks.front_end(replace(WELL, image_tm=["qcow2"], datastores=[SYSTEM, named]))) == []
    assert not_well(checks.front_end(replace(WELL, datastores=[SYSTEM, QCOW2]))) == []  # nobody asked for it


def test_a_clock_is_not_blamed_for_a_slow_answer() -> None:
    assert not_well(host(replace(HOST, clock=Clock(11.0, 9.5)))) == []


def test_a_datastore_that_is_not_there_yet_is_well() -> None:
    found = host(replace(HOST, stores={BASE: replace(STORE, present=False)}))
    assert not_well(found) == []
    assert f"{BASE} (which the first VM makes): xfs, 50.0 GiB" in " ".join(check.sentence for check in found)


def test_a_host_without_kvm_is_not_asked_for_libvirt() -> None:
    examined = EXAMINED.__class__("3.9", "7", "oneadmin", "", "ab")
    assert not_well(host(replace(HOST, record=HostRecord(3, "host3", 2, 0, "lxc"), examined=examined))) == []


def test_every_host_is_tried_from_another_one() -> None:
    assert checks.circle(["a", "b", "c"], False) == {"a": {"b"}, "b": {"c"}, "c": {"a"}}
    assert checks.circle(["a", "b", "c"], True)["b"] == {"a", "c"}
    assert checks.circle(["a"], False) == {"a": frozenset()}
    assert checks.circle([], False) == {}
