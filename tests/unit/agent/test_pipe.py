"""The agent's end of a connection."""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import Iterator

import pytest

from tests.wire_cases import CASES
from tm_fastcopy.agent.pipe import Pipe
from tm_fastcopy.core import messages, wire
from tm_fastcopy.core.errors import LinkLost, ProtocolError


class Ends:
    """A pipe's two ends."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.pipe = Pipe(self.read, self.write)

    def close(self) -> None:
        """Close what is open."""
        for fd in (self.read, self.write):
            if fd >= 0:
                os.close(fd)

    def hang_up(self) -> None:
        """Close the writing end."""
        os.close(self.write)
        self.write = -1


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_messages_go_through(ends: Ends) -> None:
    for message in CASES:
        ends.pipe.send(message)
        assert ends.pipe.receive() == message


def test_a_message_larger_than_a_pipe(ends: Ends) -> None:
    large = messages.Put(0, wire.MAX_CHUNK, 0, bytes(wire.MAX_CHUNK))
    thread = threading.Thread(target=ends.pipe.send, args=(large,))
    thread.start()
    assert ends.pipe.receive(idle=60.0) == large
    thread.join()


def test_a_pipe_that_uses_its_buffer_again(ends: Ends) -> None:
    pipe = Pipe(ends.read, ends.write, reuse=True)
    sizes = ((1, 500), (2, 400), (3, 900))
    first, second, larger = (messages.Put(at, size, 0, bytes([at]) * size) for at, size in sizes)
    pipe.send(first, second, larger)
    got = pipe.receive()
    assert got == first
    assert pipe.pending()
    assert pipe.receive() == second
    assert pipe.receive() == larger
    assert not pipe.pending()
    assert isinstance(got, messages.Put) and bytes(got.blob) != first.blob, "memory of its own would not be worth it"


def test_an_orderly_end(ends: Ends) -> None:
    ends.hang_up()
    assert ends.pipe.receive() is None


@pytest.mark.parametrize("sent", [1, 7, 8, 20])
def test_an_end_in_the_middle(ends: Ends, sent: int) -> None:
    os.write(ends.write, wire.encode(messages.Stored(1))[:sent])
    ends.hang_up()
    with pytest.raises(LinkLost, match="in the middle"):
        ends.pipe.receive()


def test_silence_is_an_end_too(ends: Ends) -> None:
    with pytest.raises(LinkLost, match="nothing was heard"):
        ends.pipe.receive(idle=0.01)
    os.write(ends.write, b"\0\0")
    with pytest.raises(LinkLost, match="nothing was heard"):
        ends.pipe.receive(idle=0.01)


def test_a_frame_that_is_too_large_is_refused_before_it_is_read(ends: Ends) -> None:
    os.write(ends.write, struct.pack(">II", 0, 0xFFFFFFFF))
    with pytest.raises(ProtocolError, match="more than allowed"):
        ends.pipe.receive()


def test_a_reader_that_is_gone(ends: Ends) -> None:
    os.close(ends.read)
    ends.read = -1
    with pytest.raises(LinkLost):
        ends.pipe.send(wire.Done())


def test_the_end_of_the_agent_ends_a_lane(ends: Ends) -> None:
    ours, agents = socket.socketpair()
    ends.pipe.send(wire.Done())
    agents.close()
    assert ends.pipe.receive(watch=ours.fileno()) == wire.Done()  # what came before is still done
    with pytest.raises(LinkLost, match="is gone"):
        ends.pipe.receive(watch=ours.fileno())
    ours.close()
