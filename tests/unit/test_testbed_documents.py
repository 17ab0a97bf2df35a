"""The stand-in's XML: equal to the golden files, valid against OpenNebula's schemas where a checkout is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.errors import LabError
from bench.testbed.oned import calls, objects

GOLDEN = Path(__file__).parents[1] / "golden" / "oned"
AUTH = "oneadmin:oneadmin"

# Golden file -> (call, arguments, schema).
CASES: dict[str, tuple[str, list[Any], str]] = {
    "datastore": ("one.datastore.info", [1], "datastore"),
    "datastorepool": ("one.datastorepool.info", [], "datastore_pool"),
    "host": ("one.host.info", [0], "host"),
    "hostpool": ("one.hostpool.info", [], "host_pool"),
    "image": ("one.image.info", [7], "image"),
    "image_persistent": ("one.image.info", [8], "image"),
    "imagepool": ("one.imagepool.info", [-2, -1, -1], "image_pool"),
    "vm": ("one.vm.info", [5], "vm"),
    "vm_moved": ("one.vm.info", [6], "vm"),
    "vmpool": ("one.vmpool.info", [-2, -1, -1, -1], "vm_pool"),
    "vmpool_extended": ("one.vmpool.infoextended", [-2, -1, -1, -1], "vm_pool_extended"),
}


def example() -> objects.Item:
    """Two hosts, two datastores, two images, and two VMs: one with every kind of disk, one migrated."""
    state = objects.nothing()
    base = "/srv/one/datastores"

    def put(pool: str, item: objects.Item) -> None:
        state[pool][str(item["ID"])] = item

    put("datastores", objects.datastore(1, "default", "IMAGE", "fastcopy", f"{base}/1", {"NOTE": "a]]>b & <c>"}))
    put("datastores", objects.datastore(100, "system_ssh", "SYSTEM", "ssh", f"{base}/100", {}))
    put("hosts", objects.host(0, "host1", 2, {}))
    put("hosts", objects.host(1, "host2", 3, {"ARCH": "x86_64"}))
    put("images", objects.image(7, "debian", 1, f"{base}/1/debian", 4096, "raw", False, "OS"))
    put("images", objects.image(8, "data", 1, f"{base}/1/data", 10, "qcow2", True, "DATABLOCK"))
    disks = [{"IMAGE_ID": 7, "SIZE": 8192, "SPARSE": "NO"}, {"IMAGE_ID": 8}, {"TYPE": "swap", "SIZE": 512}]
    full = objects.vm(state, 5, "host1", 100, disks)
    snapshot = {"ACTIVE": "YES", "DATE": 1700000000, "ID": 0, "NAME": "first", "PARENT": -1, "SIZE": 10}
    full["SNAPSHOTS"] = [
        {"ALLOW_ORPHANS": "FORMAT", "CURRENT_BASE": 0, "DISK_ID": 1, "NEXT_SNAPSHOT": 1, "SNAPSHOT": [snapshot]}
    ]
    put("vms", full)
    moved = objects.vm(state, 6, "host1", 100, [{"IMAGE_ID": 7}])
    moved["HISTORY"].append(objects.place(state, "host2", 100))
    put("vms", {**moved, "LCM_STATE": 8, "USER_TEMPLATE": {"LABELS": "a,b"}, "DEPLOY_ID": "one-6"})
    return state


def document(name: str) -> str:
    method, arguments, _ = CASES[name]
    done, value, code = calls.answer(example(), method, [AUTH, *arguments])
    assert (done, code) == (True, 0)
    return str(value)


def pretty(text: str) -> str:
    element = ElementTree.fromstring(text)
    ElementTree.indent(element)
    return ElementTree.tostring(element, encoding="unicode") + "\n"


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert pretty(document(name)) == (GOLDEN / f"{name}.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_schema(name: str, tmp_path: Path) -> None:
    checkout = os.environ.get("FASTCOPY_OPENNEBULA")
    xmllint = shutil.which("xmllint")
    if not checkout or not xmllint:
        pytest.skip("needs FASTCOPY_OPENNEBULA (a source checkout of OpenNebula) and xmllint")
    root, rest = document(name).split(">", 1)
    closing = "/" if root.endswith("/") else ""
    file = tmp_path / "document.xml"
    file.write_text(f'{root.rstrip("/")} xmlns="http://opennebula.org/XMLSchema"{closing}>{rest}')
    schema = Path(checkout) / "share/doc/xsd" / f"{CASES[name][2]}.xsd"
    done = subprocess.run([xmllint, "--noout", "--schema", str(schema), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_text_is_cdata_as_oned_writes_it() -> None:
    assert "<TM_MAD><![CDATA[fastcopy]]></TM_MAD>" in document("datastore")


def test_odd_text_survives() -> None:
    assert ElementTree.fromstring(document("datastore")).findtext("TEMPLATE/NOTE") == "a]]>b & <c>"


def test_disks_are_filled_in_from_their_images() -> None:
    disks = ElementTree.fromstring(document("vm")).findall("TEMPLATE/DISK")
    rows = [
        [disk.findtext(key) for key in ("DISK_ID", "IMAGE_ID", "CLONE", "FORMAT", "SIZE", "ORIGINAL_SIZE", "TM_MAD")]
        for disk in disks
    ]
    assert rows == [
        ["0", "7", "YES", "raw", "8192", "4096", "fastcopy"],
        ["1", "8", "NO", "qcow2", "10", "10", "fastcopy"],
        ["2", None, None, "raw", "512", None, None],
    ]


def test_last_history_record_is_open_and_names_the_new_host() -> None:
    records = ElementTree.fromstring(document("vm_moved")).findall("HISTORY_RECORDS/HISTORY")
    rows = [(r.findtext("SEQ"), r.findtext("HOSTNAME"), r.findtext("ETIME") == "0") for r in records]
    assert rows == [("0", "host1", False), ("1", "host2", True)]


@pytest.mark.parametrize(
    ("method", "arguments", "start"),
    [
        ("one.vm.info", [99], [False, "[one.vm.info] Error getting virtual machine [99].", 0x400, 99]),
        ("one.image.info", ["7; ls"], [False, "[one.image.info] Error getting image [7; ls].", 0x400, -1]),
        ("one.vm.action", ["hold", 5], [False, "[one.vm.action] The stand-in for oned does not know this call."]),
    ],
)
def test_failures(method: str, arguments: list[Any], start: list[Any]) -> None:
    assert calls.answer(example(), method, [AUTH, *arguments])[: len(start)] == start


def test_version_and_authentication() -> None:
    assert calls.answer(example(), "one.system.version", [AUTH])[0:2] == [True, calls.VERSION]
    assert calls.answer(example(), "one.system.version", [])[0] is False


def test_what_is_not_there_cannot_be_used() -> None:
    with pytest.raises(LabError, match="no image 70"):
        objects.vm(example(), 9, "host1", 100, [{"IMAGE_ID": 70}])
    with pytest.raises(LabError, match="no host host9"):
        objects.vm(example(), 9, "host9", 100, [])


if __name__ == "__main__":  # writes the golden files anew: look at the difference before you commit it
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.xml").write_text(pretty(document(case)), encoding="utf-8")
