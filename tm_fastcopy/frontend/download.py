"""Downloads: a file of the web for a VM's context, into a file without a name.  Bounded in size and time."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request

from ..core.errors import FastcopyError
from ..core.files import Files

MAX_BYTES = 256 << 20  # of one file
BOUND = 120.0  # seconds for all of it
_SILENCE = 20.0  # seconds without a byte
_PIECE = 1 << 16


def fetch(files: Files, directory: int, address: str) -> int:
    """Fetch *address* (http or https) into a new file on the file system of *directory*; return its descriptor."""
    # No other protocol, also not by a redirection: file:// would read what the front-end may read.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    deadline = time.monotonic() + BOUND
    fd = files.create_unnamed(directory)
    try:
        with opener.open(address, timeout=_SILENCE) as answer:
            done = 0
            while data := answer.read1(_PIECE):
                done += len(data)
                if done > MAX_BYTES:
                    raise FastcopyError(f"{address} is larger than {MAX_BYTES >> 20} MiB: use an image for so much")
                if time.monotonic() > deadline:
                    raise FastcopyError(f"{address} did not arrive within {BOUND:.0f} s: use a file of the front-end")
                files.write(fd, data, done - len(data))
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
            raise FastcopyError(f"{address} cannot be fetched for the context: {reason}") from error
        raise
