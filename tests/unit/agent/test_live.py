"""Disks of running guests: the copy is of one moment, and whatever happens, the guest goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import CHUNK, NO_SHARING, RecordingFiles, content, make_file, manifest_of
from tests.virsh import Guest, Virsh, is_of_one_moment
from tm_fastcopy.agent import hypervisor, live, standstill
from tm_fastcopy.core import image_messages, messages, wire
from tm_fastcopy.core.files import Files

from .conversation import ROOT, Conversation

LETTERS = "AB-CD"
LIVE = image_messages.OpenLive("raw", "qemu:///system", "one-42", "vda", 60)


class Sharing(RecordingFiles):
    """Clones by copying, so that tests of the order of steps need no file system that can share."""

    def clone(self, target: int, source: int) -> bool:
        """Copy."""
        data = os.pread(source, os.fstat(source).st_size, 0)
        os.pwrite(target, data, 0)
        os.ftruncate(target, len(data))
        return True


@pytest.fixture
def virsh(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Virsh:
    """The guest, its disk `disk.0` of VM 42, and virsh in the PATH."""
    (base / "42").mkdir()
    make_file(base / "42" / "disk.0", LETTERS)
    monkeypatch.setenv("PATH", f"{tmp_path / 'virsh'}:{os.environ['PATH']}")
    monkeypatch.setattr(standstill, "_PAUSE", 0.01)
    return Virsh(tmp_path / "virsh", str(base / "42" / "disk.0"))


@pytest.fixture
def talk(base: Path) -> Iterator[Callable[..., Conversation]]:
    begun: List[Conversation] = []

    def work(files: Files | None = None, **arguments: Any) -> Conversation:
        begun.append(Conversation(base, create=False, files=files, **arguments))
        assert isinstance(begun[-1].opened, messages.Opened), begun[-1].opened
        return begun[-1]

    yield work
    for one in begun:
        end(one)


def end(one: Conversation) -> None:
    if not getattr(one, "ended", False):
        one.ended = True  # type: ignore[attr-defined]
        one.end()


def left(base: Path) -> List[str]:
    return sorted(path.name for path in (base / "42").iterdir())


def read(one: Conversation) -> bytes:
    """The disk as the front-end would get it."""
    page = one.ask(messages.Scan(0, len(LETTERS), CHUNK), messages.Offer)
    assert page.digests == manifest_of(LETTERS).digests
    got = b"".join(one.ask(messages.Get(i, CHUNK, CHUNK, False), messages.Put).blob for i in range(len(LETTERS)))
    one.ask(messages.CloseSource(), wire.Done)
    return got


def test_a_reflink_is_made_while_the_guest_stands_still(base: Path, virsh: Virsh, talk: Any) -> None:
    files = Sharing()
    one = talk(files)
    found = one.ask(LIVE, messages.Source)
    assert found.size == len(content(LETTERS))
    assert virsh.commands == ["domfsfreeze", "suspend", "resume", "domfsthaw"] and virsh.undisturbed()
    with open(base / "42" / "disk.0", "r+b") as disk:
        disk.write(b"the guest goes on")
    assert read(one) == content(LETTERS)
    end(one)
    assert left(base) == ["disk.0"]


def test_a_reflink_under_the_running_guest_is_never_what_is_read(base: Path, virsh: Virsh, talk: Any) -> None:
    class Once(Sharing):
        def clone(self, target: int, source: int) -> bool:
            return virsh.state == "running" and super().clone(target, source)

    assert "cannot be shared any more" in talk(Once()).refused(LIVE).text
    assert virsh.undisturbed() and left(base) == ["disk.0"]


def test_a_guest_that_somebody_resumes_meanwhile_is_not_copied(base: Path, virsh: Virsh, talk: Any) -> None:
    class Woken(Sharing):
        def clone(self, target: int, source: int) -> bool:
            virsh.state = "running"
            return super().clone(target, source)

    assert "resumed by somebody else" in talk(Woken()).refused(LIVE).text
    assert virsh.undisturbed() and left(base) == ["disk.0"]


def test_a_guest_without_an_agent_is_suspended_only(base: Path, virsh: Virsh, talk: Any) -> None:
    virsh.behave({"domfsfreeze": "fail"})
    one = talk(Sharing())
    assert isinstance(one.ask(LIVE), messages.Source)
    assert virsh.undisturbed() and [c for c in virsh.commands if c in ("suspend", "resume")] == ["suspend", "resume"]


@pytest.mark.parametrize("state", ["paused", "shut off"])
def test_a_guest_that_stands_still_already_is_left_so(virsh: Virsh, talk: Any, state: str) -> None:
    virsh.state = state
    one = talk(Sharing())
    assert read_after(one) == content(LETTERS)
    assert virsh.commands == [] and virsh.state == state


def read_after(one: Conversation) -> bytes:
    one.ask(LIVE, messages.Source)
    return read(one)


@pytest.mark.parametrize(
    "behave",
    [{"suspend": "fail"}, {"suspend": "late"}, {"suspend": "fail", "domfsfreeze": "late"}, {"domstate": "fail"}],
    ids=str,
)
def test_when_virsh_fails_the_guest_goes_on_and_the_sentence_says_why(
    base: Path, virsh: Virsh, talk: Any, behave: Any
) -> None:
    virsh.behave(behave)
    failure = talk(Sharing()).refused(LIVE)
    assert "virsh" in failure.text and "one-42" in failure.text
    virsh.behave({})
    assert virsh.undisturbed() and left(base) == ["disk.0"]


def test_a_suspend_that_takes_too_long_is_undone(base: Path, virsh: Virsh, talk: Any) -> None:
    virsh.behave({"suspend": "hang"})
    failure = talk(Sharing()).refused(image_messages.OpenLive("raw", "qemu:///system", "one-42", "vda", 1))
    assert "did not end within 1 s" in failure.text
    assert virsh.undisturbed() and left(base) == ["disk.0"]


def test_no_virsh_is_one_sentence(base: Path, virsh: Virsh, talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "PROGRAM", "no-such-virsh")
    assert "install libvirt" in talk(Sharing()).refused(LIVE).text
    assert left(base) == ["disk.0"]


def test_what_no_domain_is_called_never_reaches_virsh(virsh: Virsh, talk: Any) -> None:
    for uri, domain, target in (("-c", "one-42", "vda"), ("qemu:///system", "--all", "vda")):
        one = talk(Sharing())
        one.refused(image_messages.OpenLive("raw", uri, domain, target, 5))
        end(one)
    files = RecordingFiles(lacking=NO_SHARING)
    talk(files).refused(image_messages.OpenLive("raw", "qemu:///system", "one-42", "--shallow", 5))
    assert [call for call in virsh.calls if "--all" in call or "shallow" in call] == []


def test_a_reflink_that_fails_in_the_moment_leaves_a_guest_that_runs(base: Path, virsh: Virsh, talk: Any) -> None:
    class Second(Sharing):
        times = 0

        def clone(self, target: int, source: int) -> bool:
            self.times += 1
            if self.times == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().clone(target, source)

    assert "Input/output error" in talk(Second()).refused(LIVE).text
    assert virsh.undisturbed() and virsh.commands[1:3] == ["suspend", "resume"] and left(base) == ["disk.0"]


def test_a_guest_that_cannot_be_resumed_is_told_about_and_the_waker_goes_on(
    base: Path, virsh: Virsh, talk: Any
) -> None:
    virsh.behave({"resume": "fail"})
    failure = talk(Sharing()).refused(LIVE)
    assert "virsh --connect qemu:///system resume one-42" in failure.text
    assert virsh.state == "paused" and standstill.MARK in left(base)
    virsh.behave({})  # libvirtd has been restarted
    virsh.wait()


def test_a_guest_that_stands_still_for_too_long_is_resumed_by_the_waker(
    base: Path, virsh: Virsh, talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Sharing):
        times = 0

        def clone(self, target: int, source: int) -> bool:
            self.times += 1
            if self.times == 2:
                virsh.wait_for_call("domfsthaw")  # a disk that hangs, until the waker has lost patience
            return super().clone(target, source)

    monkeypatch.setattr(live, "_BRIEF", 0.3 - LIVE.patience)
    assert "stood still for too long" in talk(Slow()).refused(LIVE).text
    assert virsh.undisturbed()
    assert left(base) == ["disk.0"]


def test_a_waker_that_loses_patience_before_the_suspend_leaves_no_guest_suspended(
    base: Path, virsh: Virsh, talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees a guest that runs, and nothing to undo; the suspend comes after that."""
    honest = hypervisor.Hypervisor.suspend

    def late(self: hypervisor.Hypervisor, domain: str) -> None:
        virsh.wait_for_call("domfsthaw")  # until the waker has been there
        honest(self, domain)

    monkeypatch.setattr(hypervisor.Hypervisor, "suspend", late)
    monkeypatch.setattr(live, "_BRIEF", 4.0 - LIVE.patience)  # enough for the freeze on a busy machine
    assert "stood still for too long" in talk(Sharing()).refused(LIVE).text
    assert "suspend" in virsh.commands and virsh.undisturbed() and left(base) == ["disk.0"]


