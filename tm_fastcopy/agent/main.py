"""The agent's process: banner, then messages until the front-end goes away.

Started by the bootstrap as "control" (one conversation) or "lane".  Standard output belongs to the protocol, so it was
moved to a descriptor of its own before anything else could write to it.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import Optional, Tuple

from ..core.errors import FastcopyError, LinkLost
from ..core.files import Files
from ..core.messages import Leave
from ..core.wire import PROTOCOL_VERSION, Done, Failure, Message, Ping, Pong
from .lanes import LaneDoor, run_lane
from .pipe import Pipe
from .session import Session

SILENCE = 30.0  # seconds without a word from the front-end, which speaks every 5, until we take it for gone


def main(mode: str, read_fd: int, write_fd: int, digest: str, files: Optional[Files] = None) -> None:
    """Run the agent on two descriptors until its peer closes them."""
    os.write(write_fd, f"\nFASTCOPY-AGENT {PROTOCOL_VERSION} {digest} {mode}\n".encode())
    pipe = Pipe(read_fd, write_fd, reuse=mode == "lane")  # which is done with a chunk before it reads the next
    files = files or Files()
    try:
        if mode == "lane":
            run_lane(pipe, files)
        else:
            _converse(pipe, files)
    except FastcopyError as error:
        print(f"fastcopy: {error}", file=sys.stderr)
        try:
            pipe.send(Failure.of(error))
        except FastcopyError:
            pass  # nobody is there to be told


class _Inbox:
    """Messages, read by a thread so that the end of the connection is noticed also while we work."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._queue: queue.Queue[Tuple[Optional[Message], Optional[FastcopyError]]] = queue.Queue(maxsize=64)
        self.alive = True
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        message: Optional[Message]
        while True:
            problem: Optional[FastcopyError] = None
            try:
                message = self._pipe.receive(idle=SILENCE)
            except FastcopyError as error:
                message, problem = None, error
            except OSError as error:
                message, problem = None, LinkLost(str(error))
            if message is None:
                self.alive = False
                self._queue.put((None, problem))
                return
            if isinstance(message, Ping):
                self._pong()
            # While an answer is in the making nobody looks at pings, and they must not pile up in front of the end.
            if not isinstance(message, Ping) or self._queue.empty():
                self._queue.put((message, None))

    def _pong(self) -> None:
        try:
            self._pipe.send(Pong())
        except FastcopyError:
            pass  # the end of the connection is noticed where it is read

    def get(self) -> Optional[Message]:
        """The next message, or None at the end."""
        message, problem = self._queue.get()
        if problem:
            raise problem
        return message


def _converse(pipe: Pipe, files: Files) -> None:
    """One conversation after another, until the front-end closes the connection."""
    inbox = _Inbox(pipe)
    door = LaneDoor()
    session = Session(files, lambda: inbox.alive, door)
    try:
        while True:
            message = inbox.get()
            if message is None:
                return
            session.heard()
            if isinstance(message, Leave):
                session.end()
                session = Session(files, lambda: inbox.alive, door)
                pipe.send(Done())
            elif not isinstance(message, Ping):
                pipe.send(session.handle(message))
    finally:
        session.end()
        door.remove()
