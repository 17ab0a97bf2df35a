"""monitor_ds: every odd thing that a system datastore may hold, and what oned is told.

The program is run as OpenNebula's probe runs it: by its name, through a shell.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from pathlib import Path

import pytest

MONITOR_DS = Path(__file__).resolve().parents[3] / "tm_fastcopy/remotes/monitor_ds"
MIB = 1 << 20


def allocate(path: Path, size: int, apparent: int = 0) -> Path:
    """A file with `size` bytes allocated, and (more) `apparent` bytes long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(max(size, apparent))
    return path


def run(datastore: Path) -> dict[int, list[str]]:
    """The lines of each VM.  Whatever the datastore holds, the program succeeds and complains about nothing."""
    done = subprocess.run(f"{MONITOR_DS} {datastore}", shell=True, capture_output=True, text=True, timeout=60)  # noqa: S602
    assert (done.returncode, done.stderr) == (0, "")
    found = {}
    for line in done.stdout.splitlines():
        match = re.fullmatch(r'VM = \[ ID = ([0-9]+), MONITOR = "([A-Za-z0-9+/=]+)" \]', line)
        assert match, line
        found[int(match[1])] = base64.b64decode(match[2], validate=True).decode().split("\n")
    return found


def test_a_raw_disk_is_what_it_holds_and_not_what_it_could(tmp_path: Path) -> None:
    """Defect A9 of the stock drivers."""
    allocate(tmp_path / "7/disk.0", 3 * MIB, apparent=4096 * MIB)
    allocate(tmp_path / "7/disk.1", 4096)
    allocate(tmp_path / "7/disk.2", 0, apparent=100 * MIB)
    sizes = ["DISK_SIZE = [ ID=0, SIZE=3 ]", "DISK_SIZE = [ ID=1, SIZE=1 ]", "DISK_SIZE = [ ID=2, SIZE=0 ]"]
    assert run(tmp_path) == {7: sizes}


def test_a_tree_with_more_than_ten_files(tmp_path: Path) -> None:
    """Defect A9 of the stock drivers."""
    tree = tmp_path / "12/disk.3.snap"
    for number in range(12):
        allocate(tree / str(number), number * MIB)
    (tree / "disk.3.snap").symlink_to(".")  # as the stock drivers for shared storage have it
    allocate(tree / ".12.fastcopy.part", MIB)
    allocate(tree / "notes", MIB)
    (tmp_path / "12/disk.3").symlink_to("disk.3.snap/11")
    lines = run(tmp_path)[12]
    assert lines[0] == "DISK_SIZE = [ ID=3, SIZE=11 ]"
    assert lines[1:] == [f"SNAPSHOT_SIZE = [ ID={number}, DISK_ID=3, SIZE={number} ]" for number in range(12)]


def test_numbers_of_any_length_come_in_their_order(tmp_path: Path) -> None:
    for disk in (100, 9, 10, 1234567890123):
        allocate(tmp_path / f"123456789/disk.{disk}", MIB)
    allocate(tmp_path / "123456789/disk.100.snap/4000000000", MIB)
    assert run(tmp_path)[123456789] == [
        "DISK_SIZE = [ ID=9, SIZE=1 ]",
        "DISK_SIZE = [ ID=10, SIZE=1 ]",
        "DISK_SIZE = [ ID=100, SIZE=1 ]",
        "SNAPSHOT_SIZE = [ ID=4000000000, DISK_ID=100, SIZE=1 ]",
        "DISK_SIZE = [ ID=1234567890123, SIZE=1 ]",
    ]


def test_what_is_no_disk_is_not_counted(tmp_path: Path) -> None:
    allocate(tmp_path / "5/disk.0", MIB)
    for name in (".disk.0.fastcopy.part", ".disk.1.snap.fastcopy.part/0", "disk.0.backup", "disk.01", "disk.1x",
                 "disk.", "disk.-1", "disk.٣", "deployment.0", "checkpoint", "tpm/state"):  # fmt: skip
        allocate(tmp_path / "5" / name, MIB)
    (tmp_path / "5/disk.2").mkdir()
    os.mkfifo(tmp_path / "5/disk.3")
    assert run(tmp_path) == {5: ["DISK_SIZE = [ ID=0, SIZE=1 ]"]}


def test_one_odd_vm_hides_no_other(tmp_path: Path) -> None:
    """Defect A9 of the stock drivers."""
    (tmp_path / "1").mkdir()  # no disk yet
    allocate(tmp_path / "2/deployment.0", MIB)
    (tmp_path / "3").mkdir()
    (tmp_path / "3/disk.0").symlink_to("disk.0.snap/0")  # leads nowhere
    (tmp_path / "3/disk.1").symlink_to("disk.1")  # leads to itself
    allocate(tmp_path / "3/disk.2", MIB)
    (tmp_path / "3/disk.2.snap").symlink_to("..")
    allocate(tmp_path / "4", MIB)  # a file
    (tmp_path / "5").symlink_to("3")
    (tmp_path / "6").symlink_to("nowhere")
    allocate(tmp_path / "07/disk.0", MIB)
    allocate(tmp_path / ".fastcopy/disk.0", MIB)
    allocate(tmp_path / "a\nb/disk.0", MIB)
    allocate(tmp_path / "9/disk.0", MIB)
    allocate(tmp_path / "9/disk.0.snap", MIB)  # a file where a tree should be
    one = "DISK_SIZE = [ ID={}, SIZE=1 ]".format
    assert run(tmp_path) == {3: [one(2)], 9: [one(0)]}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may not read everything")
def test_a_directory_that_may_not_be_read_hides_no_other(tmp_path: Path) -> None:
    allocate(tmp_path / "1/disk.0", MIB)
    allocate(tmp_path / "2/disk.0", MIB)
    allocate(tmp_path / "2/disk.0.snap/0", MIB)
    for path in (tmp_path / "1", tmp_path / "2/disk.0.snap"):
        path.chmod(0o700)
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent, tmp_path / "2"):
        path.chmod(path.stat().st_mode | 0o055)
    program = "import os, runpy, sys; os.setuid(65534); sys.argv[1:] = [%r]; runpy.run_path(%r, run_name='__main__')"
    script = program % (str(tmp_path), str(tmp_path / "monitor_ds.py"))
    (tmp_path / "monitor_ds.py").write_bytes(MONITOR_DS.read_bytes())
    done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert base64.b64decode(done.stdout.split('"')[1]) == b"DISK_SIZE = [ ID=0, SIZE=1 ]"
    assert done.stdout.startswith("VM = [ ID = 2,") and done.stdout.count("\n") == 1


def test_thousands_of_vms(tmp_path: Path) -> None:
    for vm in range(2000):
        (tmp_path / str(vm)).mkdir()
        for disk in range(2):
            (tmp_path / f"{vm}/disk.{disk}").touch()
    found = run(tmp_path)
    assert len(found) == 2000
    assert {len(lines) for lines in found.values()} == {2}


@pytest.mark.parametrize("argument", ["", "/nowhere/at/all", "x y"])
def test_what_is_no_datastore_is_one_sentence(argument: str) -> None:
    done = subprocess.run([MONITOR_DS, *argument.split()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