# --- without reflink ---------------------------------------------------------------------------------------------


def test_libvirt_copies_where_blocks_cannot_be_shared(base: Path, virsh: Virsh, talk: Any) -> None:
    one = talk(RecordingFiles(lacking=NO_SHARING))
    assert read_after(one) == content(LETTERS)
    copy = base / "42" / live.live_name("disk.0")
    assert virsh.calls == [f"blockcopy one-42 vda {copy} --wait --finish"]
    assert copy.exists()
    end(one)
    assert left(base) == ["disk.0"]


def test_where_libvirt_cannot_copy_the_guest_stands_still_for_it(base: Path, virsh: Virsh, talk: Any) -> None:
    virsh.behave({"blockcopy": "fail"})
    one = talk(RecordingFiles(lacking=NO_SHARING))
    assert read_after(one) == content(LETTERS)
    assert virsh.commands == ["blockcopy", "domfsfreeze", "suspend", "resume", "domfsthaw"] and virsh.undisturbed()


def test_a_copy_ends_with_the_front_end(base: Path, virsh: Virsh, talk: Any) -> None:
    virsh.behave({"blockcopy": "hang"})
    one = talk(RecordingFiles(lacking=NO_SHARING))
    one.alive = False
    assert one.refused(LIVE).kind == "superseded"
    assert virsh.commands[-1] == "blockjob" and left(base) == ["disk.0"]


