"""The writing end of a pipe: all arrives in order, a cut message is the last, and a dead reader is noticed."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import List

import pytest

from tm_fastcopy.core.errors import LinkLost
from tm_fastcopy.frontend.pipe_writer import PipeWriter

_LARGE = 3 * 1024 * 1024 + 17  # more than the pipe holds


def collect(read_end: int, into: List[bytes]) -> threading.Thread:
    """Read to the end, in pieces that do not match what was written."""

    def work() -> None:
        while True:
            piece = os.read(read_end, 70_001)
            if not piece:
                return
            into.append(piece)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_all_pieces_arrive_in_order_from_several_writers() -> None:
    read_end, write_end = os.pipe()
    found: List[bytes] = []

    async def scene() -> None:
        writer = PipeWriter(write_end)
        thread = collect(read_end, found)
        ones = [bytes([n]) * size for n, size in ((1, 5), (2, _LARGE), (3, 0), (4, 70_000))]
        many = [bytes([5])] * 200  # more than go with one system call
        await asyncio.gather(writer.write(*ones), writer.write(memoryview(bytes([6]) * _LARGE), *many))
        writer.close()
        await asyncio.to_thread(thread.join)
        assert b"".join(found) == b"".join(ones) + bytes([6]) * _LARGE + b"".join(many)

    asyncio.run(scene())
    os.close(read_end)


def test_what_follows_a_message_that_was_cut_off_is_not_written() -> None:
    read_end, write_end = os.pipe()

    async def scene() -> None:
        writer = PipeWriter(write_end)
        task = asyncio.ensure_future(writer.write(bytes(_LARGE)))  # nobody reads
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(LinkLost):
            await writer.write(b"the next message")
        writer.close()

    asyncio.run(scene())
    rest = b""
    while True:
        piece = os.read(read_end, 1 << 20)
        if not piece:
            break
        rest += piece
    assert len(rest) < _LARGE and rest.count(0) == len(rest)
    os.close(read_end)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_reader_that_ends_is_noticed(when: str) -> None:
    read_end, write_end = os.pipe()

    async def scene() -> None:
        writer = PipeWriter(write_end)
        if when == "before":
            os.close(read_end)
        else:
            asyncio.get_running_loop().call_later(0.01, os.close, read_end)
        with pytest.raises(LinkLost):
            await writer.write(bytes(_LARGE))
        writer.close()
        writer.close()

    asyncio.run(scene())


def test_one_that_was_closed_takes_nothing() -> None:
    read_end, write_end = os.pipe()

    async def scene() -> None:
        writer = PipeWriter(write_end)
        writer.close()
        with pytest.raises(LinkLost):
            await writer.write(b"x")

    asyncio.run(scene())
    assert os.read(read_end, 10) == b""
    os.close(read_end)


def test_who_waits_for_room_is_told_that_it_was_closed_and_leaves_the_descriptor_to_its_next_owner() -> None:
    read_end, write_end = os.pipe()

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        writer = PipeWriter(write_end)
        other_read, other_write = os.pipe()
        task = asyncio.ensure_future(writer.write(bytes(_LARGE)))  # nobody reads
        await asyncio.sleep(0.01)
        writer.close()
        os.dup2(other_write, write_end)  # somebody else has the number now, and waits for room as well
        heard = loop.create_future()
        loop.add_writer(write_end, lambda: heard.done() or heard.set_result(None))
        with pytest.raises(LinkLost):
            await asyncio.wait_for(task, 5)
        assert loop.remove_writer(write_end), "the next owner would not have been woken"
        for fd in (write_end, other_read, other_write):
            os.close(fd)

    asyncio.run(scene())
    os.close(read_end)
