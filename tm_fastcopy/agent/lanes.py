"""Lanes, on the host: each is a process of its own that the front-end starts over ssh.

A lane opens no path.  It presents the token of its conversation to the agent's socket and is handed open files: the
table of chunks, and either the staging file to write (with the cache's copy) or the disk to read.  While it lives
it keeps
its connection to the socket; the agent publishes only after all of them are gone, so that no lane can write into a file
that a VM has begun to use.
"""

from __future__ import annotations

import hmac
import json
import os
import pwd
import secrets
import shutil
import socket
import tempfile
import threading
import time
from typing import Any, Dict, List, Optional

from ..core import codec
from ..core.errors import FastcopyError, LinkLost, NoSpace, ProtocolError, classify
from ..core.files import Files
from ..core.hashing import read_exactly
from ..core.manifest import MAX_CHUNK
from ..core.messages import Get, Join, Leave, Put, Stored
from ..core.move_messages import Forward
from ..core.staging import ChunkTable, Sink, store_chunk
from ..core.wire import Done, Failure, Message, expect
from .pipe import Pipe

_LANES_GONE = 20.0  # seconds for lanes that were told to end; each has at most one chunk in hand
_UNUSED = 300.0  # seconds without a transfer; the front-end gives a lane up before that (frontend/spare_lanes.py)
_MAX_OFFER = 4096
_DOOR = "lanes-"
_YOUNG = 60.0  # seconds
_LONGEST_HOME = 70  # characters; sun_path holds 108 bytes
# Bytes after which a lane has the kernel begin to write: measured, asking after every chunk costs half as much again
# as storing the chunk does, and asking every 16 MiB costs nothing and still makes the last fsync a third shorter.
_WRITEBACK = 16 * 1024 * 1024
_ANSWERS = 4  # chunks that are acknowledged at once at most: a quarter of what the front-end has on its way


