"""The daemon's socket, and when it ends; what it does for real is in tests/e2e/test_daemon.py."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path
from typing import Awaitable, Callable, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.frontend import daemon as module
from tm_fastcopy.frontend import inquiry
from tm_fastcopy.frontend.arguments import Endpoint
from tm_fastcopy.frontend.call import Call
from tm_fastcopy.frontend.daemon import MAGIC, Daemon, Request, listen, take_seat
from tm_fastcopy.frontend.inquiry import Answer
from tm_fastcopy.frontend.services import Services


def packed(*fields: bytes) -> bytes:
    return b"".join(field + b"\0" for field in fields)


def test_a_call_is_read() -> None:
    raw = packed(MAGIC, b"3", b"clone", b"a b", b"\xff", b"ONE_AUTH=/x=y", b"EMPTY=")
    request = Request.parse(raw)
    assert request.argv == ["clone", "a b", os.fsdecode(b"\xff")]
    assert request.environ == {"ONE_AUTH": "/x=y", "EMPTY": ""}
    assert request.stdin == ""
    given = Request.parse(packed(MAGIC, b"1", b"premigrate", b"A=b", b"<stdin=PFZN=="))
    assert (given.stdin, given.environ) == ("PFZN==", {"A": "b"})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        packed(MAGIC),
        packed(b"fastcopy-call 2", b"0"),
        packed(MAGIC, b"x"),
        packed(MAGIC, b"-1"),
        packed(MAGIC, b"2", b"clone"),
        packed(MAGIC, b"1", b"clone")[:-1],
    ],
)
def test_what_is_no_call_is_refused(raw: bytes) -> None:
    with pytest.raises(FastcopyError, match="no call"):
        Request.parse(raw)


@given(st.binary(max_size=200))
def test_nothing_else_happens_whatever_comes(raw: bytes) -> None:
    for text in (raw, MAGIC + b"\0" + raw):
        try:
            Request.parse(text)
        except FastcopyError:
            pass


# --- serving -------------------------------------------------------------------------------------------------------


class House:
    """A daemon that serves in a directory of the test's."""

    def __init__(self, directory: Path, idle_exit: Optional[float] = None, decline: bool = False) -> None:
        self.path = directory / "state" / "daemon-here.sock"
        self.file = directory / "fastcopy.yaml"
        self.installed = directory / "venv"
        self._idle_exit, self._decline = idle_exit, decline

    async def live(self, scene: Callable[[Daemon], Awaitable[None]]) -> None:
        seat = listen(self.path)
        assert seat is not None
        watched = self.file, self.installed
        daemon = Daemon(Services(keep=True), self._idle_exit, *watched, decline=self._decline)
        serving = asyncio.ensure_future(daemon.serve(*seat))
        try:
            await asyncio.wait_for(scene(daemon), 20)
            daemon.ending.set()
        finally:
            daemon.ending.set()
            await asyncio.wait_for(serving, 20)
        assert not self.path.exists()
        again = listen(self.path)  # the lock was given back
        assert again is not None
        again[0].close()
        os.close(again[1])

    async def say(self, *fields: bytes) -> List[bytes]:
        """Send a call and return the lines that come back."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        raw = packed(*fields)
        writer.write(len(raw).to_bytes(4, "big") + raw)
        try:
            said = await reader.read()
        finally:
            writer.close()
        await writer.wait_closed()
        heard, *lines = said.splitlines() or [b"H"]
        assert heard == b"H"  # first of all, and at once: who does not hear it goes on alone
        return lines


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`listen` changes the directory of its process; a test gives it back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_LOOK", 0.05)


def test_an_unknown_action_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(_: Daemon) -> None:
        assert await house.say(MAGIC, b"1", b"explode") == [b"Efastcopy has no action 'explode'", b"X1"]
        assert await house.say(MAGIC, b"0") == [b"Efastcopy was called without an action", b"X1"]
        assert await house.say(b"nonsense", b"0") == []
        assert stat.S_IMODE(house.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(house.path.parent.stat().st_mode) == 0o700

    asyncio.run(house.live(scene))


def test_the_environment_is_the_calls(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(_: Daemon) -> None:
        words = (b"clone", b"fe:/image", b"host:/datastores/0/1/disk.0", b"1", b"0")
        said = await house.say(MAGIC, b"5", *words, b"ONE_AUTH=/nonexistent/auth")
        assert said[0].startswith(b"Ethe credentials for oned cannot be read: /nonexistent/auth") and said[1] == b"X1"

    asyncio.run(house.live(scene))


def test_it_ends_when_nothing_is_asked(tmp_path: Path) -> None:
    house = House(tmp_path, idle_exit=0.3)

    async def scene(daemon: Daemon) -> None:
        await house.say(MAGIC, b"1", b"explode")
        await asyncio.wait_for(daemon.ending.wait(), 10)

    asyncio.run(house.live(scene))


def test_told_to_decline_it_sends_clients_away(tmp_path: Path) -> None:
    house = House(tmp_path, decline=True)

    async def scene(_: Daemon) -> None:
        assert await house.say(MAGIC, b"1", b"clone") == [b"N"]

    asyncio.run(house.live(scene))


def test_another_configuration_is_another_daemons(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(daemon: Daemon) -> None:
        assert await house.say(MAGIC, b"1", b"explode") != [b"R"]
        house.file.write_text("lanes: 3\n")
        await asyncio.wait_for(daemon.ending.wait(), 10)

    asyncio.run(house.live(scene))


def test_a_release_that_becomes_the_current_one_is_another_daemons(tmp_path: Path) -> None:
    house = House(tmp_path)
    for name in ("old", "new"):
        (tmp_path / name / "venv").mkdir(parents=True)
    (tmp_path / "current").symlink_to("old")
    house.installed.symlink_to("current/venv")

    async def scene(daemon: Daemon) -> None:
        assert await house.say(MAGIC, b"1", b"explode") != [b"R"]
        (tmp_path / "next").symlink_to("new")
        (tmp_path / "next").rename(tmp_path / "current")
        assert await house.say(MAGIC, b"1", b"explode") == [b"R"]  # at once, for this very call
        assert daemon.ending.is_set()

    asyncio.run(house.live(scene))


def test_there_is_one_at_a_time(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(_: Daemon) -> None:
        assert listen(house.path) is None
        assert await house.say(MAGIC, b"0")  # and the first one still serves

    asyncio.run(house.live(scene))


@pytest.mark.parametrize("replaced", [False, True])
def test_who_waits_for_the_seat_does_not_serve_what_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """systemd's daemon waits for one that a client has started; an upgrade ends that one, and must not leave this."""
    monkeypatch.setattr(module, "_LOOK", 0.02)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "current").symlink_to("old")
    path = House(tmp_path).path
    first = listen(path)
    assert first is not None
    found: List[object] = []
    tried = threading.Event()

    def noting(where: Path) -> object:
        seat = listen(where)
        tried.set()
        return seat

    monkeypatch.setattr(module, "listen", noting)
    waiting = threading.Thread(target=lambda: found.append(take_seat(path, True, tmp_path / "current")), daemon=True)
    waiting.start()
    assert tried.wait(10)  # it has seen what is there now
    assert waiting.is_alive() and take_seat(path, False) is None
    if replaced:
        (tmp_path / "next").symlink_to("new")
        (tmp_path / "next").rename(tmp_path / "current")
    first[0].close()
    os.close(first[1])
    waiting.join(10)
    assert (found == [None]) == replaced
    third = listen(path)
    assert (third is not None) == replaced  # it lets go of what it had taken
    for seat in (third, *found):
        if isinstance(seat, tuple):
            seat[0].close()
            os.close(seat[1])


