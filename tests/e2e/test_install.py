"""install.sh and uninstall.sh on an OpenNebula tree: again, upgraded while calls come in, interrupted, and away."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.testbed import processes
from tests.e2e.front_end import USER, WAIT, FrontEnd, copy_of_the_sources, make_wheelhouse, oned, run
from tm_fastcopy import __version__
from tm_fastcopy.setup.uninstall import daemon

pytestmark = pytest.mark.root

SENTENCE = "the credentials for oned cannot be read: /nonexistent/.one/one_auth: No such file or directory\n"
"""What every call ends with here, whichever version runs it."""
EVERYTHING = ("--enable", "--image-tm", "shared,qcow2", "--threads", "30")
NOBODY_USES_IT = {"default": ("ssh", ""), "system": ("ssh", "")}


@pytest.fixture(scope="session")
def wheelhouse() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fastcopy-wheels-") as top:
        yield make_wheelhouse(Path(top, "wheelhouse"))


@pytest.fixture
def front_end(wheelhouse: Path) -> Iterator[FrontEnd]:
    with tempfile.TemporaryDirectory(prefix="fastcopy-front-end-") as top:
        os.chmod(top, 0o755)
        made = FrontEnd(Path(top), wheelhouse)
        yield made
        end_daemon(made)


def serving(front_end: FrontEnd) -> int | None:
    """The daemon's process."""
    return daemon(front_end.one / f"var/fastcopy/daemon-{os.uname().nodename}.sock")


def end_daemon(front_end: FrontEnd) -> None:
    if (front_end.one / "var/fastcopy").is_dir():
        pid = serving(front_end)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            processes.wait_for(lambda: not Path(f"/proc/{pid}").exists(), 30, "the daemon to end")


