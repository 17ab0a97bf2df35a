"""The XML-RPC server of the stand-in. It runs in the front-end's namespaces and keeps nothing in memory.

Every request reads the state file, so whoever writes that file changes the answers at once. Every call is
written to a log, with whether it was known: a test can ask for both.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from bench.testbed.oned import calls, life

ADDRESS = ("127.0.0.1", 2633)
STATE = "state.json"
LOG = "calls"
UID, HOME = 9869, "/var/lib/one"  # oneadmin's


class Handler(SimpleXMLRPCRequestHandler):
    """Answers on oned's path and keeps connections open, as oned does."""

    rpc_paths = ("/RPC2",)
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True


class Server(ThreadingMixIn, SimpleXMLRPCServer):
    """Answers calls from the state in `directory`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, directory: Path) -> None:
        super().__init__(ADDRESS, Handler, logRequests=False, allow_none=False)
        self.directory = directory
        self.lock = threading.Lock()
        self.writing = threading.Lock()
        driver = life.run_driver(os.environ.get("ONE_LOCATION", ""), driver_environment(), UID)
        self.life = life.Life(self._change, driver, later)

    def _dispatch(self, method: str, params: Any) -> Any:
        entry = {"method": method, "arguments": [p for p in params[1:] if isinstance(p, (int, str))]}
        with self.lock, (self.directory / LOG).open("a") as log:
            log.write(json.dumps({**entry, "known": calls.known(method)}) + "\n")
        if method in calls.CHANGES and params and isinstance(params[0], str):
            return self.life.answer(method, list(params))
        state = json.loads((self.directory / STATE).read_text())
        return calls.answer(state, method, params)

    def _change(self, how: Callable[[dict[str, Any]], Any]) -> Any:
        """Change the state. Whoever drives the lab writes the same file: not at the same time, please."""
        with self.writing:
            state = json.loads((self.directory / STATE).read_text())
            value = how(state)
            temporary = self.directory / f"{STATE}.served"
            temporary.write_text(json.dumps(state, indent=1) + "\n")
            temporary.replace(self.directory / STATE)
            return value


def later(work: Callable[[], None]) -> None:
    """Do it in a thread."""
    threading.Thread(target=work, daemon=True).start()


def driver_environment() -> dict[str, str]:
    """What a driver gets: ours, as oneadmin's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "HOME": HOME, "USER": "oneadmin", "LOGNAME": "oneadmin"}


def main() -> None:
    """Listen, say `ready`, let go of the caller's pipes, and serve until killed."""
    directory = Path(sys.argv[1])
    server = Server(directory)
    os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(directory / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, target in ((0, null), (1, log), (2, log)):
        os.dup2(target, fd)
    server.serve_forever()


if __name__ == "__main__":
    main()