def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.path.parent.mkdir()
    house.path.write_text("left")

    async def scene(_: Daemon) -> None:
        assert await house.say(MAGIC, b"0")

    asyncio.run(house.live(scene))


# --- inquiries -----------------------------------------------------------------------------------------------------


async def clone_without_end(call: Call) -> None:
    """An action that goes as far as a transfer, and waits there."""
    async with call.turn(Endpoint.parse(next(word for word in call.argv if word.startswith("host")))):
        call.vm_id = 7
        call.phases.enter("transfer")
        call.phases.progress.expect(1000)
        call.phases.progress.moved(250)
        call.log("begun")
        await asyncio.sleep(60)


class Client:
    """A call that is under way: the lines that have come back so far."""

    def __init__(self, house: House, disk: bytes) -> None:
        self._task = asyncio.ensure_future(house.say(MAGIC, b"5", b"clone", b"fe:/image", disk, b"7", b"0"))

    async def end(self) -> List[bytes]:
        return await self._task


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    from tm_fastcopy.frontend.actions import clone, delete

    for action in (clone, delete):
        monkeypatch.setattr(action, "run", clone_without_end)


async def begun(house: House, count: int) -> Answer:
    """What the daemon says when so many calls are in their transfer."""
    while True:
        (answer,) = await inquiry.ask(house.path, "status")
        if sum(row["phase"] == "transfer" for row in answer.calls) == count:
            return answer
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("endless")
def test_what_runs_is_told_and_can_be_cancelled(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(_: Daemon) -> None:
        first = Client(house, b"host1:/datastores/0/7/disk.0")
        second = Client(house, b"host2:/datastores/0/7/disk.1")
        other = Client(house, b"host2:/datastores/0/70/disk.0")
        answer = await begun(house, 3)
        assert (answer.daemon["format"], answer.daemon["pid"]) == (1, os.getpid())
        row = answer.calls[0]
        assert {name: row[name] for name in ("vm", "disk", "host", "action", "phase", "done", "total")} == {
            "vm": 7, "disk": "disk.0", "host": "host1", "action": "clone", "phase": "transfer", "done": 250,
            "total": 1000,
        }  # fmt: skip
        assert isinstance(row["age"], float) and row["age"] < 20
        (gone,) = await inquiry.ask(house.path, "cancel", "7", "disk.1", "keep")
        assert [(row["vm"], row["disk"]) for row in gone.calls] == [(7, "disk.1")]
        assert gone.calls[0]["stays"] == "what has arrived, for when the action is repeated"
        log, error, code = await second.end()
        assert log == b"LINFO: 7 clone: begun"  # of the VM, which oned knows
        assert b"was ended by `fastcopy cancel`" in error and code == b"X1"
        (gone,) = await inquiry.ask(house.path, "cancel", "7", "", "discard")
        assert [(row["vm"], row["disk"], row["stays"]) for row in gone.calls] == [(7, "disk.0", "")]
        assert (await first.end())[-1] == b"X1"
        assert [row["vm"] for row in (await begun(house, 1)).calls] == [70]
        await inquiry.ask(house.path, "cancel", "70", "", "discard")
        await other.end()

    asyncio.run(house.live(scene))


def test_who_cancels_twice_does_not_cut_off_the_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tm_fastcopy.frontend.actions import clone

    removed = []

    async def remove() -> str:
        await asyncio.sleep(0.2)
        removed.append(True)
        return ""

    async def run(call: Call) -> None:
        async with call.discarding(remove):
            await clone_without_end(call)

    monkeypatch.setattr(clone, "run", run)
    house = House(tmp_path)

    async def scene(_: Daemon) -> None:
        client = Client(house, b"host1:/datastores/0/7/disk.0")
        await begun(house, 1)
        questions = [inquiry.ask(house.path, "cancel", "7", "", how) for how in ("discard", "discard", "keep")]
        answers = await asyncio.gather(*questions)
        assert [answer.calls[0]["stays"] for (answer,) in answers] == ["", "", ""]
        assert removed == [True]
        await client.end()

    asyncio.run(house.live(scene))


@pytest.mark.usefixtures("endless")
def test_a_daemon_that_takes_no_more_calls_still_says_what_it_has(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(daemon: Daemon) -> None:
        client = Client(house, b"host1:/datastores/0/7/disk.0")
        await begun(house, 1)
        daemon.ending.set()
        while house.path.exists():
            await asyncio.sleep(0.01)
        assert [row["vm"] for row in (await begun(house, 1)).calls] == [7]
        await inquiry.ask(house.path, "cancel", "7", "", "discard")
        await client.end()
        while list(house.path.parent.glob("*.sock")):
            await asyncio.sleep(0.01)

    asyncio.run(house.live(scene))


@pytest.mark.usefixtures("endless")
def test_a_deletion_is_not_cancelled(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(daemon: Daemon) -> None:
        words = (b"delete", b"host1:/datastores/0/7/disk.0", b"7", b"0")
        client = asyncio.ensure_future(house.say(MAGIC, b"4", *words))
        await begun(house, 1)
        (answer,) = await inquiry.ask(house.path, "cancel", "7", "", "discard")
        assert answer.calls == []
        assert [row["action"] for row in (await begun(house, 1)).calls] == ["delete"]
        client.cancel()  # whose end is the action's

    asyncio.run(house.live(scene))


def test_questions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    house = House(tmp_path)

    async def scene(_: Daemon) -> None:
        wrong = ["cancel", "7", ""], ["cancel", "7", "", "perhaps"], ["cancel", "seven", "", "keep"]
        for words in (["explode"], ["cancel"], *wrong, ["status", "now"], []):
            with pytest.raises(FastcopyError, match=r"does not know the question|is not the id of a VM"):
                await inquiry.ask(house.path, *words)
        assert (await begun(house, 0)).calls == []

    asyncio.run(house.live(scene))


def test_where_no_daemon_is_nothing_runs(tmp_path: Path) -> None:
    house = House(tmp_path)
    assert asyncio.run(inquiry.ask(house.path, "status")) == []
    house.path.parent.mkdir()
    seat = listen(house.path)
    assert seat is not None
    seat[0].close()  # as a killed one leaves it
    os.close(seat[1])
    assert asyncio.run(inquiry.ask(house.path, "status")) == []
