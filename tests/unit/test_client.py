"""The client of the daemon: what it does when the daemon does not do what it should."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest

from tm_fastcopy.frontend.daemon import _MAX_CALL

CLIENT = Path(__file__).resolve().parents[2] / "tm_fastcopy" / "remotes" / "client.py"
_SHORT = 2.0  # seconds, instead of the twenty that a user waits


class House:
    """A front-end on which a test plays the daemon."""

    def __init__(self, top: Path, hello: float) -> None:
        self.top = top
        self.state = top / "var" / "fastcopy"
        self.state.mkdir(parents=True, mode=0o700)
        python = top / "lib" / "fastcopy" / "venv" / "bin" / "python3"
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\necho "in a process of its own: $*" >&2\nexit 7\n')
        python.chmod(0o755)
        script = CLIENT.read_text()
        assert "_HELLO = 20.0 " in script
        self.script = top / "client.py"
        self.script.write_text(script.replace("_HELLO = 20.0 ", f"_HELLO = {hello} "))
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.state / f"daemon-{os.uname().nodename}.sock"))
        self.listener.listen(4)
        self.calls: List[bytes] = []

    def serve(self, *answers: Callable[[socket.socket], None]) -> None:
        """Give *answers* to one client after another."""

        def work() -> None:
            for answer in answers:
                client, _ = self.listener.accept()
                with client:
                    length = int.from_bytes(client.recv(4, socket.MSG_WAITALL), "big")
                    self.calls.append(client.recv(length, socket.MSG_WAITALL))
                    answer(client)

        threading.Thread(target=work, daemon=True).start()

    def call(self, *words: str, given: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        env: Dict[str, str] = {"ONE_LOCATION": str(self.top), "SECRET": "kept", **environ}
        argv = [sys.executable, "-I", "-S", str(self.script), f"{self.top}/lib/fastcopy", *words]
        return subprocess.run(argv, env=env, input=given, capture_output=True, text=True, timeout=30)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, 20.0)
    yield made
    made.listener.close()


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[House]:
    """Where the client waits a little only until it is heard."""
    made = House(tmp_path, _SHORT)
    yield made
    made.listener.close()


def test_lines_and_the_code_come_from_the_daemon(house: House) -> None:
    house.serve(lambda client: client.sendall(b"H\nLINFO: clone: well\nEso it failed\nX1\n"))
    done = house.call("clone", "a b", ONE_AUTH="/x", FASTCOPY_LANES="2")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "INFO: clone: well\nso it failed\n")
    fields = house.calls[0].split(b"\0")
    assert fields[:4] == [b"fastcopy-call 1", b"2", b"clone", b"a b"] and fields[-1] == b""
    assert b"ONE_AUTH=/x" in fields and b"FASTCOPY_LANES=2" in fields
    assert not any(field.startswith(b"SECRET") for field in fields)


def test_a_daemon_that_does_not_say_that_it_heard_is_done_without(hasty: House) -> None:
    hung = threading.Event()
    hasty.serve(lambda _: (hung.wait(20), None)[1])
    done = hasty.call("clone", "x")
    hung.set()
    assert done.returncode == 7
    assert "in a process of its own: -I -m tm_fastcopy.frontend.main clone x" in done.stderr


def test_a_daemon_that_heard_may_take_its_time(hasty: House) -> None:
    def slowly(client: socket.socket) -> None:
        client.sendall(b"H\n")
        threading.Event().wait(1.5 * _SHORT)
        client.sendall(b"X0\n")

    hasty.serve(slowly)
    done = hasty.call("clone", "x")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_daemon_that_declines_is_done_without(house: House) -> None:
    house.serve(lambda client: client.sendall(b"H\nN\n"))
    assert house.call("clone", "x").returncode == 7


def test_a_daemon_that_ends_sends_its_clients_to_the_next(house: House) -> None:
    house.serve(lambda client: client.sendall(b"H\nR\n"), lambda client: client.sendall(b"H\nX0\n"))
    assert house.call("clone", "x").returncode == 0
    assert len(house.calls) == 2


def test_told_to_do_without_a_daemon_it_does_not_ask(house: House) -> None:
    assert house.call("clone", "x", FASTCOPY_DAEMON="no").returncode == 7
    assert house.calls == []


def test_standard_input_goes_with_the_actions_that_get_one(house: House) -> None:
    house.serve(*[lambda client: client.sendall(b"H\nX0\n")] * 3)
    given = "PFZN" * 50_000
    assert house.call("premigrate", "x", given=given).returncode == 0
    assert house.call("clone", "x", given=given).returncode == 0
    assert house.call("premigrate", "x", given="").returncode == 0
    assert [call.count(b"<stdin=") for call in house.calls] == [1, 0, 0]
    assert house.calls[0].split(b"\0")[-2] == b"<stdin=" + given.encode()


def test_standard_input_is_there_again_for_a_process_of_its_own(house: House) -> None:
    python = house.top / "lib" / "fastcopy" / "venv" / "bin" / "python3"
    python.write_text("#!/bin/sh\ncat >&2\nexit 7\n")
    assert house.call("premigrate", "x", given="PFZN", FASTCOPY_DAEMON="no").stderr == "PFZN"
    house.serve(lambda client: client.sendall(b"H\nN\n"))
    assert house.call("premigrate", "x", given="PFZN").stderr == "PFZN"


def test_no_more_of_it_is_sent_than_a_daemon_takes(house: House) -> None:
    house.serve(lambda client: client.sendall(b"H\nX0\n"))
    house.call("premigrate", "x", given="x" * 5_000_000)
    assert len(house.calls[0].split(b"\0")[-2]) == len(b"<stdin=") + 4 * 1024 * 1024 < _MAX_CALL