class LaneDoor:
    """The agent's socket, at which lanes are handed their files."""

    def __init__(self) -> None:
        # A directory of its own, which only this user may enter; the name is short because sun_path holds 108 bytes.
        self._home = _private_directory()
        self.path = os.path.join(self._home, "lanes")
        self.token = secrets.token_hex(16)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._offer: Optional[Dict[str, Any]] = None
        self._fds: List[int] = []
        self._lock = threading.Lock()
        self._lanes: List[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def hand_out(self, offer: Dict[str, Any], fds: List[int]) -> None:
        """From now on every lane that joins gets these files."""
        with self._lock:
            self._offer, self._fds = offer, fds

    def _serve(self) -> None:
        while True:
            try:
                lane, _ = self._listener.accept()
            except OSError:
                return
            try:
                self._admit(lane)
            except OSError:
                lane.close()

    def _admit(self, lane: socket.socket) -> None:
        lane.settimeout(5.0)
        token = lane.recv(len(self.token))
        with self._lock:
            if self._offer is None or not hmac.compare_digest(token, self.token.encode()):
                lane.close()
                return
            socket.send_fds(lane, [json.dumps(self._offer).encode()], self._fds)
            self._lanes.append(lane)

    def close_and_wait(self) -> None:
        """Let no more lanes in, and return when all have gone; `LinkLost` if one does not go."""
        with self._lock:
            self._offer = None
            lanes, self._lanes = self._lanes, []
        deadline = time.monotonic() + _LANES_GONE
        for lane in lanes:
            try:
                lane.shutdown(socket.SHUT_WR)
                lane.settimeout(max(0.1, deadline - time.monotonic()))
                lane.recv(1)
            except socket.timeout as error:
                raise LinkLost("a lane does not end, so nothing is published") from error
            except OSError:
                pass
            finally:
                lane.close()

    def reset(self) -> None:
        """Ready for another conversation: lanes of the last one end when they see it, and their token is worthless."""
        with self._lock:
            self._offer, self._fds = None, []
            self.token = secrets.token_hex(16)
            self._let_go()

    def _let_go(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()

    def remove(self) -> None:
        """Take the socket away; lanes that are still there end when they see it."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake who waits in accept
        except OSError:
            pass
        self._listener.close()
        with self._lock:
            self._let_go()
        shutil.rmtree(self._home, ignore_errors=True)


def _private_directory() -> str:
    """A new directory below the user's own, or in /tmp where the path would be too long or nothing can be written."""
    top = os.path.join(pwd.getpwuid(os.getuid()).pw_dir, ".cache", "fastcopy")
    if len(top) < _LONGEST_HOME:
        try:
            _sweep(top)
            return tempfile.mkdtemp(prefix=_DOOR, dir=top)
        except OSError:
            pass
    return tempfile.mkdtemp(prefix="fastcopy-", dir="/tmp")


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return 0.0


def _sweep(top: str) -> None:
    """Remove the sockets of agents that were killed: nothing listens on them."""
    for name in os.listdir(top):
        # A young one may be between its bind and its listen, and looks just as dead.
        if name.startswith(_DOOR) and _age(os.path.join(top, name)) > _YOUNG:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(os.path.join(top, name, "lanes"))
                except ConnectionRefusedError:
                    shutil.rmtree(os.path.join(top, name), ignore_errors=True)
                except OSError:
                    pass  # one that is just being made


class _Lane:
    """What a lane's process was handed."""

    def __init__(self, files: Files, join: Join) -> None:
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.door.settimeout(10.0)
        try:
            self.door.connect(join.socket)
            self.door.sendall(join.token.encode())
        except OSError as error:
            raise LinkLost("the agent that this lane belongs to is gone; repeat the action") from error
        raw, fds, _, _ = socket.recv_fds(self.door, _MAX_OFFER, 3)
        if not raw or not fds:
            raise ProtocolError("the agent does not know this lane")
        self.offer = json.loads(raw)
        self.sink: Optional[Sink] = None
        self.source = -1
        self.unwritten = 0
        if self.offer["do"] == "store":
            table = ChunkTable(fds[0], self.offer["size"], self.offer["chunk"])
            tee = fds[2] if len(fds) > 2 else None
            self.sink = Sink(files, table, fds[1], self.offer["fresh"], tee)
        else:
            self.source = fds[0]

    def close(self) -> None:
        """Let go of all files.  The agent publishes when the last of its lanes has closed the door: that comes last."""
        if self.sink:
            self.sink.table.close()
            os.close(self.sink.fd)
            if self.sink.tee is not None:
                os.close(self.sink.tee)
        else:
            os.close(self.source)
        self.door.close()

    def serve(self, message: Message) -> Message:
        """Do what one message asks."""
        if isinstance(message, Put) and self.sink:
            store_chunk(self.sink, message.index, message.length, message.codec, message.blob)
            self.unwritten += message.length
            if self.unwritten >= _WRITEBACK:
                self.sink.files.start_writeback(self.sink.fd)
                self.unwritten = 0
            return Stored(message.index)
        if isinstance(message, Get) and self.source >= 0:
            return read_chunk(self.source, message)
        raise ProtocolError(f"a lane cannot serve {type(message).__name__} here")

    def told(self, error: Exception) -> FastcopyError:
        """What the front-end is told of an error.  The agent must know as well if there is no room: it cleans up."""
        typed = classify(error, self.offer["shown"])
        if isinstance(typed, NoSpace) and self.sink:
            self.sink.table.note_no_room()
        return typed


def read_chunk(source: int, message: Get) -> Put:
    """The chunk of an open disk that *message* asks for."""
    if message.length > MAX_CHUNK or message.chunk > MAX_CHUNK:
        raise ProtocolError("a chunk of that size is not sent")
    data = read_exactly(source, message.index * message.chunk, message.length)
    encoding, payload = codec.encode(data) if message.packed else (codec.PLAIN, data)
    return Put(message.index, message.length, encoding, payload)


def run_lane(pipe: Pipe, files: Files) -> None:
    """Serve one transfer after another until the front-end closes the connection, or an agent goes away meanwhile."""
    while True:
        message = pipe.receive(idle=_UNUSED)
        if message is None:
            return
        lane = _Lane(files, expect(message, Join))
        try:
            pipe.send(Done())
            if not _serve(pipe, lane):
                return
        finally:
            lane.close()
        pipe.send(Done())


def _serve(pipe: Pipe, lane: _Lane) -> bool:
    """Serve one transfer; whether another one may follow."""
    answers: List[Message] = []
    while True:
        message = pipe.receive(watch=lane.door.fileno())
        if message is None:
            return False
        if isinstance(message, Leave):
            return True
        if isinstance(message, Forward) and lane.source >= 0:
            from .hop import run_hop

            run_hop(pipe, lane.source, lane.offer["shown"], message, lane.door.fileno())
            return False
        try:
            answers.append(lane.serve(message))
        except (OSError, FastcopyError) as error:
            answers.append(Failure.of(lane.told(error)))
        # While more is there to be stored, who waits for an answer can wait for some at once.
        if lane.sink is None or len(answers) >= _ANSWERS or not pipe.pending():
            pipe.send(*answers)
            answers.clear()
