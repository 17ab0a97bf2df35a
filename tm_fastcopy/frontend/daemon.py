"""fastcopyd: runs actions for the entry points, in one process that lives on.

It holds nothing that matters: killed at any moment, the next entry point starts a new one, and every action can be
repeated.  A client sends its arguments and environment over a unix socket and gets lines back (see `_Caller`).  The
daemon ends when it was idle for a while, when its own code was replaced on disk, and on SIGTERM; it then takes no more
calls, and completes those that it has.

Socket and lock bear the front-end's host name: HA front-ends may share the directory that they lie in.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import logging.handlers
import os
import resource
import signal
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Set, Tuple

from async_timeout import timeout

from ..core.errors import FastcopyError
from ..core.files import lock
from . import inquiry, standard_input
from .call import Call
from .limits import Limits
from .perform import ACTIONS, log_line, one_line, perform, unknown
from .places import Places
from .progress import narrate
from .running import Calls, Running
from .services import Services
from .settings import FILE, Configuration, Settings

MAGIC = b"fastcopy-call 1"
# Bytes of a call: arguments and environment, which the kernel bounds at 128 KiB a string, and standard input.
_MAX_CALL = 256 * 1024 + standard_input.MOST
_STDIN = "<stdin"  # stands where a variable's name does; no variable that clients send is called so
_HEARING = 10.0  # seconds for a client to say what it wants; it does so at once
_FAREWELL = 300.0  # seconds that calls get to end after a SIGTERM; then they are cancelled
_LOOK = 1.0  # seconds between looks at whether the own code was replaced
_THREADS = 32  # oned's answers, digests and chunks are awaited in threads; each transfer uses a few
_PACKAGE = Path(__file__).resolve().parent.parent
_READY = 3  # the descriptor that a client waits for with `--ready`
_PEER = struct.Struct("3i")  # struct ucred

log = logging.getLogger("fastcopyd")


@dataclass(frozen=True)
class Request:
    """What a client sent: the words of an action, the environment that it runs with, and its standard input; or the
    words of an inquiry.
    """

    argv: List[str]
    environ: Dict[str, str]
    stdin: str = ""
    inquiry: bool = False

    @classmethod
    def parse(cls, raw: bytes) -> Request:
        """Read a call: fields that end in NUL: the magic, the number of words, the words, `NAME=VALUE`...

        Standard input, where an action gets one, is the value of `_STDIN`.
        """
        fields = raw.split(b"\0")
        if len(fields) < 3 or fields[0] not in (MAGIC, inquiry.MAGIC) or fields[-1] or not fields[1].isdigit():
            raise FastcopyError("what was sent to the daemon is no call")
        count = int(fields[1])
        words = [os.fsdecode(field) for field in fields[2:-1]]
        if count > len(words):
            raise FastcopyError("what was sent to the daemon is no call")
        pairs = (word.partition("=") for word in words[count:])
        environ = {name: value for name, _, value in pairs}
        return cls(words[:count], environ, environ.pop(_STDIN, ""), fields[0] == inquiry.MAGIC)


class _Caller:
    """A client.  Lines to it: `H` (heard), `L<log line>`, `E<error line>`, and last `X<exit code>`, `R` (ask the next
    daemon) or `N` (do it yourself).  `J<JSON>` answers an inquiry.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def trusted(self) -> bool:
        """Whether it runs as our user, or root."""
        peer = self._writer.get_extra_info("socket")
        _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return uid in (0, os.geteuid())

    async def hear(self) -> Request:
        """What it wants."""
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        if length > _MAX_CALL:
            raise FastcopyError("what was sent to the daemon is no call")
        return Request.parse(await self._reader.readexactly(length))

    def tell(self, kind: str, text: str = "") -> None:
        """Send one line."""
        self._writer.write(f"{kind}{one_line(text)}\n".encode("utf-8", "replace"))

    async def answer(self, words: List[str], calls: Calls) -> None:
        """Answer an inquiry."""
        try:
            lines = [f"J{text}" for text in await inquiry.answer(words, calls)] + ["X0"]
        except FastcopyError as error:
            lines = [f"E{one_line(str(error))}", "X1"]
        self._writer.write("".join(f"{line}\n" for line in lines).encode())

    async def gone(self) -> None:
        """Return when the client has gone; it says nothing after its call."""
        with contextlib.suppress(OSError):
            await self._reader.read(1)

    async def close(self) -> None:
        """End the connection, once what was said has left."""
        with contextlib.suppress(OSError):  # it may have gone
            await self._writer.drain()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Daemon:
    """Serves calls until it is idle for *idle_exit* seconds (None: for ever), replaced, or asked to end.

    Replaced are its own code, and what is *watched*: the configuration file, and where the driver is installed.  With
    *decline* it sends every client to a process of its own: that is what `daemon: no` in the file means, which clients
    do not read.
    """

    def __init__(self, services: Services, idle_exit: Optional[float], *watched: Path, decline: bool = False) -> None:
        self._services, self._idle_exit, self._watched, self._decline = services, idle_exit, watched, decline
        self._clients: Set[asyncio.Task[None]] = set()
        self._calls = Calls()
        self._last = time.monotonic()
        self._code, self._seen, self._looked = stamp(code(*watched)), stamp(glance(*watched)), time.monotonic()
        self.ending = asyncio.Event()
        self.asked_to_end = False
        """Whether somebody wants the process gone; otherwise calls have all the time that they need."""
        self._numbers = 0

    async def serve(self, listener: socket.socket, guard: int) -> None:
        """Take calls from *listener*; then free its path, and the lock *guard*, for the next daemon."""
        path = listener.getsockname()
        server = await asyncio.start_unix_server(self._accept, sock=listener)
        watch = asyncio.gather(self._watch(), self._services.caretaker.run())
        try:
            await self.ending.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            aside = inquiry.aside(path)
            with contextlib.suppress(OSError):
                os.rename(path, aside)  # still there for `fastcopy status`
            os.close(guard)
            await self._farewell()
            server.close()
            with contextlib.suppress(OSError):
                os.unlink(aside)
            await self._services.close()

    def end(self) -> None:
        """Somebody wants the process gone."""
        self.asked_to_end = True
        self.ending.set()

    async def _farewell(self) -> None:
        if self._clients:
            await asyncio.wait(self._clients, timeout=_FAREWELL if self.asked_to_end else None)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _watch(self) -> None:
        """End when nothing has been asked for a while."""
        while True:
            await asyncio.sleep(min(_LOOK, self._idle_exit or _LOOK))
            if self._clients:
                self._last = time.monotonic()
            elif self._replaced():
                log.info("driver or configuration were replaced; the next call starts a new daemon")
                self.ending.set()
            elif self._idle_exit is not None and time.monotonic() - self._last > self._idle_exit:
                log.info("nothing was asked for %g s", self._idle_exit)
                self.ending.set()

    def _replaced(self) -> bool:
        if self.ending.is_set():
            return False
        seen = stamp(glance(*self._watched))
        if seen == self._seen and time.monotonic() - self._looked <= _LOOK:
            return False
        self._seen, self._looked = seen, time.monotonic()
        return stamp(code(*self._watched)) != self._code

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = _Caller(reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if caller.trusted():
                await self._serve(caller)
        except (asyncio.IncompleteReadError, asyncio.TimeoutError, FastcopyError, OSError) as error:
            log.warning("a call was not understood: %s", error or type(error).__name__)
        except asyncio.CancelledError:
            pass  # the daemon ends; the client has been told
        finally:
            await caller.close()
            self._clients.discard(task)
            self._last = time.monotonic()

    async def _serve(self, caller: _Caller) -> None:
        async with timeout(_HEARING):
            request = await caller.hear()
        caller.tell("H")
        if request.inquiry:
            await caller.answer(request.argv, self._calls)
            return
        if self._replaced():
            log.info("driver or configuration were replaced; calls go to a new daemon")
            self.ending.set()
        if self.ending.is_set():
            caller.tell("R")
            return
        if self._decline:
            caller.tell("N")
            return
        self._numbers += 1
        name = f"{self._numbers} {' '.join(request.argv)}"
        began = time.monotonic()
        problem = unknown(request.argv) or await self._perform(caller, request, name)
        if problem:
            caller.tell("E", problem)
        caller.tell("X", "1" if problem else "0")
        log.info("%s: %s (%.3f s)", name, problem or "done", time.monotonic() - began)

    async def _perform(self, caller: _Caller, request: Request, name: str) -> Optional[str]:
        action = request.argv[0]
        running = Running(action)

        def tell(text: str) -> None:
            caller.tell("L", log_line(action, text, running.vm))
            log.info("%s: %s", name, one_line(text))

        def make() -> Call:
            running.call = Call(request.argv[1:], request.environ, tell, self._services, stdin=request.stdin)
            return running.call

        work = running.task = asyncio.ensure_future(perform(action, make))
        self._calls.add(running)
        telling = asyncio.ensure_future(narrate(lambda seconds: tell(running.line(seconds))))
        gone = asyncio.ensure_future(caller.gone())
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info("%s: the client went away", name)
                work.cancel()
            return await work
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return running.sentence()
        finally:
            self._calls.remove(running)
            telling.cancel()
            gone.cancel()


def code(*watched: Path) -> List[Path]:
    """The files of this package, and what else is *watched*."""
    found = [*watched]
    with contextlib.suppress(OSError):  # an upgrade removes directories while we look
        found += sorted(_PACKAGE.rglob("*.py"))
    return found


def glance(*watched: Path) -> List[Path]:
    """What of `code` can be looked at for every call: directories change when a file in them is replaced."""
    return [*watched, _PACKAGE, *(_PACKAGE / name for name in ("core", "frontend", "frontend/actions"))]


def stamp(paths: List[Path]) -> int:
    """Changes when one of *paths* does."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((str(path), status.st_ino, status.st_mtime_ns, status.st_size))
    return hash(tuple(found))


def listen(path: Path) -> Optional[Tuple[socket.socket, int]]:
    """The socket at *path*, and the lock that says it is ours; None if another daemon serves there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    guard = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if not lock(guard):
        os.close(guard)
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Relative, because sun_path holds 108 bytes; this process changes its directory for nothing else.
    os.chdir(path.parent)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path.name)
    before = os.umask(0o177)
    try:
        listener.bind(path.name)
    finally:
        os.umask(before)
    listener.listen(128)
    return listener, guard