# --- an agent that is killed -------------------------------------------------------------------------------------

_AGENT = """
import sys
import time
from pathlib import Path
from tests.unit.agent.conversation import Conversation
from tests.unit.agent.test_live import LIVE, Sharing
one = Conversation(Path(sys.argv[1]), create=False, files=Sharing())
one.session.handle(LIVE)
"""


def agent_dies(base: Path, before: str = "") -> None:
    """Run an agent that does not survive what virsh does."""
    argv = [sys.executable, "-c", f"{before}\n{_AGENT}", str(base)]
    assert subprocess.run(argv, cwd=ROOT, timeout=60).returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", ["domfsfreeze", "suspend", "resume", "domfsthaw"])
def test_an_agent_that_is_killed_at_any_step_leaves_a_guest_that_runs(
    base: Path, virsh: Virsh, talk: Any, step: str
) -> None:
    virsh.behave({step: "vanish"})
    agent_dies(base)
    virsh.behave({})
    virsh.wait()
    assert standstill.MARK in left(base)
    virsh.forget()
    one = talk(Sharing())  # whoever comes next looks, finds it running, and goes on
    assert standstill.MARK not in left(base) and "resume" not in virsh.commands
    assert read_after(one) == content(LETTERS)


def test_whoever_comes_next_resumes_a_guest_that_agent_and_waker_have_left(
    base: Path, virsh: Virsh, talk: Any
) -> None:
    deaf = base.parent / "waker.py"
    deaf.write_text("import os; os.write(1, b'!')\nwhile os.read(0, 1): pass\n")
    virsh.behave({"suspend": "vanish"})
    agent_dies(base, f"from tm_fastcopy.agent import standstill; standstill._WAKER = {str(deaf)!r}")
    virsh.behave({})
    assert virsh.state == "paused" and virsh.frozen
    one = talk(name="disk.7")  # an action on another disk
    assert virsh.undisturbed() and left(base) == sorted(["disk.0", live.live_name("disk.0")])
    end(one)
    again = talk(Sharing(), action=2)
    assert read_after(again) == content(LETTERS)
    end(again)
    assert left(base) == ["disk.0"]


def test_a_mark_that_nobody_could_have_written_is_ignored(base: Path, virsh: Virsh, talk: Any) -> None:
    for text in ("", "{", '{"uri": "-x", "domain": "one-42", "target": ""}', '{"uri": 3}', "[]"):
        (base / "42" / standstill.MARK).write_text(text)
        one = talk()
        assert virsh.calls == [] and left(base) == ["disk.0"]
        end(one)


# --- a guest that writes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", [(), NO_SHARING], ids=["as it is", "without reflink"])
def test_the_copy_is_of_one_moment(base: Path, virsh: Virsh, talk: Any, lacking: Any, tmp_path: Path) -> None:
    disk = base / "42" / "disk.0"
    os.truncate(disk, 64 << 20)
    with Guest(virsh, disk) as guest:
        while guest.written < 100:
            pass
        one = talk(RecordingFiles(lacking=lacking))
        one.ask(LIVE, messages.Source)
        before = guest.written
        assert is_of_one_moment(base / "42" / live.live_name("disk.0"))
        while guest.written < before + 100:
            assert virsh.undisturbed()
    end(one)
    assert left(base) == ["disk.0"]
