"""What an agent says of its host; and that looking changes nothing."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tests.support import RecordingFiles
from tm_fastcopy.agent.examine import answer
from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.core.examine_messages import (
    ClockRead,
    DatastoreExamined,
    DiskFound,
    Examine,
    Examined,
    ExamineDatastore,
    FindDisk,
    Reach,
    Reached,
    ReadClock,
)
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.fingerprint import MAX_FILE, fingerprint

CAPABILITIES = """\
#!/bin/sh
test "$*" = "--connect qemu:///system capabilities" || exit 1
echo "<capabilities><host><secmodel><model>dac</model>"
echo "<baselabel type='kvm'>+64055:+108</baselabel><baselabel type='qemu'>+64055:+108</baselabel></secmodel></host>"
"""


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is first in PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def test_a_host_says_what_it_has(tmp_path: Path, programs: Path) -> None:
    program(programs, "qemu-img", "#!/bin/sh\necho 'qemu-img version 7.2.15 (Debian)'\n")
    program(programs, "virsh", CAPABILITIES)
    driver = tmp_path / "remotes/tm/fastcopy"
    driver.mkdir(parents=True)
    (driver / "clone").write_text("#!/bin/sh\n")
    found = answer(Files(), Examine(str(tmp_path / "remotes")))
    assert isinstance(found, Examined)
    assert found.python.count(".") == 2
    assert (found.qemu_img, found.guests) == ("7.2.15", "64055")
    assert found.remotes == fingerprint(str(driver)) != ""
    assert isinstance(answer(Files(), Examine("/nonexistent")), Examined)


def test_a_libvirt_that_says_nothing_is_told_from_none(programs: Path) -> None:
    program(programs, "virsh", "#!/bin/sh\necho '<capabilities/>'\n")
    found = answer(Files(), Examine("/nonexistent"))
    assert isinstance(found, Examined)
    assert (found.guests, found.remotes) == ("?", "")


def test_its_clock_is_read() -> None:
    before = time.time_ns() // 1000
    found = answer(Files(), ReadClock())
    assert isinstance(found, ClockRead)
    assert before <= found.clock <= time.time_ns() // 1000


def test_a_datastore_is_looked_at_and_left_as_it_was(tmp_path: Path) -> None:
    base = tmp_path / "100"
    base.mkdir()
    files = RecordingFiles()
    found = answer(files, ExamineDatastore(str(base)))
    assert isinstance(found, DatastoreExamined)
    assert found.writable and found.fs and 0 < found.free <= found.total
    assert list(base.iterdir()) == []
    assert {"rename", "make_directory"} & set(files.calls) == set()
    lacking = answer(RecordingFiles(lacking=("clone",)), ExamineDatastore(str(base)))
    assert isinstance(lacking, DatastoreExamined) and not lacking.reflink
    assert found.present
    for missing in (tmp_path / "7", tmp_path / "datastores" / "7"):  # the first VM will make it, on this file system
        there = answer(Files(), ExamineDatastore(str(missing)))
        assert isinstance(there, DatastoreExamined) and not there.present
        assert (there.writable, there.fs, there.total) == (True, found.fs, found.total)
    assert os.listdir(tmp_path) == ["100"]
    with pytest.raises(FastcopyError, match="No such file"):
        answer(Files(), ExamineDatastore(str(tmp_path / "var" / "datastores" / "7")))
    (tmp_path / "8").symlink_to("nowhere")
    with pytest.raises(FastcopyError, match="No such file"):
        answer(Files(), ExamineDatastore(str(tmp_path / "8")))
    with pytest.raises(Refused, match="not the directory of a datastore"):
        answer(Files(), ExamineDatastore(str(tmp_path / "nine")))
    with pytest.raises(Refused, match="not the directory of a datastore"):
        answer(Files(), ExamineDatastore(str(tmp_path)))


def test_what_is_at_a_disks_path(tmp_path: Path) -> None:
    vm = tmp_path / "100/7"
    vm.mkdir(parents=True)
    (vm / "disk.0").write_bytes(b"12345")
    (vm / "disk.1").symlink_to("disk.1.snap/0")
    (vm / "disk.2").mkdir()
    base = str(tmp_path / "100")

    def look(number: int, name: str) -> DiskFound:
        found = answer(Files(), FindDisk(base, number, name))
        assert isinstance(found, DiskFound)
        return found

    assert look(7, "disk.0") == DiskFound("file", 5)
    assert [look(7, f"disk.{number}").kind for number in (1, 2, 3)] == ["link", "directory", ""]
    assert look(8, "disk.0").kind == ""
    with pytest.raises(Refused):
        look(7, "../../passwd")


def test_a_name_that_is_no_host_never_reaches_ssh() -> None:
    for name in ("-oProxyCommand=touch /tmp/x", "", "a b", "host\n"):
        with pytest.raises(Refused, match="not the name of a host"):
            answer(Files(), Reach(name))


def test_a_host_that_cannot_be_reached_is_said_to_be_so() -> None:
    found = answer(Files(), Reach("nohost.invalid"))
    assert isinstance(found, Reached)
    assert "nohost.invalid" in found.problem and len(found.problem) <= 300


# --- fingerprints --------------------------------------------------------------------------------------------------


def test_fingerprints_are_of_contents_and_follow_links(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        (directory / "__pycache__").mkdir(parents=True)
        (directory / "clone").write_text("text")
    (one / "mvds").symlink_to("clone")
    assert fingerprint(str(one)) != fingerprint(str(other))
    (other / "mvds").write_text("text")  # as `onehost sync` leaves it
    (other / "__pycache__/x.pyc").write_text("compiled")
    (other / "clone").chmod(stat.S_IRWXU)
    assert fingerprint(str(one)) == fingerprint(str(other)) != ""
    (other / "mvds").write_text("Text")
    assert fingerprint(str(one)) != fingerprint(str(other))
    assert fingerprint(str(tmp_path / "none")) == ""


def test_a_fingerprint_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    assert fingerprint(str(tmp_path)) == ""
