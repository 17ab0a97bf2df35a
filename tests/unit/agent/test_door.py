"""The lanes' door: who is let in, what they are handed, and that none is left when something is published."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Iterator

import pytest

from tests.support import make_file
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.core import wire

from .conversation import Lane


@pytest.fixture
def door() -> Iterator[LaneDoor]:
    made = LaneDoor()
    yield made
    made.remove()


def knock(door: LaneDoor, token: bytes) -> bytes:
    """Present a token; return what was handed over, without the files."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(60)
        caller.connect(door.path)
        caller.sendall(token)
        caller.shutdown(socket.SHUT_WR)
        raw, fds, _, _ = socket.recv_fds(caller, 4096, 3)
        for fd in fds:
            os.close(fd)
        return raw


def test_only_this_user_can_reach_it(door: LaneDoor) -> None:
    assert stat.S_IMODE(os.stat(os.path.dirname(door.path)).st_mode) == 0o700


def test_every_door_has_a_token_of_its_own(door: LaneDoor) -> None:
    other = LaneDoor()
    assert len(door.token) == 32 and door.token != other.token
    other.remove()
    assert not os.path.exists(os.path.dirname(other.path))


def test_the_right_token_gets_the_files(door: LaneDoor, tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "A"), os.O_RDONLY)
    door.hand_out({"do": "fetch"}, [fd])
    assert knock(door, door.token.encode()) == b'{"do": "fetch"}'
    os.close(fd)


def test_a_wrong_token_gets_nothing(door: LaneDoor, tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "A"), os.O_RDONLY)
    door.hand_out({"do": "fetch"}, [fd])
    right = door.token.encode()
    for token in (b"", b"x" * 32, right[:-1], right.upper() if right.upper() != right else b"", b"\xff" * 32):
        assert knock(door, token) == b""
    assert knock(door, right) != b""
    os.close(fd)


def test_there_is_nothing_before_there_is_something_to_hand_out(door: LaneDoor) -> None:
    assert knock(door, door.token.encode()) == b""


def test_nobody_is_let_in_after_the_commit(door: LaneDoor, tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "A"), os.O_RDONLY)
    door.hand_out({"do": "fetch"}, [fd])
    door.close_and_wait()
    assert knock(door, door.token.encode()) == b""
    os.close(fd)


def test_a_lane_with_a_wrong_token_says_so_and_ends(door: LaneDoor) -> None:
    lane = Lane(door.path, "0" * 32)
    assert isinstance(lane.joined, wire.Failure)
    assert "does not know this lane" in lane.joined.text
    assert lane.process.wait(60) == 0
    lane.close()


def test_a_lane_ends_when_its_door_is_closed(door: LaneDoor, tmp_path: Path) -> None:
    fd = os.open(make_file(tmp_path / "file", "A"), os.O_RDONLY)
    door.hand_out({"do": "fetch", "shown": "reading"}, [fd])
    lane = Lane(door.path, door.token)
    assert lane.joined == wire.Done()
    door.close_and_wait()
    assert lane.process.wait(60) == 0
    lane.close()
    os.close(fd)
