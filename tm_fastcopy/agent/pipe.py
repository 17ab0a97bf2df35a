"""The agent's end of a connection: frames over two descriptors, blocking."""

from __future__ import annotations

import os
import select
import threading
from typing import Optional

from ..core.errors import LinkLost
from ..core.wire import PREFIX_SIZE, Message, encode, frame_lengths, parse


class Pipe:
    """Messages from *read_fd* and to *write_fd*.  The blob of a message is a view of what was read, not a copy.

    With *reuse* that is always the same buffer, and the blob is gone with the next `receive`: memory that is asked for
    anew for every chunk costs more than reading the chunk does.
    """

    def __init__(self, read_fd: int, write_fd: int, reuse: bool = False) -> None:
        self._read_fd, self._write_fd, self._reuse = read_fd, write_fd, reuse
        self._buffer = bytearray()
        self._sending = threading.Lock()

    def receive(self, idle: Optional[float] = None, watch: Optional[int] = None) -> Optional[Message]:
        """The next message, or None at an orderly end.

        `LinkLost` if nothing comes for *idle* seconds, or if the peer of the socket *watch* goes away.
        """
        prefix = memoryview(bytearray(PREFIX_SIZE))
        if not self._fill(prefix, idle, watch, orderly=True):
            return None
        header_length, blob_length = frame_lengths(bytes(prefix))
        header, blob = memoryview(bytearray(header_length)), self._room(blob_length)
        self._fill(header, idle, watch)
        self._fill(blob, idle, watch)
        return parse(bytes(header), blob)

    def _room(self, length: int) -> memoryview:
        """Where a blob is read to."""
        if not self._reuse:
            return memoryview(bytearray(length))
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]

    def pending(self) -> bool:
        """Whether something more can be read now."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, *messages: Message) -> None:
        """Write messages, from any thread; `LinkLost` if the other side is gone."""
        view = memoryview(b"".join(map(encode, messages)))
        try:
            with self._sending:
                while view:
                    view = view[os.write(self._write_fd, view) :]
        except OSError as error:
            raise LinkLost("the front-end went away") from error

    def _fill(self, view: memoryview, idle: Optional[float], watch: Optional[int], orderly: bool = False) -> bool:
        """Read until *view* is full; False if the peer has ended before its first byte, and may (*orderly*)."""
        filled = 0
        while filled < len(view):
            self._await(idle, watch)
            count = os.readv(self._read_fd, [view[filled:]])
            if not count:
                if orderly and not filled:
                    return False
                raise LinkLost("the front-end went away in the middle of a message")
            filled += count
        return True

    def _await(self, idle: Optional[float], watch: Optional[int]) -> None:
        if idle is None and watch is None:
            return
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        if watch is not None:
            poll.register(watch, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if idle is None else idle * 1000)]
        if not ready:
            raise LinkLost(f"nothing was heard from the front-end for {idle:.0f} s")
        if watch in ready and self._read_fd not in ready:
            raise LinkLost("the agent that this lane belongs to is gone")
