"""install.sh in a tree of its own, without the making of a release: what is written, left, and refused."""

from __future__ import annotations

import fcntl
import getpass
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.setup.test_layout import tree
from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.frontend.bundle import WHEELS
from tm_fastcopy.setup import install, release, uninstall
from tm_fastcopy.setup.layout import Layout
from tm_fastcopy.setup.ledger import LEDGER, Ledger


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A self-contained OpenNebula, whose release is as it should be."""
    monkeypatch.setattr(release, "up_to_date", lambda *_: True)
    monkeypatch.setattr(release, "links_missing", lambda *_: False)
    top = tree(tmp_path / "one")
    for name in ("bin", "lib"):
        (top / name).mkdir()
    return top


def run(one: Path, *words: str) -> int:
    return install.main(["--one-location", str(one), "--user", getpass.getuser(), *words])


def ledger(one: Path) -> Ledger:
    found = Ledger.read(one / "lib/fastcopy" / LEDGER)
    assert found
    return found


# -- one at a time -----------------------------------------------------------------------------------------------------


def locked(one: Path) -> bool:
    """Whether somebody else could not begin now."""
    fd = os.open(one / "lib", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@pytest.mark.parametrize("begin", [run, lambda one: uninstall.main(["--one-location", str(one)])])
def test_who_comes_second_gets_one_sentence(one: Path, begin: Callable[[Path], int]) -> None:
    assert run(one) == 0
    before = {path: path.lstat().st_mtime_ns for path in one.rglob("*")}
    fd = os.open(one / "lib", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(FastcopyError, match=f"another install.sh or uninstall.sh is at work in {one}/lib/fastcopy"):
            begin(one)
    finally:
        os.close(fd)
    assert {path: path.lstat().st_mtime_ns for path in one.rglob("*")} == before


def test_the_ledger_is_read_and_all_is_done_by_one_at_a_time(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("read", "write"):
        really = getattr(Ledger, name)

        def look(*words: object, name: str = name, really: Callable[..., object] = really) -> object:
            seen.append((name, locked(one)))
            return really(*words)

        monkeypatch.setattr(Ledger, name, look)
    assert run(one) == 0
    assert seen == [("read", True), ("write", True)]
    monkeypatch.setattr(uninstall.Uninstaller, "check", lambda _: seen.append(("check", locked(one))))
    assert uninstall.main(["--one-location", str(one)]) == 0
    assert seen[2:] == [("read", True), ("check", True)]
    assert not (one / "lib/fastcopy").exists() and not locked(one)


# -- what an older version had otherwise -------------------------------------------------------------------------------


def as_an_older_version_had_it(one: Path) -> tuple[Path, Path]:
    """An entry point that it had as a file, and we have as a link; and one that it had as a link."""
    was_file, was_link = (one / "var/remotes/tm/fastcopy" / name for name in ("clone", "fastcopy"))
    was_file.unlink()
    was_file.write_text("older")
    was_link.unlink()
    was_link.symlink_to("older")
    known = ledger(one)
    del known.links[str(was_file)], known.files[str(was_link)]
    known.add_file(was_file, b"older")
    known.links[str(was_link)] = "older"
    known.write(one / "lib/fastcopy" / LEDGER)
    return was_file, was_link


def test_an_entry_point_turns_from_a_file_into_a_link_and_back(one: Path) -> None:
    assert run(one) == 0
    was_file, was_link = as_an_older_version_had_it(one)
    assert run(one) == 0
    assert os.readlink(was_file) == "fastcopy"
    assert was_link.is_file() and not was_link.is_symlink()
    known = ledger(one)
    assert str(was_file) in known.links and str(was_file) not in known.files
    assert str(was_link) in known.files and str(was_link) not in known.links


def test_what_was_interrupted_in_between_is_taken_away_all_the_same(
    one: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(one) == 0
    paths = as_an_older_version_had_it(one)
    monkeypatch.setattr(install, "link", fail)
    monkeypatch.setattr(install, "replace", fail)
    with pytest.raises(OSError, match="interrupted"):
        run(one)
    monkeypatch.setattr(uninstall.Uninstaller, "check", lambda _: None)
    assert uninstall.main(["--one-location", str(one)]) == 0
    assert not any(os.path.lexists(path) for path in paths)
    assert "kept" not in capsys.readouterr().out


def fail(*_: object) -> None:
    raise OSError("interrupted")


def test_a_link_or_a_file_of_others_is_not_replaced(one: Path) -> None:
    assert run(one) == 0
    path = one / "var/remotes/tm/fastcopy/mvds"
    known = ledger(one)
    del known.links[str(path)]
    known.write(one / "lib/fastcopy" / LEDGER)
    for make in (lambda: path.symlink_to("/theirs"), lambda: path.write_text("theirs"), path.mkdir):
        path.unlink()
        make()
        with pytest.raises(Refused, match="was not put there by this installer"):
            run(one)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_hosts_without_wheels_are_named_with_the_command_to_run(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--hosts", "cp39-x86_64,cp311-x86_64")
    for name in WHEELS:
        path = one / f"lib/fastcopy/current/wheels/cp311-x86_64/{name}-1.whl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for _ in range(2):
        assert run(one, *words) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "no wheels" in line]
        assert line.startswith("There are no wheels for hosts with cp39-x86_64:") and "install.sh --renew" in line
    assert run(one, "--hosts", "cp311-x86_64") == 0
    assert "no wheels" not in capsys.readouterr().out


def test_records_of_what_is_gone_are_dropped_with_enable_only(one: Path) -> None:
    path = one / "etc/oned.conf"
    path.write_text('TM_MAD = [ ARGUMENTS = "-d ssh" ]\nDATASTORE_MAD = [ ARGUMENTS = "-s ssh" ]\n')
    assert run(one, "--enable") == 0
    assert len(ledger(one).edits[str(path)]) == 3
    path.write_text('TM_MAD = [ ARGUMENTS = "-d ssh" ]\nTM_MAD_CONF = [ NAME = "fastcopy", SHARED = "NO" ]\n')
    for words, wishes in [((), {"tm-driver", "ds-system", "conf"}), (("--enable",), {"tm-driver", "conf"})]:
        assert run(one, *words) == 0
        assert {record["wish"] for record in ledger(one).edits[str(path)]} == wishes


def test_a_dry_run_of_the_uninstaller_names_what_is_left_to_be_done_by_hand(
    one: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(one) == 0
    (one / "etc/oned.conf").write_text('TM_MAD = [ ARGUMENTS = "-d ssh,fastcopy" ]\n')
    monkeypatch.setattr(uninstall.Uninstaller, "check", lambda _: None)
    for words in (("--dry-run",), ()):
        assert uninstall.main(["--one-location", str(one), *words]) == 0
        said = f"To be done by hand in {one}/etc/oned.conf: the ARGUMENTS of TM_MAD (line 1) name fastcopy in -d"
        assert said in capsys.readouterr().out


# -- what an administrator changed, and what was said before -----------------------------------------------------------


@pytest.fixture
def system(one: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Files of the system, as an OpenNebula from packages has them."""
    (one / "system").mkdir()
    names = ("fastcopyd.service", "fastcopy.logrotate", "fastcopy.bash-completion")
    found = {name: one / "system" / name for name in names}
    monkeypatch.setattr(Layout, "system_files", found)
    monkeypatch.setattr(install, "tell_systemd", lambda: None)
    return found


