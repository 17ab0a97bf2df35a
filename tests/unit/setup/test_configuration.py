"""OpenNebula's own files while they are edited: their backups, and what they are after it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.setup.test_layout import tree
from tm_fastcopy.setup import configuration, ledger
from tm_fastcopy.setup.install import make_directory
from tm_fastcopy.setup.layout import Layout
from tm_fastcopy.setup.ledger import Ledger

STAMP = "2026-01-02T03-04-05Z"
SECRET = b'DB = [ PASSWD = "secret" ]\n'


@pytest.fixture
def oned_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, at a time that stands still."""
    monkeypatch.setattr(configuration.time, "strftime", lambda *_: STAMP)
    path = tmp_path / "oned.conf"
    path.write_bytes(SECRET)
    path.chmod(0o640)
    return path


def test_a_name_that_is_taken_is_not_written_through(oned_conf: Path) -> None:
    planted = oned_conf.with_name(f"oned.conf.before-fastcopy-{STAMP}")
    outside = oned_conf.with_name("outside")
    planted.symlink_to(outside)
    backup = configuration._backup(oned_conf, SECRET)
    assert not outside.exists()
    assert os.readlink(planted) == str(outside)
    assert backup == planted.with_name(f"{planted.name}-1")
    assert (backup.read_bytes(), backup.stat().st_mode & 0o777) == (SECRET, 0o640)


def test_a_backup_is_nobody_elses_while_it_is_written_and_durable_when_it_is(
    oned_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, synced = {}, []
    really_open, really_fsync = os.open, os.fsync

    def open_(path: str, flags: int, mode: int = 0o777, **words: int) -> int:
        fd = really_open(path, flags, mode, **words)
        begun[os.fspath(path)] = (flags & os.O_EXCL != 0, os.fstat(fd).st_mode & 0o777)
        return fd

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        really_fsync(fd)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    backup = configuration._backup(oned_conf, SECRET)
    assert begun[str(backup)] == (True, 0o600)
    assert synced == [str(backup), str(oned_conf.parent)]


def test_what_could_not_be_written_leaves_nothing(oned_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _mode: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="no room"):
        configuration._backup(oned_conf, SECRET)
    assert os.listdir(oned_conf.parent) == ["oned.conf"]


def test_what_is_edited_keeps_its_attributes(oned_conf: Path) -> None:
    try:
        os.setxattr(oned_conf, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no attributes")
    ledger.replace(oned_conf, b"new", 0, like=oned_conf)
    assert os.getxattr(oned_conf, "user.note") == b"mine"
    assert oned_conf.read_bytes() == b"new"


def test_attributes_are_given_to_the_file_that_was_written_not_to_its_name(
    oned_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts a link where the new file is, before it has its mode."""
    victim = oned_conf.with_name("victim")
    victim.touch(0o600)
    really = os.fchown if os.geteuid() == 0 else os.fsync

    def swap(fd: int, *words: int) -> None:
        staged = oned_conf.with_name(".oned.conf.fastcopy-new")
        if staged.exists() and not staged.is_symlink():
            staged.unlink()
            staged.symlink_to(victim)
        really(fd, *words)

    monkeypatch.setattr(os, really.__name__, swap)
    ledger.replace(oned_conf, b"new", 0, like=oned_conf)
    assert victim.stat().st_mode & 0o777 == 0o600


def test_a_directory_is_made_and_never_a_link_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody puts a link where the new directory is, before it has its mode."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    really = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        really(path, mode)
        path.rmdir()
        path.symlink_to(victim)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    make_directory(tmp_path / "new")
    assert victim.stat().st_mode & 0o777 == 0o700


# -- what is written down, and what is left ----------------------------------------------------------------------------

BY_HAND = '''\
TM_MAD = [ ARGUMENTS = "-t 15 -d ssh" ]
DATASTORE_MAD = [ ARGUMENTS = "-d fs -s ssh" ]
TM_MAD_CONF = [
    NAME = "fastcopy", SHARED = "NO"
]
'''


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tree(tmp_path / "one"))
    made.oned_conf.write_text(BY_HAND)
    made.vmm_execrc.parent.mkdir()
    made.vmm_execrc.write_text('LIVE_DISK_SNAPSHOTS="kvm-ssh"\n')
    return made


def enable(layout: Layout, known: Ledger) -> None:
    """What install.sh --enable does to the two files."""
    files = configuration.planned(layout, [], None)
    configuration.forget(files, known)
    for edited in files:
        if edited.diff:
            configuration.edit(edited, known, layout.oned_conf.with_name("installed.json"))


def test_what_an_administrator_wrote_by_hand_is_named_with_its_line_also_without_records(layout: Layout) -> None:
    layout.vmm_execrc.write_text('A=1\nLIVE_DISK_SNAPSHOTS="kvm-ssh kvm-fastcopy"\n')
    named = [hand for _, by_hand in configuration.unedited(layout, Ledger()) for hand in by_hand]
    assert [hand.why.split(":")[0] for hand in named] == [
        "TM_MAD_CONF of fastcopy (line 3) is still there",
        "vmm_execrc still names fastcopy",
    ]
    assert [edited.diff for edited, _ in configuration.unedited(layout, Ledger())] == ["", ""]


def test_a_place_is_named_once(layout: Layout) -> None:
    layout.oned_conf.write_text(BY_HAND.split("TM_MAD_CONF")[0])
    known = Ledger()
    enable(layout, known)
    changed = layout.oned_conf.read_text().replace('DS_MIGRATE = "YES"', 'DS_MIGRATE = "NO"')
    layout.oned_conf.write_text(changed)
    (edited, by_hand), _ = configuration.unedited(layout, known)
    assert "-s ssh\"" in edited.after
    assert [hand.why.split(" (line")[0] for hand in by_hand] == ["TM_MAD_CONF of fastcopy"]


def test_records_whose_text_is_gone_are_dropped_and_the_others_kept(layout: Layout) -> None:
    layout.oned_conf.write_text(BY_HAND.split("TM_MAD_CONF")[0])
    known = Ledger()
    enable(layout, known)
    first = known.edits[str(layout.oned_conf)]
    assert {record["wish"] for record in first} == {"tm-driver", "ds-system", "conf"}
    enable(layout, known)
    assert known.edits[str(layout.oned_conf)] == first
    # A package has brought a new file; and an administrator has written one list otherwise.
    layout.oned_conf.write_text('TM_MAD = [ ARGUMENTS = "-d" ]\nDATASTORE_MAD = [ ARGUMENTS = "-s fastcopy , ssh" ]\n')
    enable(layout, known)
    kept = known.edits[str(layout.oned_conf)]
    assert [record["wish"] for record in kept] == ["ds-system", "conf"]
    assert kept[0] == first[1]


def test_nothing_is_dropped_while_a_file_is_missing_or_cannot_be_read(layout: Layout) -> None:
    layout.oned_conf.write_text(BY_HAND.split("TM_MAD_CONF")[0])
    known = Ledger()
    enable(layout, known)
    before = {path: list(records) for path, records in known.edits.items()}
    layout.vmm_execrc.unlink()
    layout.oned_conf.write_text("TM_MAD = [")
    enable(layout, known)
    assert known.edits == before
