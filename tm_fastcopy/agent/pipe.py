"""The agent's end of a connection: frames over two descriptors, blocking."""

from __future__ import annotations

import os
import select
import threading
from typing import List, Optional

from ..core.errors import LinkLost
from ..core.wire import PREFIX_SIZE, Message, encode, frame_lengths, parse


class Pipe:
    """Messages from *read_fd* and to *write_fd*."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._sending = threading.Lock()

    def receive(self, idle: Optional[float] = None, watch: Optional[int] = None) -> Optional[Message]:
        """The next message, or None at an orderly end.

        `LinkLost` if nothing comes for *idle* seconds, or if the peer of the socket *watch* goes away.
        """
        prefix = self._read(PREFIX_SIZE, idle, watch, orderly=True)
        if prefix is None:
            return None
        header_length, blob_length = frame_lengths(prefix)
        body = self._read(header_length + blob_length, idle, watch)
        assert body is not None
        return parse(body[:header_length], body[header_length:])

    def send(self, message: Message) -> None:
        """Write a message, from any thread; `LinkLost` if the other side is gone."""
        view = memoryview(encode(message))
        try:
            with self._sending:
                while view:
                    view = view[os.write(self._write_fd, view) :]
        except OSError as error:
            raise LinkLost("the front-end went away") from error

    def _read(
        self, length: int, idle: Optional[float], watch: Optional[int], orderly: bool = False
    ) -> Optional[bytes]:
        pieces: List[bytes] = []
        missing = length
        while missing:
            self._await(idle, watch)
            piece = os.read(self._read_fd, missing)
            if not piece:
                if orderly and not pieces:
                    return None
                raise LinkLost("the front-end went away in the middle of a message")
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

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