def test_a_unit_and_rules_of_logrotate_that_were_changed_are_left_and_that_is_said(
    one: Path, system: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(one) == 0
    before = {name: path.read_text() for name, path in system.items()}
    for path in system.values():
        path.write_text("mine\n")
    capsys.readouterr()
    assert run(one) == 0
    said = capsys.readouterr().out
    for name in ("fastcopyd.service", "fastcopy.logrotate"):
        assert system[name].read_text() == "mine\n"
        assert f"{system[name]} was changed, and is left as it is: {one}/lib/fastcopy/share/{name}" in said
    assert system["fastcopy.bash-completion"].read_text() == before["fastcopy.bash-completion"]
    assert "replace, though it was changed, " + str(system["fastcopy.bash-completion"]) in said


def test_a_unit_as_an_older_version_had_it_is_renewed_and_its_mode_kept(one: Path, system: dict[str, Path]) -> None:
    assert run(one) == 0
    path = system["fastcopyd.service"]
    now = path.read_text()
    path.write_text("older\n")
    path.chmod(0o640)
    known = ledger(one)
    known.add_file(path, b"older\n")
    known.write(one / "lib/fastcopy" / LEDGER)
    assert run(one) == 0
    assert (path.read_text(), path.stat().st_mode & 0o777) == (now, 0o640)


def test_a_unit_of_others_is_refused_as_before(one: Path, system: dict[str, Path]) -> None:
    system["fastcopyd.service"].write_text("theirs\n")
    with pytest.raises(Refused, match="was not put there by this installer"):
        run(one)


def test_the_configuration_that_an_administrator_made_a_link_is_left(one: Path) -> None:
    assert run(one) == 0
    path = one / "etc/tm/fastcopy/fastcopy.yaml"
    path.rename(path.with_name("mine.yaml"))
    for target in ("mine.yaml", "not-there-yet.yaml"):
        path.symlink_to(target)
        assert run(one) == 0
        assert os.readlink(path) == target
        path.unlink()


def test_the_user_is_remembered(one: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = []
    monkeypatch.setattr(release, "up_to_date", lambda _, what: wanted.append(what.user) or True)
    assert install.main(["--one-location", str(one), "--user", "nobody"]) == 0
    (one / "bin/fastcopy").unlink()
    assert install.main(["--one-location", str(one)]) == 0
    assert wanted == ["nobody", "nobody"]
    assert ledger(one).user == "nobody"
    assert "as nobody: brings the driver's probe" in capsys.readouterr().out
    assert run(one) == 0 and wanted[-1] == getpass.getuser()


@pytest.mark.parametrize("words", [(), ("--user", "no-such-user")])
def test_a_user_that_is_not_there_is_refused(one: Path, words: tuple[str, ...]) -> None:
    known = Ledger(user="no-such-user")
    (one / "lib/fastcopy").mkdir()
    known.write(one / "lib/fastcopy" / LEDGER)
    with pytest.raises(Refused, match="there is no user no-such-user"):
        install.main(["--one-location", str(one), *words])
