"""A small oned on loopback: it answers every call with what the test says."""

from __future__ import annotations

import threading
import xmlrpc.client
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, List, Optional, Tuple, Union

Answer = Union[bytes, Tuple[Any, ...], int]


class FakeOned:
    """*answer*: a tuple is sent as XML-RPC, bytes as they are, a number as an HTTP error; `calls` is what was asked."""

    def __init__(self, answer: Answer, silent: bool = False) -> None:
        self.answer, self.silent = answer, silent
        self.calls: List[Tuple[str, Tuple[Any, ...]]] = []
        self._done = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.serve(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """For ONE_XMLRPC."""
        return f"http://127.0.0.1:{self._server.server_port}/RPC2"

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one call."""
        arguments, method = xmlrpc.client.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.calls.append((str(method), arguments))
        if self.silent:
            self._done.wait(60)
            return
        if isinstance(self.answer, int):
            request.send_error(self.answer)
            return
        body: Optional[bytes] = self.answer if isinstance(self.answer, bytes) else None
        if body is None:
            body = xmlrpc.client.dumps((list(self.answer),), methodresponse=True).encode()  # type: ignore[arg-type]
        request.send_response(200)
        request.send_header("Content-Type", "text/xml")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def close(self) -> None:
        """Stop."""
        self._done.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
