"""Where things go, in an OpenNebula from packages and in a self-contained one; and the ledger of what was put there."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.frontend.bundle import HostPython
from tm_fastcopy.setup import wheels
from tm_fastcopy.setup.layout import Layout
from tm_fastcopy.setup.ledger import LEDGER, Ledger, link, replace

ROOT = Path(__file__).resolve().parents[3]


def tree(top: Path) -> Path:
    (top / "var/remotes/tm").mkdir(parents=True)
    (top / "etc").mkdir()
    (top / "etc/oned.conf").touch()
    return top


def test_packages_have_their_places() -> None:
    layout = Layout(None)
    assert str(layout.library) == "/usr/lib/one/fastcopy"
    assert str(layout.configuration) == "/etc/one/tm/fastcopy/fastcopy.yaml"
    assert str(layout.remotes) == "/var/lib/one/remotes"
    assert {str(path) for path in layout.system_files.values()} == {
        "/etc/systemd/system/fastcopyd.service", "/etc/logrotate.d/fastcopy",
        "/usr/share/bash-completion/completions/fastcopy",
    }  # fmt: skip
    for name in layout.system_files:  # written for packages, so nothing is to be changed but the user
        if name.endswith("completion"):  # names no place at all
            continue
        text = (ROOT / "install" / name).read_text()
        assert "/usr/lib/one/fastcopy" in text or "/var/log/one/fastcopy.log" in text
        assert layout.render(text, getpass.getuser()).count("\n") == text.count("\n")


def test_a_self_contained_tree_keeps_all_to_itself(tmp_path: Path) -> None:
    layout = Layout.of(str(tree(tmp_path)))
    for path in (layout.library, layout.configuration, layout.remotes, layout.command, layout.oned_conf):
        assert path.is_relative_to(tmp_path)
    assert layout.system_files == {}
    for name in ("fastcopyd.service", "fastcopy.logrotate"):
        text = layout.render((ROOT / "install" / name).read_text(), getpass.getuser())
        paths = [word.lstrip("-") for line in text.splitlines() for word in line.replace("=", " ").split()[:3]
                 if word.startswith("/") and "/run/" not in word]  # fmt: skip
        assert paths and all(path.startswith(str(tmp_path)) for path in paths), paths


@pytest.mark.parametrize("missing", ["etc/oned.conf", "var/remotes/tm"])
def test_what_is_no_front_end_is_refused(tmp_path: Path, missing: str) -> None:
    path = tree(tmp_path) / missing
    path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(Refused, match=missing):
        Layout.of(str(tmp_path))


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    assert Ledger.read(path) is None
    ledger = Ledger(version="1", user="oneadmin", links={"/a": "b"}, image_tm=["shared"])
    (tmp_path / "file").write_bytes(b"old")
    ledger.add_file(tmp_path / "file", b"old")
    ledger.add_file(tmp_path / "file", b"new")
    ledger.write(path)
    again = Ledger.read(path)
    assert again == ledger
    assert ledger.is_ours(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"another")
    assert not ledger.is_ours(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "more": 1}', "{"])
def test_a_ledger_that_is_not_understood_stops_everything(tmp_path: Path, text: str) -> None:
    (tmp_path / LEDGER).write_text(text)
    with pytest.raises(FastcopyError, match=LEDGER):
        Ledger.read(tmp_path / LEDGER)


def test_files_and_links_are_replaced_in_one_step_and_keep_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace(path, b"one", 0o750)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o750)
    path.chmod(0o604)
    before = path.stat().st_ino
    replace(path, b"two", 0, like=path)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o604)
    assert path.stat().st_ino != before  # never written in place
    for target in ("a", "b"):
        link(tmp_path / "link", target)
        assert os.readlink(tmp_path / "link") == target
    (tmp_path / ".file.fastcopy-new").symlink_to("/etc/passwd")  # whatever is there is not followed
    replace(path, b"three", 0o644)
    assert path.read_bytes() == b"three"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_tags_are_those_that_a_bundle_is_made_by() -> None:
    tags = wheels.all_tags()
    assert len(tags) == len(set(tags)) == 12
    for tag in tags:
        version, machine = wheels.split(tag)
        assert HostPython(version, "cpython", machine).tag == tag
    assert wheels.split("cp314-aarch64") == ["3.14", "aarch64"]
    for bad in ("3.11", "cp27-x86_64", "cp311", "cp311-../x", ""):
        with pytest.raises(Refused):
            wheels.split(bad)


def test_requirements_are_those_of_setup_cfg() -> None:
    assert wheels.sources() == ROOT
    setup = ROOT / "setup.cfg"
    assert any(line.startswith("asyncssh") for line in wheels.requirements(setup))
    assert [line.split()[0] for line in wheels.requirements(setup, ("blake3", "xxhash"))] == ["blake3", "xxhash"]


