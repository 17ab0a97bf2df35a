"""Forks: starts the product's processes by fork, in milliseconds, from one process that has everything imported.

The walk starts some ten thousand processes; importing alone would take most of its time.  What is started is the
product's own `main` of the agent and of the action.  The server is their parent, so it can kill and wait for them.  It
is an interpreter of its own, and a small one: a fork costs what there is to copy, and pytest holds a lot.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from .arrows import die_with_parent, obey_permissions

Spec = Dict[str, Any]
Program = Callable[[Spec, List[int]], None]
_REQUEST = 64 * 1024
_ROOT = Path(__file__).resolve().parents[2]


class ForkServer:
    """A process that forks others.  It runs *module*, which ends in a call of `serve`."""

    def __init__(self, scratch: Path, module: str) -> None:
        self.path = str(scratch / "forks")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            listener.listen(64)
            argv = [sys.executable, "-m", module, str(listener.fileno())]
            self._process = subprocess.Popen(argv, cwd=_ROOT, pass_fds=[listener.fileno()])

    def start(self, program: str, spec: Spec, fds: List[int]) -> None:
        """Start a program; its process gets copies of *fds*."""
        start(self.path, program, spec, fds)

    def kill(self, *programs: str) -> None:
        """Kill all processes that run one of these programs."""
        _request(self.path, {"do": "kill", "programs": programs}, [])

    def wait(self, timeout: float) -> List[str]:
        """Wait until all processes have ended; return the programs of those that had to be killed after *timeout*."""
        answer = _request(self.path, {"do": "wait", "timeout": timeout}, [])
        late: List[str] = answer["late"]
        return late

    def stop(self) -> None:
        """End the server and all that it started."""
        self._process.kill()
        self._process.wait()


def serve(listener: int, programs: Dict[str, Program]) -> None:
    """Be the server, on the listening socket of that number.  *programs* are called with a spec and descriptors."""
    die_with_parent()
    obey_permissions()
    gc.collect()
    gc.freeze()  # what is shared with the children stays so: a collection would write to every page
    _Serving(socket.socket(fileno=listener), programs).run()


def start(path: str, program: str, spec: Spec, fds: List[int]) -> None:
    """As `ForkServer.start`, from any process that knows the server's *path*."""
    _request(path, {"do": "start", "program": program, "spec": spec}, fds)


def _request(path: str, request: Dict[str, Any], fds: List[int]) -> Dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(120)
        line.connect(path)
        socket.send_fds(line, [json.dumps(request).encode()], fds)
        answer: Dict[str, Any] = json.loads(line.recv(_REQUEST))
        return answer


class _Serving:
    def __init__(self, listener: socket.socket, programs: Dict[str, Program]) -> None:
        self._listener, self._programs = listener, programs
        self._children: Dict[int, str] = {}
        self._waiting: List[Tuple[socket.socket, float, List[str]]] = []

    def run(self) -> None:
        while True:
            select.select([self._listener], [], [], 0.002 if self._waiting else 0.05 if self._children else None)
            self._reap()
            if select.select([self._listener], [], [], 0)[0]:
                line, _ = self._listener.accept()
                self._serve(line)

    def _reap(self) -> None:
        while self._children:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            self._children.pop(pid)
        for place, (line, deadline, late) in enumerate(self._waiting):
            if self._children and time.monotonic() > deadline and not late:
                late += self._children.values()
                self._kill(set(self._children.values()))
            if not self._children:
                line.send(json.dumps({"late": late}).encode())
                line.close()
                del self._waiting[place]
                return

    def _kill(self, programs: set[str]) -> None:
        for pid, program in self._children.items():
            if program in programs:
                os.kill(pid, signal.SIGKILL)

    def _serve(self, line: socket.socket) -> None:
        raw, fds, _, _ = socket.recv_fds(line, _REQUEST, 8)
        if not raw:
            line.close()
            return
        request = json.loads(raw)
        if request["do"] == "wait":
            self._waiting.append((line, time.monotonic() + request["timeout"], []))
            return
        if request["do"] == "kill":
            self._kill(set(request["programs"]))
        else:
            self._start(request, fds, line)
        line.send(b"{}")
        line.close()

    def _start(self, request: Dict[str, Any], fds: List[int], line: socket.socket) -> None:
        pid = os.fork()
        if pid:
            self._children[pid] = request["program"]
            for fd in fds:
                os.close(fd)
            return
        status: Optional[int] = 1
        try:
            die_with_parent()
            self._listener.close()
            line.close()
            for waiting, _, _ in self._waiting:
                waiting.close()
            self._programs[request["program"]](request["spec"], fds)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status or 0)
