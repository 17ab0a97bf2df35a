"""A hop: a lane that dials another host's lane.  ssh is played by a program that starts that lane on this machine."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

from tests.support import CHUNK, content, make_file, manifest_of
from tests.unit.agent.conversation import ROOT
from tm_fastcopy.agent.hop import run_hop
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.agent.pipe import Pipe
from tm_fastcopy.core import ssh_words
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.messages import Get, Stored
from tm_fastcopy.core.move_messages import Carry, Forward
from tm_fastcopy.core.staging import HERE, WANTED, ChunkTable, Staging
from tm_fastcopy.core.wire import Done, Failure, Message

LETTERS, BUNDLE = "AB-C", "ab" * 32

LANE = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(ROOT)!r})
assert sys.argv[-3:-1] == ["--", "host2"] and "BatchMode=yes" in sys.argv
os.write(1, b"Welcome!\\n\\nFASTCOPY-BOOT 1 3.9 cpython x86_64\\n")
line = b""
while not line.endswith(b"\\n"):
    line += os.read(0, 1)
assert line == b"BUNDLE {BUNDLE} 7 lane\\n", line
os.write(1, b"\\n%s\\n" % WORD)
from tm_fastcopy.agent.main import main
main("lane", 0, 1, {BUNDLE!r})
"""

Ssh = Callable[[str], None]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    """Puts a program in ssh's place."""

    def write(text: str) -> None:
        (tmp_path / "ssh").write_text(text)
        (tmp_path / "ssh").chmod(0o755)

    monkeypatch.setattr(ssh_words, "PLACES", str(tmp_path))
    return write


class Scene:
    """A hop that runs in a thread, and the file that its target makes."""

    def __init__(self, directory: Path) -> None:
        self.door, self.table = LaneDoor(), ChunkTable.create(len(content(LETTERS)), CHUNK)
        self.table.offer(0, manifest_of(LETTERS).digests)
        for index in range(self.table.count):
            self.table.set_state(index, WANTED)
        self.place = os.open(directory, os.O_RDONLY)
        self.path = directory / "made"
        made = Staging.open(Files(), self.place, "made", self.table.size)
        assert made is not None
        self.made = made
        offer = {"do": "store", "size": self.table.size, "chunk": CHUNK, "fresh": True, "shown": "writing"}
        self.door.hand_out(offer, [self.table.fd, self.made.fd])
        self.source = os.open(make_file(directory / "source", LETTERS), os.O_RDONLY)
        self.fds = [*os.pipe(), *os.pipe()]
        self.watch = os.pipe()
        self.pipe = Pipe(self.fds[2], self.fds[1])
        message = Forward("host2", BUNDLE, 7, self.door.path, self.door.token)
        inner = Pipe(self.fds[0], self.fds[3])
        self.failed: List[BaseException] = []
        self.thread = threading.Thread(target=self._run, args=(inner, message))
        self.thread.start()

    def _run(self, pipe: Pipe, message: Forward) -> None:
        try:
            run_hop(pipe, self.source, "reading source", message, self.watch[0])
        except BaseException as error:
            self.failed.append(error)

    def answer(self) -> Optional[Message]:
        return self.pipe.receive(idle=60.0)

    def carry(self, index: int) -> Any:
        self.pipe.send(Carry(index, CHUNK, CHUNK, True))
        return self.answer()

    def end(self) -> None:
        os.close(self.fds[1])
        self.thread.join(60)
        assert not self.thread.is_alive()
        for fd in (self.fds[0], self.fds[2], self.fds[3], *self.watch, self.source, self.place):
            os.close(fd)
        self.made.close()
        self.table.close()
        self.door.remove()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Callable[[], Scene]]:
    made: List[Scene] = []

    def make() -> Scene:
        made.append(Scene(tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_chunks_go_there_and_answers_come_back(scene: Callable[[], Scene], ssh: Ssh) -> None:
    ssh(LANE.replace("WORD", "b'HAVE'"))
    hop = scene()
    assert hop.answer() == Done()
    for index in (0, 1, 3):
        hop.pipe.send(Carry(index, CHUNK, CHUNK, index == 1))
    assert [hop.answer() for _ in range(3)] == [Stored(0), Stored(1), Stored(3)]
    assert hop.path.read_bytes() == content(LETTERS)
    assert [hop.table.state(index) for index in range(4)] == [HERE, HERE, WANTED, HERE]


def test_a_chunk_that_is_another_is_refused_by_the_target(scene: Callable[[], Scene], ssh: Ssh) -> None:
    ssh(LANE.replace("WORD", "b'HAVE'"))
    hop = scene()
    assert hop.answer() == Done()
    hop.table.offer(0, bytes([7]) * 32)
    found = hop.carry(0)
    assert isinstance(found, Failure) and found.kind == "refetch"
    assert hop.carry(1) == Stored(1)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/bin/sh\necho 'host2: Permission denied (publickey).' >&2\nexit 255\n", "host2: Permission denied"),
        ("#!/bin/sh\nexit 127\n", "closed"),
        (LANE.replace("WORD", "b'NEED'"), "files are not there"),
        (LANE.replace("WORD", "b'HAVE'").replace(f'main("lane", 0, 1, {BUNDLE!r})', 'main("lane", 0, 1, "cd")'),
         "another agent"),
    ],
    ids=["no key", "no python", "no bundle", "another agent"],
)  # fmt: skip
def test_a_host_that_is_not_reached_is_a_failure_that_says_why(
    scene: Callable[[], Scene], ssh: Ssh, program: str, words: str
) -> None:
    ssh(program)
    found = scene().answer()
    assert isinstance(found, Failure) and found.kind == "reconnect"
    assert words in found.text and "host2 is not reached from here" in found.text


def test_a_target_that_goes_away_is_a_lost_link(scene: Callable[[], Scene], ssh: Ssh) -> None:
    ssh(LANE.replace("WORD", "b'HAVE'"))
    hop = scene()
    assert hop.answer() == Done()
    hop.door.close_and_wait()
    found = hop.answer()
    assert isinstance(found, Failure) and found.kind == "reconnect"


def test_nothing_else_is_served(scene: Callable[[], Scene], ssh: Ssh) -> None:
    ssh(LANE.replace("WORD", "b'HAVE'"))
    hop = scene()
    assert hop.answer() == Done()
    hop.pipe.send(Get(0, CHUNK, CHUNK, True))
    hop.thread.join(60)
    assert [str(error) for error in hop.failed] == ["a hop cannot serve Get"]


def test_no_ssh_program_is_said(scene: Callable[[], Scene], ssh: Ssh) -> None:
    found = scene().answer()
    assert isinstance(found, Failure) and "no ssh program" in found.text
