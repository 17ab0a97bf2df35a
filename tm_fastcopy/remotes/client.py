"""The client of fastcopyd: what every entry point runs.  Imports next to nothing, because that is most of its time.

    python3 -I -S client.py LIBRARY ACTION ARGUMENT...

Hands the action to the daemon, prints the lines that come back, and exits with the action's code.  If no daemon answers
it starts one.  If none can be had, or with FASTCOPY_DAEMON=no, the action runs in a process of its own.
"""

from __future__ import annotations

import _socket  # `socket` itself imports selectors and enum, which cost more than all that is done here
import os
import sys

_PASSED = ("ONE_", "ONEADMIN", "FASTCOPY_", "SSH_AUTH_SOCK", "HOME", "USER", "LOGNAME", "LANG", "LC_", "TZ")
_STDIN = ("premigrate", "postmigrate", "failmigrate")  # actions that get something on standard input
_MOST = 4 * 1024 * 1024  # bytes of it; as in frontend/standard_input.py
_PATIENCE = 30.0  # seconds for more of it to come; oned writes all at once, and closes
_TRIES = 4  # a daemon may end, or be replaced, just as we ask it
_STARTING = 15.0  # seconds for a daemon to come up; it takes half of one
_HELLO = 20.0  # seconds for a daemon to say that it heard us; it does so at once, or its disks do not answer
_ANOTHER = 2.0  # seconds for one that another client has started at the same time
_LOOK = 0.02  # seconds


def state_directory() -> str:
    """As `Places.state`."""
    one = os.environ.get("ONE_LOCATION", "")
    return os.path.join(one, "var/fastcopy") if one else "/var/lib/one/fastcopy"


def connect() -> _socket.socket | None:
    """A connection to the daemon, or None."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        connection.connect("daemon-%s.sock" % os.uname().nodename)
    except OSError:
        connection.close()
        return None
    return connection


def interpreter(library: str) -> str:
    """The Python of the driver, by a path without links: an upgrade replaces one of these, and whoever went through it
    would load half of his modules from each release."""
    return os.path.join(os.path.realpath(os.path.join(library, "venv")), "bin/python3")


def start(library: str) -> int:
    """Start a daemon that is nobody's child, and holds nothing of ours: one_tm waits until all have closed stderr.

    Returns a descriptor that ends when the daemon listens, or has failed.
    """
    ready, starting = os.pipe()
    child = os.fork()
    if child:
        os.close(starting)
        os.waitpid(child, 0)
        return ready
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        starting = os.dup(starting) if starting == 3 else starting
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.dup2(starting, 3)
        os.closerange(4, 1024)
        os.chdir("/")
        python = interpreter(library)
        environ = {name: value for name, value in os.environ.items() if name != "FASTCOPY_DEBUG"}
        os.execve(python, [python, "-I", "-m", "tm_fastcopy.frontend.daemon", "--ready"], environ)  # noqa: S606
    finally:
        os._exit(1)


def await_daemon(library: str) -> _socket.socket | None:
    """Start a daemon and connect to it; None if it does not come up."""
    import select
    import time

    ready = start(library)
    select.select([ready], [], [], _STARTING)
    os.close(ready)
    end = time.monotonic() + _ANOTHER
    while True:
        connection = connect()
        if connection or time.monotonic() > end:
            return connection
        time.sleep(_LOOK)


def standard_input(action: str) -> bytes:
    """What is given to the action; nothing is read for others, nor from a terminal."""
    if action not in _STDIN or os.isatty(0):
        return b""
    import select

    found = b""
    try:
        while len(found) < _MOST and select.select([0], [], [], _PATIENCE)[0]:
            piece = os.read(0, min(65536, _MOST - len(found)))
            if not piece:
                break
            found += piece
    except (OSError, ValueError):
        pass  # it is closed
    return found.replace(b"\0", b"")  # it is text


def give_back(given: bytes) -> None:
    """Make what was read standard input again, for a process of its own."""
    fd = os.memfd_create("stdin", 0)
    while given:
        given = given[os.write(fd, given) :]
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)


def send(connection: _socket.socket, argv: list[str], given: bytes) -> None:
    """Send the call."""
    environ = ["%s=%s" % item for item in os.environ.items() if item[0].startswith(_PASSED)]
    fields = [b"fastcopy-call 1", b"%d" % len(argv)] + [os.fsencode(text) for text in argv + environ]
    if given:
        fields.append(b"<stdin=" + given)
    raw = b"".join(field + b"\0" for field in fields)
    connection.sendall(len(raw).to_bytes(4, "big") + raw)


def relay(connection: _socket.socket) -> int | None:
    """Print what comes back; the exit code, or None if another daemon must be asked, or -1 if none will do it."""
    kept = b""
    connection.settimeout(_HELLO)
    while True:
        data = connection.recv(65536)
        connection.settimeout(None)
        if not data:
            return None  # it was killed; whatever it had begun can be repeated
        *lines, kept = (kept + data).split(b"\n")
        for line in lines:
            if line[:1] in b"LE":
                os.write(2, line[1:] + b"\n")
            elif line[:1] == b"X":
                return int(line[1:])
            elif line[:1] != b"H":
                return -1 if line == b"N" else None


def ask(library: str, argv: list[str], given: bytes) -> int | None:
    """Have the daemon do it; None if there is none to be had."""
    try:
        os.makedirs(state_directory(), 0o700, exist_ok=True)
        os.chdir(state_directory())  # sun_path holds 108 bytes
    except OSError:
        return None
    for _ in range(_TRIES):
        try:
            connection = connect() or await_daemon(library)
            if connection is None:
                return None
            send(connection, argv, given)
            code = relay(connection)
        except _socket.timeout:
            return None  # if it wakes up it sees that we have gone, and whatever it begins can be repeated
        except OSError:
            continue
        if code is not None:
            return code if code >= 0 else None
    return None


def main(library: str, argv: list[str]) -> None:
    """Run the action."""
    given = standard_input(argv[0]) if argv else b""
    if os.environ.get("FASTCOPY_DAEMON", "yes").lower() not in ("no", "0", "false"):
        here = os.getcwd()
        code = ask(library, argv, given)
        if code is not None:
            os._exit(code)
        os.chdir(here)
    if given:
        give_back(given)
    python = interpreter(library)
    os.execv(python, [python, "-I", "-m", "tm_fastcopy.frontend.main", *argv])  # noqa: S606


main(sys.argv[1], sys.argv[2:])
