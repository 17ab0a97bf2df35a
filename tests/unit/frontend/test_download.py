"""Downloads for a context, from a small web server on loopback."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.core.files import Files
from tm_fastcopy.frontend import download

BODY = bytes(range(256)) * 1000


sent_whole = threading.Event()  # a slow answer was waited for


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "dripping":
            self.drip()
            return
        self.send_response(200)
        if kind != "unsized":
            self.send_header("Content-Length", str(len(BODY) + (5 if kind == "short" else 0)))
        self.end_headers()
        self.wfile.write(BODY)

    def drip(self) -> None:
        """A header, byte by byte, of ten seconds."""
        with contextlib.suppress(ConnectionError):
            for byte in b"HTTP/1.0 200 OK\r\nX: " + 200 * b"x":
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            sent_whole.set()
            self.wfile.write(b"\r\n\r\n" + BODY)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Nothing may be left in it, and nothing open."""
    fd = os.open(tmp_path, os.O_RDONLY)
    gc.collect()  # what earlier tests left
    before = os.listdir("/proc/self/fd")
    yield fd
    gc.collect()  # an error that a test has caught holds what it was raised in
    assert os.listdir(tmp_path) == []
    for _ in range(1000):  # the server's side of a connection is open a little longer
        if os.listdir("/proc/self/fd") == before:
            break
        time.sleep(0.01)
    assert os.listdir("/proc/self/fd") == before
    os.close(fd)


@pytest.mark.parametrize("path", ["/plain", "/unsized", "/redirect//plain"])
def test_what_the_server_has(address: str, directory: int, path: str) -> None:
    fd = download.fetch(Files(), directory, address + path)
    assert os.pread(fd, 1 << 20, 0) == BODY
    os.close(fd)


@pytest.mark.parametrize(
    ("path", "said"),
    [("/missing", "Not Found"), ("/short", "of 256005 bytes"), ("/redirect/file:///etc/passwd", "cannot be fetched")],
)
def test_what_fails_is_one_sentence_with_the_address(address: str, directory: int, path: str, said: str) -> None:
    with pytest.raises(FastcopyError, match=said) as caught:
        download.fetch(Files(), directory, address + path)
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_no_other_protocol(directory: int) -> None:
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://127.0.0.1:1/refused", "http://["):
        with pytest.raises(FastcopyError, match="cannot be fetched"):
            download.fetch(Files(), directory, address)


def test_size_and_time_are_bounded(address: str, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(FastcopyError, match="larger than"):
        patch.setattr(download, "MAX_BYTES", len(BODY) - 1)
        download.fetch(Files(), directory, f"{address}/unsized")
    with monkeypatch.context() as patch, pytest.raises(FastcopyError, match="did not arrive within"):
        patch.setattr(download, "BOUND", -1.0)
        download.fetch(Files(), directory, f"{address}/plain")


def test_a_header_that_drips_in_is_not_waited_for(
    address: str, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BOUND", 0.5)
    with pytest.raises(FastcopyError, match="did not arrive within"):
        download.fetch(Files(), directory, f"{address}/dripping")
    assert not sent_whole.is_set()
