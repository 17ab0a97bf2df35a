"""The lab's parts that need no root: what is read from the command line, from stderr, and from requirements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.testbed import __main__ as command
from bench.testbed import disks, errors, install, links, processes, tm
from bench.testbed.errors import LabError
from bench.testbed.lab import LabConfig, check_directory


@pytest.mark.parametrize(
    ("text", "value"), [("1gbit", 10**9), ("200mbit", 200 * 10**6), ("2.5gbit", 2500 * 10**6), ("64kbit", 64000)]
)
def test_rates(text: str, value: int) -> None:
    assert links.bits(text) == value


@pytest.mark.parametrize("text", ["", "fast", "gbit", "0mbit", "-1gbit", "1 gbit", "1gbit; ls"])
def test_no_rates(text: str) -> None:
    with pytest.raises(LabError, match="rate"):
        links.bits(text)


@pytest.mark.parametrize(("text", "value"), [("20G", 20 << 30), ("512M", 512 << 20), ("1t", 1 << 40)])
def test_sizes(text: str, value: int) -> None:
    assert disks.size_in_bytes(text) == value


@pytest.mark.parametrize("text", ["20", "G", "1.5G", "100M", "-1G"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(LabError, match="disk"):
        disks.size_in_bytes(text)


def test_addresses_are_all_different() -> None:
    assert len({links.address(i) for i in range(61)}) == len({links.hardware(i) for i in range(61)}) == 61
    assert links.address(0) == "10.123.0.1"
    assert links.address(2) == "10.123.0.12"


def test_file_systems_per_host() -> None:
    config = LabConfig(hosts=3, fs=("xfs", "ext4"), fe_fs="btrfs")
    assert [config.fs_of(i) for i in range(4)] == ["btrfs", "xfs", "ext4", "ext4"]


@pytest.mark.parametrize(
    "config", [LabConfig(hosts=0), LabConfig(hosts=61), LabConfig(fs=("zfs",)), LabConfig(rate="quick")]
)
def test_impossible_labs(config: LabConfig) -> None:
    with pytest.raises(LabError):
        config.check()


def test_a_directory_that_is_not_the_labs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(LabError, match="no lab made it"):
        check_directory(tmp_path)


@pytest.mark.parametrize("banned", ["/run/lab", "/var/tmp/lab", "/var/lib/one/lab"])
def test_directories_that_nodes_do_not_share(banned: str) -> None:
    with pytest.raises(LabError, match="every node has its own"):
        check_directory(Path(banned))


def test_a_directory_that_oneadmin_cannot_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(LabError, match="oneadmin may not enter"):
        check_directory(private / "lab")


def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(errors, "SEARCH", str(tmp_path))
    with pytest.raises(LabError, match=r"^The program mkfs.xfs is missing: install the Debian package xfsprogs\.$"):
        errors.program("mkfs.xfs")


def test_not_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert command.main(["up", "--dir", str(tmp_path)]) == 1
    assert "must be run as root" in capsys.readouterr().err


def test_stderr_as_oned_shows_it() -> None:
    text = "INFO: 7 clone: Cloning a in b\ncannot\n  do that\nERROR: clone: Command failed\nWARNING: no log line\n"
    error, log = tm.split_stderr(text)
    assert error == "cannotdo thatWARNING: no log line"
    assert log == ["INFO: clone: Cloning a in b", "ERROR: clone: Command failed"]


def test_script_lines() -> None:
    text = "# comment\n\n  CLONE ssh fe:/a  host1:/b 5 100\n   # another\nCONTEXT ssh x\n"
    expected = [["CLONE", "ssh", "fe:/a", "host1:/b", "5", "100"], ["CONTEXT", "ssh", "x"]]
    assert list(tm.commands(text)) == expected


def test_an_action_with_a_suffix_falls_back(tmp_path: Path) -> None:
    (tmp_path / "clone").touch()
    assert tm.script_of(tmp_path, "clone.ssh") == tmp_path / "clone"
    (tmp_path / "clone.ssh").touch()
    assert tm.script_of(tmp_path, "clone.ssh") == tmp_path / "clone.ssh"
    assert tm.script_of(tmp_path, "mvds") is None


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("asyncssh >= 2.14", "asyncssh"),
        ("cffi>=2; python_version<'4'", "cffi"),
        ("markdown-it-py[x]", "markdown-it-py"),
    ],
)
def test_requirement_names(requirement: str, name: str) -> None:
    assert install.bare_name(requirement) == name


def test_run_time_requirements_bring_their_own() -> None:
    names = install.closure(install.run_time_requirements(install.ROOT / "setup.cfg"))
    assert {"asyncssh", "cryptography", "cffi", "zstandard", "blake3", "xxhash"} <= names
    assert not {"pytest", "mypy"} & names


def test_a_missing_requirement_is_said() -> None:
    with pytest.raises(LabError, match="package no-such-thing is missing"):
        install.closure(["no-such-thing"])


def test_only_an_exact_argument_vector_is_a_holder(tmp_path: Path) -> None:
    """A process that mentions the marker or the directory elsewhere must never be killed by `down`."""
    here = str(tmp_path)
    vectors = {
        "holder": [processes.MARKER, here, "host1"],
        "marker elsewhere": [processes.MARKER, "x", here, "host1"],
        "no marker": ["other", here, "host1"],
    }
    started = {}
    try:
        for name, words in vectors.items():
            script = "import sys; print(flush=True); sys.stdin.read()"
            vector = [sys.executable, "-I", "-S", "-c", script, *words]
            started[name] = subprocess.Popen(vector, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for process in started.values():
            assert process.stdout is not None
            process.stdout.readline()
        assert processes.holders(tmp_path) == [(started["holder"].pid, here, "host1")]
        processes.kill([started["holder"].pid])
        assert not processes.alive(started["holder"].pid)
        assert started["no marker"].poll() is None
    finally:
        for process in started.values():
            with process:
                process.kill()


def test_waiting_is_bounded() -> None:
    with pytest.raises(LabError, match="in vain for rain"):
        processes.wait_for(lambda: False, 0.05, "rain")
