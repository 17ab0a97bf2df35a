"""backup: what OpenNebula's own scripts are given, and what is said if there are none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

REMOTES = Path(__file__).resolve().parents[3] / "tm_fastcopy/remotes"
ACTIONS = ("prebackup", "prebackup_live", "postbackup", "postbackup_live")
# What a stock script is replaced by here: it shows who it is, its arguments, and its standard input.
SCRIPT = '#!/bin/sh\necho "$0" "$$" "$@"\ncat\nexit 3\n'
VM = """<VM><ID>7</ID><NAME><![CDATA[<TM_MAD>fastcopy</TM_MAD> & "ü"]]></NAME><TEMPLATE>
<DISK><DISK_ID>0</DISK_ID><TM_MAD><![CDATA[fastcopy]]></TM_MAD><SAVE>YES</SAVE></DISK>
<DISK><DISK_ID>1</DISK_ID><TM_MAD>qcow2</TM_MAD></DISK><DISK><DISK_ID>2</DISK_ID><TM_MAD>ceph</TM_MAD></DISK>
<DISK><DISK_ID>3</DISK_ID></DISK><TM_MAD>fastcopy</TM_MAD></TEMPLATE>
<HISTORY_RECORDS><HISTORY><TM_MAD>fastcopy</TM_MAD></HISTORY></HISTORY_RECORDS></VM>"""


@pytest.fixture
def tm(tmp_path: Path) -> Path:
    """A front-end's remotes/tm with our driver in it, and no other; the directory has a blank in its name."""
    lib = tmp_path / "a one/lib/fastcopy/venv/bin"
    lib.mkdir(parents=True)
    (lib / "python3").symlink_to(sys.executable)
    tm = tmp_path / "a one/var/remotes/tm"
    shutil.copytree(REMOTES, tm / "fastcopy", symlinks=True)
    return tm


def stock(tm: Path, driver: str, action: str) -> None:
    (tm / driver).mkdir(exist_ok=True)
    script = tm / driver / action
    script.write_text(SCRIPT)
    script.chmod(0o755)


def call(tm: Path, action: str, text: str = VM) -> tuple[int, list[str], str]:
    """Exit code, what the script said, and what was said on stderr."""
    environ = {"ONE_LOCATION": str(tm.parents[2]), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        [tm / "fastcopy" / action, "host1:/d/0/7", "0:1", "one-7", "-", "7", "0"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ,
    ) as process:  # fmt: skip
        out, error = process.communicate(text.encode(), timeout=30)
        said = out.decode().replace(f" {process.pid} ", " SAME-PROCESS ")
    return process.returncode, said.split("\n", 1), error.decode()


@pytest.mark.parametrize("action", ACTIONS)
def test_the_stock_script_is_given_the_vm_with_local_disks(tm: Path, action: str) -> None:
    for driver in ("ssh", "local"):
        stock(tm, driver, action)
    code, (words, text), error = call(tm, action)
    assert (code, error) == (3, "")
    # The same process: whoever cancels a backup looks for the script by its name.
    assert words == f"{tm}/local/{action} SAME-PROCESS host1:/d/0/7 0:1 one-7 - 7 0"
    expected = ElementTree.fromstring(VM)
    for disk in (0, 1):
        expected.findall("TEMPLATE/DISK/TM_MAD")[disk].text = "local"
    assert ElementTree.canonicalize(text) == ElementTree.canonicalize(ElementTree.tostring(expected, "unicode"))


def test_an_opennebula_without_local_is_told_of_ssh(tm: Path) -> None:
    stock(tm, "ssh", "prebackup")
    code, (words, text), _ = call(tm, "prebackup")
    assert code == 3 and words.startswith(f"{tm}/ssh/prebackup ")
    drivers = [item.text for item in ElementTree.fromstring(text).findall("TEMPLATE/DISK/TM_MAD")]
    assert drivers == ["ssh", "ssh", "ceph"]


def test_without_any_script_the_sentence_names_it(tm: Path) -> None:
    stock(tm, "local", "postbackup")
    code, _, error = call(tm, "prebackup")
    assert code == 1 and error.count("\n") == 1
    assert f"there is none in {tm}/local or {tm}/ssh" in error


@pytest.mark.parametrize("text", ["", "<VM>", "\0"])
def test_what_is_no_xml_reaches_no_script(tm: Path, text: str) -> None:
    stock(tm, "local", "prebackup")
    code, said, error = call(tm, "prebackup", text)
    assert (code, said, error.count("\n")) == (1, [""], 1)
    assert "needs the XML of the VM" in error


def test_monitor_reads_all_and_says_nothing() -> None:
    call, environ = [REMOTES / "monitor", "0"], {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(call, input=b"x" * (1 << 20), capture_output=True, timeout=30, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