def changed_names(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_dry_run_shows_the_diff_and_changes_nothing(front_end: FrontEnd) -> None:
    before = front_end.state()
    done = front_end.install("--dry-run", *EVERYTHING)
    assert done.returncode == 0, done.stderr
    assert f"would make a release of {__version__}" in done.stdout
    text = front_end.oned_conf.read_text() + (front_end.one / "etc/vmm_exec/vmm_execrc").read_text()
    shown = [line[1:] for line in done.stdout.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert shown and all(line in text for line in shown)
    assert '+    NAME = "fastcopy", LN_TARGET = "SYSTEM"' in done.stdout
    assert front_end.state() == before


def test_without_enable_nothing_of_opennebulas_is_touched(front_end: FrontEnd) -> None:
    before = front_end.state()
    done = front_end.install()
    assert done.returncode == 0, done.stderr
    assert "--enable" in done.stdout
    new = {name.split("/", 2)[0] + "/" + name.split("/", 2)[1] for name in changed_names(before, front_end.state())}
    assert new <= {"lib/fastcopy", "etc/tm", "var/remotes", "bin/fastcopy"}
    assert all(name.startswith("var/remotes/tm/fastcopy") for name in changed_names(before, front_end.state())
               if name.startswith("var/"))  # fmt: skip
    call = front_end.call()
    assert (call.returncode, call.stderr) == (1, SENTENCE)
    status = run([str(front_end.one / "bin/fastcopy"), "status"])  # as root, who becomes the user that oned runs as
    assert status.returncode == 0 and status.stdout.startswith("Nothing is being transferred"), status.stderr
    doctor = run([str(front_end.one / "bin/fastcopy"), "doctor"], ONE_AUTH=str(front_end.auth),
                 ONE_XMLRPC="http://127.0.0.1:9/RPC2")  # fmt: skip
    assert doctor.returncode == 1
    assert "oned.conf does not say all that oned must know" in doctor.stdout
    assert "oned does not answer" in doctor.stdout


def test_a_second_run_changes_nothing_and_says_so(front_end: FrontEnd) -> None:
    assert front_end.install(*EVERYTHING).returncode == 0
    before = front_end.state()
    for source in ({}, {"source": front_end.library / "current"}):  # from the checkout, and from what it installed
        again = front_end.install(*EVERYTHING, **source)
        assert again.returncode == 0, again.stderr
        assert again.stdout.count("nothing to change there") == 2, again.stdout
        assert front_end.state() == before


def test_image_drivers_of_opennebula_reach_our_actions(front_end: FrontEnd) -> None:
    assert front_end.install(*EVERYTHING).returncode == 0
    assert front_end.call("shared/clone.fastcopy").stderr == SENTENCE
    (front_end.entries / "mvds").unlink()
    assert front_end.call("qcow2/mvds.fastcopy").stderr == "this version of fastcopy has no mvds\n"


def test_uninstalling_leaves_the_tree_as_it_was(front_end: FrontEnd) -> None:
    before = front_end.state()
    assert front_end.install(*EVERYTHING).returncode == 0
    assert front_end.call().stderr == SENTENCE
    pid = serving(front_end)
    with oned(NOBODY_USES_IT, {"vm": "<TEMPLATE><DISK><TM_MAD>ssh</TM_MAD></DISK></TEMPLATE>"}) as endpoint:
        dry = front_end.uninstall("--dry-run", oned=endpoint)
        assert dry.returncode == 0, dry.stderr
        assert (front_end.library / "current").exists()
        done = front_end.uninstall(oned=endpoint)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{pid}").exists()
    assert front_end.state() == before


def test_what_the_administrator_changed_since_stays(front_end: FrontEnd) -> None:
    before = front_end.state()
    text = front_end.oned_conf.read_text()
    assert front_end.install(*EVERYTHING).returncode == 0
    front_end.oned_conf.write_text("# mine\n" + front_end.oned_conf.read_text().replace("PORT = 2633", "PORT = 2634"))
    configuration = front_end.one / "etc/tm/fastcopy/fastcopy.yaml"
    configuration.write_text("lanes: 3\n")
    with oned(NOBODY_USES_IT, {}) as endpoint:
        done = front_end.uninstall(oned=endpoint)
    assert done.returncode == 0, done.stderr
    assert front_end.oned_conf.read_text() == "# mine\n" + text.replace("PORT = 2633", "PORT = 2634")
    assert configuration.read_text() == "lanes: 3\n"
    names = changed_names(before, front_end.state())
    backups = {name for name in names if ".before-fastcopy-" in name}
    assert len(backups) == 2  # before it was installed, and before it was removed
    assert names - backups == {"etc/oned.conf", "etc/tm", "etc/tm/fastcopy", "etc/tm/fastcopy/fastcopy.yaml"}
    for name in [*backups, "etc/tm/fastcopy/fastcopy.yaml"]:
        assert f"kept: {front_end.one / name}" in done.stdout


VMS = {
    "stock": "<TEMPLATE><DISK><TM_MAD>ssh</TM_MAD></DISK></TEMPLATE>",
    "by-its-disk": "<TEMPLATE><DISK><TM_MAD>ssh</TM_MAD></DISK><DISK><TM_MAD>fastcopy</TM_MAD></DISK></TEMPLATE>",
    "by-the-system": "<TEMPLATE><DISK><TM_MAD>shared</TM_MAD><TM_MAD_SYSTEM>fastcopy</TM_MAD_SYSTEM></DISK></TEMPLATE>",
    "by-its-host": "<HISTORY_RECORDS><HISTORY><TM_MAD>fastcopy</TM_MAD></HISTORY></HISTORY_RECORDS>",
}


def test_it_is_not_uninstalled_while_it_is_used(front_end: FrontEnd) -> None:
    assert front_end.install(*EVERYTHING).returncode == 0
    before = front_end.state()
    crowd = {f"many-{number}": VMS["stock"] for number in range(1200)}
    with oned({"default": ("ssh", "ssh,fastcopy"), "fast": ("fastcopy", "")}, {**crowd, **VMS}) as endpoint:
        done = front_end.uninstall(oned=endpoint)
        assert done.returncode == 1
        assert "datastores 101 (fast) " in done.stderr
        assert "VMs 1201 (by-its-disk), 1202 (by-the-system), 1203 (by-its-host) " in done.stderr
        assert front_end.uninstall("--oned-is-down", oned=endpoint).returncode == 1  # it is not
    down = front_end.uninstall()
    assert down.returncode == 1
    assert "oned does not answer" in down.stderr and "--oned-is-down" in down.stderr
    assert front_end.state() == before
    unchecked = front_end.uninstall("--oned-is-down")
    assert unchecked.returncode == 0, unchecked.stderr
    assert "NOT CHECKED: whether datastores or VMs still use fastcopy" in unchecked.stdout
    assert not front_end.library.exists()


class Caller(threading.Thread):
    """Calls an action again and again, and keeps what it says."""

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        self.front_end, self.enough, self.said = front_end, threading.Event(), []

    def run(self) -> None:
        while not self.enough.is_set():
            done = self.front_end.call()
            self.said.append((done.returncode, done.stderr))


def test_an_upgrade_is_never_seen_half_done(front_end: FrontEnd, tmp_path: Path) -> None:
    older = copy_of_the_sources(tmp_path / "older", "0.0.9")
    (older / "tm_fastcopy/remotes/bygone").symlink_to("fastcopy")
    (older / "tm_fastcopy/remotes/mvds").unlink()
    assert front_end.install("--enable", source=older).returncode == 0
    configuration = front_end.one / "etc/tm/fastcopy/fastcopy.yaml"
    configuration.write_text("lanes: 3\n")
    assert front_end.call().stderr == SENTENCE
    first, pid = front_end.release, serving(front_end)
    assert first.startswith("0.0.9-")
    caller = Caller(front_end)
    caller.start()
    try:
        done = front_end.install("--enable")
        assert done.returncode == 0, done.stderr
        seen = len(caller.said)
        processes.wait_for(lambda: len(caller.said) > seen + 5, WAIT, "some more calls")
    finally:
        caller.enough.set()
        caller.join()
    assert f"release of {__version__}" in done.stdout and "instead of 0.0.9" in done.stdout
    assert set(caller.said) == {(1, SENTENCE)}
    assert serving(front_end) not in (None, pid)
    assert Path(os.readlink(front_end.library / "previous")).name == first  # what runs from it may go on
    assert not os.path.lexists(front_end.entries / "bygone")
    assert os.readlink(front_end.entries / "mvds") == "fastcopy"
    assert configuration.read_text() == "lanes: 3\n"
    second = front_end.release
    assert front_end.install("--enable", "--renew").returncode == 0
    assert {path.name for path in (front_end.library / "releases").iterdir()} == {second, front_end.release}


def test_a_release_stays_while_something_runs_from_it(front_end: FrontEnd) -> None:
    assert front_end.install().returncode == 0
    first = (front_end.library / "current").resolve()
    code = "import asyncssh, sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([first / "venv/bin/python3", "-I", "-c", code], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:  # fmt: skip
        assert running.stdout is not None and running.stdout.readline() == "ready\n"
        for _ in range(2):
            assert front_end.install("--renew").returncode == 0
        assert first.is_dir()
        running.communicate("")
    assert front_end.install().returncode == 0
    assert not first.exists()


def test_an_interrupted_installation_is_completed_by_the_next(front_end: FrontEnd) -> None:
    before = front_end.state()
    with subprocess.Popen(front_end.argv("--enable"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as running:  # fmt: skip
        begun = front_end.library / "releases"
        processes.wait_for(lambda: any(begun.glob("*/venv/bin/python3")), WAIT, "a release to be begun")
        os.killpg(running.pid, signal.SIGKILL)
    assert not os.path.lexists(front_end.library / "current")
    assert all(name.startswith("lib/fastcopy") for name in changed_names(before, front_end.state()))
    done = front_end.install("--enable")
    assert done.returncode == 0, done.stderr
    assert front_end.call().stderr == SENTENCE
    assert [path.name for path in (front_end.library / "releases").iterdir()] == [front_end.release]
    end_daemon(front_end)
    with oned(NOBODY_USES_IT, {}) as endpoint:
        assert front_end.uninstall(oned=endpoint).returncode == 0
    assert front_end.state() == before


def test_an_upgrade_that_fails_leaves_the_old_one_in_use(front_end: FrontEnd, tmp_path: Path) -> None:
    assert front_end.install("--enable").returncode == 0
    before = front_end.state()
    poor = tmp_path / "wheelhouse"
    shutil.copytree(front_end.wheelhouse, poor, ignore=shutil.ignore_patterns("asyncssh*"))
    front_end.wheelhouse = poor
    done = front_end.install("--enable")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "asyncssh" in done.stderr and "wheels.sh --front-end" in done.stderr
    assert front_end.state() == before
    assert front_end.call().stderr == SENTENCE


def test_files_of_others_are_not_replaced(front_end: FrontEnd) -> None:
    front_end.entries.mkdir()
    (front_end.entries / "fastcopy").write_text("somebody's\n")
    before = front_end.state()
    done = front_end.install()
    assert done.returncode == 1
    assert f"{front_end.entries / 'fastcopy'} is there, and was not put there" in done.stderr
    assert front_end.state() == before


def test_what_cannot_be_edited_is_listed_and_the_rest_is_done(front_end: FrontEnd) -> None:
    text = front_end.oned_conf.read_text()
    (line,) = [line for line in text.splitlines() if line.strip().startswith("ARGUMENTS") and " -s " in line]
    front_end.oned_conf.write_text(text.replace(line, line.rstrip('"') + ' -s fastcopy"'))
    done = front_end.install("--enable")
    assert done.returncode == 0, done.stderr
    assert "only the last one holds: make them one\n    -s " in done.stdout
    after = front_end.oned_conf.read_text()
    assert 'NAME = "fastcopy"' in after and ' -s fastcopy"' in after
    lost = [line for line in difflib.ndiff(text.splitlines(), after.splitlines()) if line.startswith("- ")]
    assert len(lost) == 2  # one_tm's line, extended, and the one that the test spoilt


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--one-location", "/nonexistent"), "there is no OpenNebula front-end in /nonexistent"),
        (("--one-location", "some where"), "must be an absolute path without blanks"),
        (("--user", "no-such-user"), "there is no user no-such-user"),
        (("--image-tm", "ceph"), "it knows shared and qcow2"),
        (("--threads", "0"), "a number from 1 to 1000"),
        (("--hosts", "python3"), "not of the form cp311-x86_64"),
        (("--wheelhouse", "/etc"), "holds no wheels"),
    ],
)
def test_a_wrong_word_is_one_sentence(front_end: FrontEnd, words: tuple[str, ...], said: str) -> None:
    before = front_end.state()
    done = front_end.install(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("install.sh: ") and done.stderr.count("\n") == 1 and said in done.stderr
    assert front_end.state() == before


def test_the_release_says_what_it_is_and_belongs_to_whom_the_tree_belongs(front_end: FrontEnd) -> None:
    os.chown(front_end.one / "lib", 12345, 12345)
    assert front_end.install().returncode == 0
    stamp = json.loads((front_end.library / "current/release.json").read_text())
    assert stamp["version"] == __version__
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in front_end.library.rglob("*")}
    assert owners == {(12345, 12345)}
    unit = (front_end.library / "share/fastcopyd.service").read_text()
    assert f"User={USER}\n" in unit and f"Environment=ONE_LOCATION={front_end.one}\n" in unit
    assert f"ExecStart={front_end.library}/current/bin/fastcopyd --stay\n" in unit
    assert os.access(front_end.library / "current/bin/fastcopyd", os.X_OK)
    assert str(front_end.one / "var/fastcopy.log") in (front_end.library / "share/fastcopy.logrotate").read_text()


def test_a_checkout_and_a_wheelhouse_of_umask_077_are_installed_for_all(front_end: FrontEnd, tmp_path: Path) -> None:
    closed = copy_of_the_sources(tmp_path / "checkout", "0.0.9")
    front_end.wheelhouse = shutil.copytree(front_end.wheelhouse, tmp_path / "wheelhouse")
    for top in (closed, front_end.wheelhouse):
        assert run(["chmod", "-R", "go=", str(top)]).returncode == 0
    done = front_end.install(source=closed)
    assert done.returncode == 0, done.stderr
    assert front_end.call().stderr == SENTENCE
    found = [path for path in (front_end.library / "current/").rglob("*") if not path.is_symlink()]
    assert [path for path in found if not path.stat().st_mode & 0o004] == []


def test_a_state_directory_that_is_a_mount_does_not_keep_it_from_being_uninstalled(front_end: FrontEnd) -> None:
    assert front_end.install().returncode == 0
    state = front_end.one / "var/fastcopy"
    state.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(state)], check=True)
    try:
        (state / "digests").write_text("x")
        done = front_end.uninstall("--oned-is-down")
        assert done.returncode == 0, done.stderr
        assert f"kept: {state} (a mount: unmount it, and remove it by hand)" in done.stdout
        assert os.listdir(state) == [] and not front_end.library.exists()
    finally:
        subprocess.run(["umount", str(state)], check=True)
