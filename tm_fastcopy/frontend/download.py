"""Downloads: a file of the web for a VM's context, into a file without a name.  Bounded in size and time."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any, List, Type

from ..core.errors import FastcopyError
from ..core.files import Files

MAX_BYTES = 256 << 20  # of one file
BOUND = 120.0  # seconds for all of it
_SILENCE = 20.0  # seconds without a byte
_PIECE = 1 << 16


def fetch(files: Files, directory: int, address: str) -> int:
    """Fetch *address* (http or https) into a new file on the file system of *directory*; return its descriptor."""
    late = f"{address} did not arrive within {BOUND:.0f} s: use a file of the front-end"
    fd = files.create_unnamed(directory)
    deadline = _Deadline(BOUND)
    try:
        with _opener(deadline).open(address, timeout=_SILENCE) as answer:
            done = 0
            while data := answer.read1(_PIECE):
                done += len(data)
                if done > MAX_BYTES:
                    raise FastcopyError(f"{address} is larger than {MAX_BYTES >> 20} MiB: use an image for so much")
                files.write(fd, data, done - len(data))
            if deadline.passed:
                raise FastcopyError(late)
            promised = answer.headers.get("Content-Length", "")
            if promised.isdecimal() and int(promised) != done:
                raise FastcopyError(f"{address} ended after {done} of {promised} bytes; repeat the action")
        return fd
    except BaseException as error:
        os.close(fd)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        if isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            reason = getattr(error, "reason", None) or error
            said = late if deadline.passed else f"{address} cannot be fetched for the context: {reason}"
            raise FastcopyError(said) from error
        raise
    finally:
        deadline.end()


class _Deadline:
    """Cuts connections off when *seconds* have passed: the time limits of sockets are for one read each, and a server
    may send a header byte by byte."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._connections: List[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def connect(self, *arguments: Any, **options: Any) -> socket.socket:
        """`socket.create_connection`, watched."""
        made = socket.create_connection(*arguments, **options)
        with self._lock:
            self._connections.append(made.dup())  # one of our own: TLS takes the other one over
        if self.passed:
            self._cut()
        return made

    @property
    def passed(self) -> bool:
        """Whether the time has come."""
        return time.monotonic() >= self._until

    def end(self) -> None:
        """Watch no more."""
        self._timer.cancel()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """No other protocol than http and https, also not by a redirection: file:// would read what the front-end may
    read."""

    def watched(kind: Type[http.client.HTTPConnection]) -> Any:
        def make(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
            made = kind(*arguments, **options)
            # Not public, but the only place before a TLS handshake, which may drip in as well.
            made._create_connection = deadline.connect  # type: ignore[attr-defined]
            return made

        return make

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(watched(http.client.HTTPConnection), request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(watched(http.client.HTTPSConnection), request)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, Http, Https, urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener
