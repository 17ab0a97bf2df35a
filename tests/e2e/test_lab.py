"""The lab itself: what it promises to tests, demo and bench. Needs root; about ten seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.testbed import Lab, LabConfig, LabError, disks, processes
from bench.testbed.node import HOME

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
CHECKOUT = os.environ.get("FASTCOPY_OPENNEBULA")
MB = 10**6


def lab_directory() -> Path:
    """A fresh directory that oneadmin can enter; pytest's own is closed to it."""
    return Path(tempfile.mkdtemp(prefix="fastcopy-lab-test-", dir="/tmp"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    config = LabConfig(
        hosts=2,
        fs=("xfs", "ext4"),
        dir=lab_directory(),
        disk_size="1G",
        opennebula=Path(CHECKOUT) if CHECKOUT else None,
    )
    with Lab.up(config) as lab:
        yield lab
        assert lab.oned.unknown_calls == []
    assert not config.dir.exists()


def text(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("source", ["fe", "host1", "host2"])
@pytest.mark.parametrize("target", ["fe", "host1", "host2"])
def test_everybody_logs_in_to_everybody(lab: Lab, source: str, target: str) -> None:
    done = lab.node(source).run(["ssh", "-o", "BatchMode=yes", target, "hostname; id -un; pwd"])
    assert text(done).split() == [target, "oneadmin", HOME]


def test_nothing_is_seen_from_the_machine(lab: Lab) -> None:
    mine = subprocess.run(["ip", "address"], capture_output=True, text=True, check=True).stdout
    assert "10.123.0" not in mine
    assert str(lab.dir) not in Path("/proc/self/mounts").read_text()
    assert text(lab.fe.run(["ip", "route", "show", "default"])) == ""


def test_the_names_that_nodes_know_are_not_on_the_machine(lab: Lab) -> None:
    assert "host1" in text(lab.fe.run(["cat", "/etc/hosts"]))
    assert "10.123.0.11" not in Path("/etc/hosts").read_text()


def test_each_host_has_its_own_file_system(lab: Lab) -> None:
    for name, fs in (("fe", "xfs"), ("host1", "xfs"), ("host2", "ext4")):
        done = lab.node(name).run(["findmnt", "-n", "-o", "FSTYPE", str(lab.datastores)])
        assert text(done).strip() == fs
    lab.hosts["host1"].run(["touch", f"{lab.datastores}/0/only-here"], check=True)
    assert lab.hosts["host1"].path(lab.datastores / "0/only-here").exists()
    assert not lab.hosts["host2"].path(lab.datastores / "0/only-here").exists()
    assert not lab.fe.path(lab.datastores / "0/only-here").exists()


def test_xfs_has_reflinks(lab: Lab) -> None:
    directory = lab.datastores / "0"
    script = 'head -c 65536 /dev/urandom > "$0/a" && cp --reflink=always "$0/a" "$0/b"'
    lab.hosts["host1"].run(["sh", "-c", script, str(directory)], check=True)


def test_hosts_do_not_see_the_front_ends_tree(lab: Lab) -> None:
    assert lab.fe.path(lab.one_location / "bin/onevm").exists()
    assert not lab.hosts["host1"].path(lab.one_location / "bin").exists()
    assert lab.hosts["host1"].run(["ls", "/var/tmp/one/tm"]).returncode == 0


def test_run_feeds_input_and_has_a_small_environment(lab: Lab) -> None:
    assert lab.fe.run(["cat"], input=b"a\0b").stdout == b"a\0b"
    words = text(lab.fe.run(["env"], env={"EXTRA": "1"})).splitlines()
    assert {"EXTRA=1", f"ONE_LOCATION={lab.one_location}", f"HOME={HOME}"} <= set(words)
    assert not [word for word in words if word.startswith(("PYTEST", "PYTHONPATH"))]
    assert "ONE_LOCATION" not in text(lab.hosts["host1"].run(["env"]))


def test_run_kills_what_takes_too_long(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lab.fe.run(["sleep", "1000"], timeout=0.2)
    processes.wait_for(lambda: not lab.fe.processes("sleep"), 60, "sleep to end")


def test_check_says_what_failed(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"host1: ls /nowhere ended with 2: .*No such file"):
        lab.hosts["host1"].run(["ls", "/nowhere"], check=True)


def send(lab: Lab, size: int) -> float:
    """Send zeros from the front-end to host1; bits per second of payload."""
    began = time.monotonic()
    lab.fe.run(["sh", "-c", f"head -c {size} /dev/zero | ssh host1 'cat > /dev/null'"], check=True)
    return size * 8 / (time.monotonic() - began)


def fetch(lab: Lab, size: int) -> float:
    """The same from host1 to the front-end."""
    began = time.monotonic()
    lab.fe.run(["sh", "-c", f"ssh host1 'head -c {size} /dev/zero' > /dev/null"], check=True)
    return size * 8 / (time.monotonic() - began)


def test_rate_limits_both_ways_and_counters_count(lab: Lab) -> None:
    host = lab.hosts["host1"]
    lab.rate("host1", "100mbit")
    received, sent = host.rx_bytes(), host.tx_bytes()
    assert send(lab, 10 * MB) < 105 * MB
    assert 10 * MB < host.rx_bytes() - received < 11 * MB
    assert fetch(lab, 10 * MB) < 105 * MB
    assert 10 * MB < host.tx_bytes() - sent < 11 * MB
    lab.rate("host1", None)
    assert max(send(lab, 100 * MB) for _ in range(3)) > 120 * MB


def login(lab: Lab, limit: int = 60) -> subprocess.CompletedProcess[bytes]:
    return lab.fe.run(["ssh", "-o", f"ConnectTimeout={limit}", "host1", "true"])


def test_a_frozen_host_is_silent(lab: Lab) -> None:
    lab.hosts["host1"].freeze()
    assert b"timed out" in login(lab, 1).stderr
    lab.hosts["host1"].thaw()
    assert login(lab).returncode == 0


def test_a_cut_link_comes_back(lab: Lab) -> None:
    lab.hosts["host1"].cut()
    assert login(lab, 1).returncode == 255
    lab.hosts["host1"].restore()
    assert login(lab).returncode == 0


def test_sshd_can_be_stopped(lab: Lab) -> None:
    with lab.fe.popen(["ssh", "host1", "sleep 1000"]) as session:
        processes.wait_for(lambda: bool(lab.hosts["host1"].processes("sleep")), 60, "the session")
        lab.hosts["host1"].stop_sshd()
        assert session.wait(60) == 255
    assert b"refused" in login(lab).stderr
    lab.hosts["host1"].start_sshd()
    assert login(lab).returncode == 0


def test_read_only(lab: Lab) -> None:
    host = lab.hosts["host2"]
    host.remount_datastores("ro")
    assert b"Read-only" in host.run(["touch", f"{lab.datastores}/0/x"]).stderr
    host.remount_datastores("rw")
    host.run(["touch", f"{lab.datastores}/0/x"], check=True)


@pytest.mark.parametrize("name", ["host1", "host2"])
def test_a_power_cut_loses_what_was_not_durable(lab: Lab, name: str) -> None:
    host = lab.hosts[name]
    directory = lab.datastores / "0/power"
    script = 'mkdir "$0" && echo kept > "$0/kept" && sync -f "$0" && echo lost > "$0/lost"'
    host.run(["sh", "-c", script, str(directory)], check=True)
    with host.popen(["sleep", "1000"]) as victim:
        processes.wait_for(lambda: bool(host.processes("sleep")), 60, "sleep")
        host.power_cut()
        assert victim.wait(60) != 0
    assert [path.name for path in host.path(directory).iterdir()] == ["kept"]
    assert host.path(directory / "kept").read_text() == "kept\n"
    assert text(lab.fe.run(["ssh", name, "hostname"])) == f"{name}\n"


def test_oned_answers_hangs_and_stops(lab: Lab) -> None:
    show = ["onedatastore", "show", "-x", "1"]
    assert "<NAME>default</NAME>" in text(lab.fe.run(show))
    lab.oned.hang()
    assert lab.oned.condition() == "hangs"
    with pytest.raises(subprocess.TimeoutExpired):
        lab.fe.run(show, timeout=0.5)
    lab.oned.start()
    assert lab.oned.condition() == "answers"
    lab.oned.stop()
    assert lab.oned.condition() == "stopped"
    assert b"Connection refused" in lab.fe.run(show).stderr
    lab.oned.start()
    assert lab.fe.run(show).returncode == 0


def test_state_changes_at_once_and_calls_are_counted(lab: Lab) -> None:
    lab.oned.add_image(3, 1, f"{lab.datastores}/1/three", 5)
    lab.oned.add_vm(3, disks=[{"IMAGE_ID": 3}])
    lab.oned.forget_calls()
    assert "<SOURCE>" in text(lab.fe.run(["onevm", "show", "3", "-x"]))
    lab.oned.move_vm(3, "host2")
    assert "<HOSTNAME>host2</HOSTNAME>" in text(lab.fe.run(["onevm", "show", "vm-3", "-x"]))
    assert [call for call, _ in lab.oned.calls] == ["one.vm.info", "one.vmpool.info", "one.vm.info"]
    lab.oned.remove_vm(3)
    assert b"Error getting virtual machine [3]." in lab.fe.run(["onevm", "show", "3", "-x"]).stderr
    assert lab.oned.unknown_calls == []


def test_unknown_calls_are_noticed(lab: Lab) -> None:
    script = "import xmlrpc.client as x; x.ServerProxy('http://127.0.0.1:2633/RPC2').one.vm.action('a', 'hold', 5)"
    lab.fe.run(["python3", "-c", script], check=True)
    assert lab.oned.unknown_calls == ["one.vm.action"]
    lab.oned.forget_calls()


def test_another_process_attaches(lab: Lab) -> None:
    again = Lab.attach(lab.dir)
    assert again.hosts == lab.hosts
    command = [str(ROOT / "bench/lab"), "sh", "--dir", str(lab.dir), "host2", "--", "hostname"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert (done.returncode, done.stdout) == (0, "host2\n"), done.stderr


def test_the_driver_runs_from_a_venv_that_oneadmin_can_read(lab: Lab) -> None:
    python = lab.one_location / "lib/fastcopy/venv/bin/python3"
    script = "import asyncssh, blake3, rich, xxhash, yaml, zstandard, tm_fastcopy; print(tm_fastcopy.__path__[0])"
    where = text(lab.fe.run([python, "-I", "-c", script])).strip()
    assert where.startswith(str(lab.one_location))


def place_image(lab: Lab, vm_id: int) -> tuple[str, str]:
    """A 10 MB image in datastore 1, image and VM in oned; source path and line of a transfer with stock `ssh`."""
    source = f"{lab.datastores}/1/ten"
    lab.fe.run(["sh", "-c", 'head -c 10000000 /dev/urandom > "$0"', source], check=True)
    lab.oned.add_image(10, 1, source, 10)
    lab.oned.add_vm(vm_id, host="host1", ds_id=100, disks=[{"IMAGE_ID": 10}])
    return source, f"CLONE ssh fe:{source} host1:{lab.datastores}/100/{vm_id}/disk.0 {vm_id} 100"


@pytest.mark.skipif(not CHECKOUT, reason="needs FASTCOPY_OPENNEBULA: a source checkout of OpenNebula")
def test_a_stock_driver_through_the_real_one_tm(lab: Lab) -> None:
    source, line = place_image(lab, 10)
    result = lab.tm([line], 10)
    assert result.success, result.info
    assert any("Cloning" in entry for entry in result.log)
    disk = lab.hosts["host1"].path(f"{lab.datastores}/100/10/disk.0")
    assert disk.read_bytes() == lab.fe.path(source).read_bytes()
    failed = lab.tm([line.replace("/1/ten", "/1/none"), line], 10)
    assert not failed.success
    assert "Error copying" in failed.info


def script_for_driver(lab: Lab, action: str, body: str) -> None:
    """Make an action of driver `dummy` on the front-end."""
    path = lab.fe.path(lab.one_location / "var/remotes/tm/dummy" / action)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_transfer_script_stops_at_the_first_failure(lab: Lab) -> None:
    trace = lab.datastores / "1/trace"
    script_for_driver(lab, "lab_note", f'echo "$@" >> {trace}; echo "INFO: lab_note: seen" >&2')
    script_for_driver(lab, "lab_fail", "echo 'INFO: lab_fail: trying' >&2; echo 'the disk is full' >&2; exit 3")
    good = lab.tm(["LAB_NOTE dummy a 1", "# nothing", "LAB_NOTE.ssh dummy b 2"], 20)
    assert (good.success, good.info) == (True, "-")
    assert good.log.count("INFO: lab_note: seen") == 2
    bad = lab.tm(["LAB_NOTE dummy c 3", "LAB_FAIL dummy", "LAB_NOTE dummy d 4"], 20)
    assert (bad.success, bad.info) == (False, "the disk is full")
    assert "INFO: lab_fail: trying" in bad.log
    assert lab.fe.path(trace).read_text() == "a 1\nb 2\nc 3\n"
    assert not lab.tm(["LAB_MISSING dummy"], 20).success
    assert "not available" in lab.tm(["CLONE nonesuch a b"], 20).info


def test_btrfs_has_no_power_cut_and_two_labs_live_side_by_side(lab: Lab) -> None:
    with Lab.up(LabConfig(hosts=1, fs=("btrfs",), dir=lab_directory(), disk_size="1G", rate="1gbit")) as other:
        assert text(other.fe.run(["ssh", "host1", "hostname"])) == "host1\n"
        with pytest.raises(LabError, match="btrfs"):
            other.hosts["host1"].power_cut()
    assert text(lab.fe.run(["ssh", "host1", "hostname"])) == "host1\n"


def test_what_a_crash_leaves_is_cleaned_up() -> None:
    directory = lab_directory()
    script = (
        "import os, pathlib, sys; from bench.testbed import Lab, LabConfig\n"
        "Lab.up(LabConfig(hosts=1, disk_size='1G', dir=pathlib.Path(sys.argv[1])))\n"
        "os.kill(os.getpid(), 9)"
    )
    vector = [sys.executable, "-c", script, str(directory)]
    assert subprocess.run(vector, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60).returncode == -9
    assert processes.holders(directory) and disks.loops(directory)
    (directory / "state.json").unlink()
    command = [str(ROOT / "bench/lab"), "down", "--dir", str(directory)]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, "PYTHON": sys.executable})
    assert not processes.holders(directory)
    assert not disks.loops(directory)
    assert not directory.exists()