def take_seat(path: Path, stay: bool, *watched: Path) -> Optional[Tuple[socket.socket, int]]:
    """As `listen`; but who wants to *stay* waits for its turn: a daemon that a client has started ends when it is idle.

    None also if the code, or what is *watched*, was replaced while it was waited for: it would serve an old release.
    """
    before = stamp(glance(*watched))
    seat = listen(path)
    while stay and seat is None:
        time.sleep(_LOOK)
        seat = listen(path)
        if stamp(glance(*watched)) != before:
            log.info("driver or configuration were replaced while another daemon served; systemd starts a new one")
            for part in seat or ():
                part.close() if isinstance(part, socket.socket) else os.close(part)
            return None
    return seat


def main(argv: List[str], environ: Mapping[str, str] = os.environ) -> int:
    """Serve; with `--stay` without an end when idle.  Return the exit code."""
    places = Places.of(environ)
    _log_to(places.log)
    stay = "--stay" in argv
    try:
        seat = take_seat(inquiry.address(places), stay, places.etc / FILE, places.installed)
    except OSError as error:
        log.error("cannot start: %s", error)
        print(f"fastcopyd cannot start: {one_line(str(error))}", file=sys.stderr)
        return 1
    if "--ready" in argv:
        os.close(_READY)
    if seat is None:
        return 0  # two clients started one each, or a daemon is just ending, or there is a newer release
    _many_files()
    for action in ACTIONS:  # before an upgrade can put newer ones in their place
        importlib.import_module(f"{__package__}.actions.{action}")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # one_tm runs its drivers niced, and us with them
    asyncio.run(_run(*seat, places, stay))
    return 0


async def _run(listener: socket.socket, guard: int, places: Places, stay: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS))
    loop.set_exception_handler(lambda _, context: log.error("%s: %r", context["message"], context.get("exception")))
    file = places.etc / FILE
    settings = _settings(file)
    services = Services(keep=True, limits=Limits(settings.max_transfers, settings.max_transfers_per_host))
    idle = None if stay else settings.idle_exit
    daemon = Daemon(services, idle, file, places.installed, decline=not settings.daemon)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.end)
    log.info("serving, pid %d", os.getpid())
    await daemon.serve(listener, guard)
    log.info("ended")


def _settings(file: Path) -> Settings:
    """What the file says of the front-end as a whole.  The environment is a call's, and one that calls cannot use is
    theirs to report."""
    try:
        return Configuration.read({}, file).settings()
    except FastcopyError as error:
        log.error("%s", error)
        return Settings.of({})


def _log_to(path: Path) -> None:
    """Log to *path*, which logrotate may move away at any time."""
    handler: logging.Handler
    try:
        handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _many_files() -> None:
    """A transfer holds a dozen descriptors; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
