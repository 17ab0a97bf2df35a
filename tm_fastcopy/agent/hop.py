"""Hop: a lane on the source's host that sends chunks to the target's host itself, without the front-end between.

It is a lane like any other (`agent/lanes.py`): it was handed the open file that is read.  Told to (`Forward`), it dials
a lane of the target's agent with ssh, by the keys of this host or the ssh agent that is forwarded to it.  Chunks go
there as they are asked for; what the target answers goes back to the front-end as it comes, in the same order.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import List

from ..core import ssh_words
from ..core.errors import FastcopyError, LinkLost, ProtocolError, classify
from ..core.messages import Get, Join
from ..core.move_messages import Carry, Forward
from ..core.wire import PROTOCOL_VERSION, Done, Failure, expect
from .lanes import read_chunk
from .pipe import Pipe

_GREETING = 20.0  # seconds from dialling to the agent's banner; who cannot be reached is done without
_NOISE = 64 * 1024  # bytes that login scripts may print before us
_ENDING = 5.0  # seconds for ssh to end when its input has


class Hop:
    """A lane of the target's agent, dialled from here."""

    def __init__(self, message: Forward) -> None:
        ssh = shutil.which("ssh", path=ssh_words.PLACES)
        if ssh is None:
            raise FastcopyError("this host has no ssh program")
        command = " ".join(ssh_words.bootstrap_words(Path(__file__).with_name("bootstrap.py").read_text()))
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [ssh, *ssh_words.options(), "--", message.host, command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        self._out, self._in = self._process.stdin.fileno(), self._process.stdout.fileno()
        self.pipe = Pipe(self._in, self._out)
        try:
            self._greet(message)
            self.pipe.send(Join(message.socket, message.token))
            expect(self.pipe.receive(idle=_GREETING) or Failure("reconnect", "the lane ended"), Done)
        except (FastcopyError, OSError) as error:
            self.close()
            said = str(error) if isinstance(error, ProtocolError) else self._said() or str(error)
            self.release()
            raise LinkLost(f"{message.host} is not reached from here: {said}") from error

    def _greet(self, message: Forward) -> None:
        timer = threading.Timer(_GREETING, self._process.kill)
        timer.start()
        try:
            self._line("FASTCOPY-BOOT")
            os.write(self._out, f"BUNDLE {message.bundle} {message.size} lane\n".encode())
            if self._line("HAVE", "NEED") != ["HAVE"]:
                raise ProtocolError("the agent's files are not there")
            if self._line("FASTCOPY-AGENT") != ["FASTCOPY-AGENT", str(PROTOCOL_VERSION), message.bundle, "lane"]:
                raise ProtocolError("another agent answers there")
        finally:
            timer.cancel()

    def _line(self, *words: str) -> List[str]:
        """Skip noise until a line begins with one of *words*; return it as words."""
        for _ in range(_NOISE):
            text = b""
            while not text.endswith(b"\n") and len(text) < 1024:
                byte = os.read(self._in, 1)
                if not byte:
                    raise LinkLost("the connection was closed")
                text += byte
            found = text.decode("utf-8", "replace").split()
            if found and found[0] in words:
                return found
        raise ProtocolError("the login shell prints too much")

    def _said(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read(4096).decode("utf-8", "replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")

    def close(self) -> None:
        """End the connection."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def release(self) -> None:
        """Let go of what `close` has left."""
        assert self._process.stdout
        self._process.stdout.close()
        self._errors.close()


def run_hop(pipe: Pipe, source: int, shown: str, message: Forward, watch: int) -> None:
    """Serve one lane as a hop, until the front-end closes it, or the agent goes away (the socket *watch* ends)."""
    try:
        hop = Hop(message)
    except (FastcopyError, OSError) as error:
        pipe.send(Failure.of(classify(error, "dialling the target")))
        return
    pipe.send(Done())
    answers = threading.Thread(target=_pass_on, args=(hop, pipe), daemon=True)
    answers.start()
    try:
        while True:
            asked = pipe.receive(watch=watch)
            if asked is None:
                return
            if not isinstance(asked, Carry):
                raise ProtocolError(f"a hop cannot serve {type(asked).__name__}")
            try:
                put = read_chunk(source, Get(asked.index, asked.chunk, asked.length, asked.packed))
            except (OSError, FastcopyError) as error:
                pipe.send(Failure.of(classify(error, shown)))
                return
            hop.pipe.send(put)
    finally:
        hop.close()
        answers.join(_ENDING)
        hop.release()


def _pass_on(hop: Hop, pipe: Pipe) -> None:
    """Give the front-end what the target answers."""
    try:
        while True:
            try:
                answer = hop.pipe.receive()
            except (FastcopyError, OSError, ValueError):
                answer = None
            if answer is None:
                pipe.send(Failure("reconnect", "the connection to the target broke; repeat the action"))
                return
            pipe.send(answer)
    except FastcopyError:
        pass  # the front-end has gone, which is noticed where it is read

