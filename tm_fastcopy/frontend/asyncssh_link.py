"""Links over asyncssh: many hosts in one event loop, without a process for each.

What the administrator has configured for a host is asked of the ssh program (`ssh -G`), as far as asyncssh knows the
same things: where to connect, as whom, with which keys and ciphers, and which host keys to trust.  OpenNebula ships
`StrictHostKeyChecking accept-new`, which asyncssh does not know; so a host whose key is not known is contacted once
with the ssh program, which learns the key or refuses, by its own rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Set, Tuple

from async_timeout import timeout

from ..core import ssh_words
from ..core.buffer import Buffer
from ..core.errors import FastcopyError, LinkLost
from .bundle import bootstrap_argv
from .link import Dialer, Link

if TYPE_CHECKING:
    import asyncssh  # costs 0.4 s to import, so only who dials pays for it

_ERRORS_KEPT = 4096
_LOGIN = 10  # seconds to connect, and to log in
_RESOLVED = 60.0  # seconds that ssh's configuration is believed; it is only asked when a connection is made
_LAST_WORDS = 5.0  # seconds for what a program's end leaves to be read
_KEEPALIVE = 5  # seconds between signs of life; three that are missed end the connection
_WINDOW = 8 * 1024 * 1024  # bytes in flight for a lane: 10 Gbit/s at a round trip of 6 ms
# What asyncssh has of OpenSSH's ciphers, the fast ones first.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_NO_STATUS = 255  # what the ssh program exits with for errors of its own


class NotSpoken(LinkLost):
    """asyncssh cannot reach this host in the way that the administrator configured; the ssh program may."""


@dataclass(frozen=True)
class HostOptions:
    """What `ssh -G HOST` says, as far as it is used."""

    hostname: str
    port: int
    user: str
    keys: List[str]
    known_hosts: List[str]
    alias: str
    ciphers: List[str]
    program_only: bool = False

    @classmethod
    def parse(cls, text: str) -> HostOptions:
        """Read the output of `ssh -G`.  Only files that exist are named.  Pure but for that."""
        values: Dict[str, List[str]] = {}
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            values.setdefault(name, []).append(value)

        def one(name: str, default: str = "") -> str:
            return values.get(name, [default])[0]

        keys = [os.path.expanduser(path) for path in values.get("identityfile", [])]
        known = one("userknownhostsfile").split() + one("globalknownhostsfile").split()
        return cls(
            one("hostname"),
            int(one("port", "22")),
            one("user"),
            [path for path in keys if os.path.isfile(path)],
            [path for path in map(os.path.expanduser, known) if os.path.isfile(path)],
            one("hostkeyalias"),
            [name for name in _CIPHERS if name in one("ciphers").split(",")],
            any(one(name, "none") != "none" for name in ("proxycommand", "proxyjump", "certificatefile"))
            or one("identityagent", "SSH_AUTH_SOCK") != "SSH_AUTH_SOCK",
        )


class AsyncsshLink:
    """A stream over one channel of one asyncssh connection."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, process: asyncssh.SSHClientProcess[bytes], shared: bool
    ) -> None:
        self._connection, self._process, self._shared = connection, process, shared
        self._errors = asyncio.ensure_future(self._keep_errors())
        self._lost = ""

    async def _keep_errors(self) -> str:
        kept = b""
        with contextlib.suppress(OSError, self._ssh_error()):
            while True:
                piece = await self._process.stderr.read(_ERRORS_KEPT)
                if not piece:
                    break
                kept = (kept + piece)[-_ERRORS_KEPT:]
        return kept.decode("utf-8", "replace")

    @staticmethod
    def _ssh_error() -> Any:
        import asyncssh

        return asyncssh.Error

    async def read_exactly(self, length: int) -> bytes:
        """See `Link`."""
        try:
            return await self._process.stdout.readexactly(length)
        except (OSError, self._ssh_error()) as error:
            self._lost = str(error)
            raise asyncio.IncompleteReadError(b"", length) from error

    async def read_line(self, limit: int) -> bytes:
        """See `Link`."""
        line = b""
        try:
            while len(line) < limit and not line.endswith(b"\n"):
                byte = await self._process.stdout.read(1)
                if not byte:
                    break
                line += byte
        except (OSError, self._ssh_error()) as error:
            self._lost = str(error)
        return line

    async def write(self, *pieces: Buffer) -> None:
        """See `Link`."""
        try:
            self._process.stdin.write(b"".join(pieces))
            await self._process.stdin.drain()
        except (OSError, self._ssh_error()) as error:
            self._lost = str(error)
            raise LinkLost("the connection broke") from error

    async def close(self, wait: float = 0.0) -> None:
        """See `Link`."""
        with contextlib.suppress(OSError, self._ssh_error()):
            self._process.stdin.write_eof()
        if wait:
            with contextlib.suppress(asyncio.TimeoutError, OSError, self._ssh_error()):
                async with timeout(wait):
                    await self._process.wait_closed()
        if self._shared:
            self._process.close()
        else:
            self._connection.abort()
            await self._connection.wait_closed()
        self._errors.cancel()
        await asyncio.gather(self._errors, return_exceptions=True)

    async def epitaph(self) -> tuple[Optional[int], str]:
        """See `Link`."""
        try:
            async with timeout(_LAST_WORDS):
                errors = await asyncio.shield(self._errors)
                await self._process.wait_closed()
        except (asyncio.TimeoutError, OSError, self._ssh_error()):
            return None, self._lost
        status = self._process.exit_status
        if status is None:  # the connection broke before the program ended
            return _NO_STATUS, errors.strip() or self._lost
        return status, errors.strip()


class AsyncsshDialer:
    """Dials with asyncssh.  *options* are given to the ssh program whenever it is asked or used (as `-F FILE`).

    *ciphers* replaces what the ssh program allows.  *agent* is the socket of the ssh agent ("" for the process's own).
    With *shared*, one connection serves many streams to a host, as many as its sshd allows (MaxSessions), and stays.
    """

    def __init__(
        self, options: Sequence[str] = (), ciphers: Sequence[str] = (), agent: str = "", shared: bool = False
    ) -> None:
        found = shutil.which("ssh", path=ssh_words.PLACES)
        if found is None:
            raise FastcopyError("there is no ssh program on the front-end: install openssh-client")
        self._ssh = [found, *options]
        self._ciphers, self._agent, self._shared = list(ciphers), agent, shared
        self._options: Dict[str, HostOptions] = {}
        self._resolved: Dict[str, float] = {}
        self._open: Dict[str, List[asyncssh.SSHClientConnection]] = {}
        self._dialling: Dict[str, asyncio.Task[asyncssh.SSHClientConnection]] = {}

    async def dial(self, host: str, bulk: bool) -> AsyncsshLink:
        """See `Dialer`."""
        return await self.start(host, bulk, " ".join(bootstrap_argv()))

    async def start(self, host: str, bulk: bool, command: str) -> AsyncsshLink:
        """As `dial`, for another command than our bootstrap."""
        import asyncssh

        try:
            connection, process = await self._stream(host, command)
        except (asyncssh.PermissionDenied, asyncssh.KeyExchangeFailed, ValueError) as error:  # ValueError: a key
            raise NotSpoken(f"{host} cannot be reached with ssh: {error}") from error
        except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
            raise LinkLost(f"{host} cannot be reached with ssh: {_reason(error)}") from error
        return AsyncsshLink(connection, process, self._shared)

    async def _stream(
        self, host: str, command: str
    ) -> Tuple[asyncssh.SSHClientConnection, asyncssh.SSHClientProcess[bytes]]:
        """A stream over a connection that is there, or over a new one."""
        import asyncssh

        for connection in list(self._open.get(host, ())):
            try:
                return connection, await self._execute(connection, command)
            except asyncssh.ChannelOpenError:
                continue  # it has as many sessions as its sshd allows
            except (OSError, asyncssh.Error):
                self._drop(host, connection)
        connection = await self._join_dialling(host)
        try:
            return connection, await self._execute(connection, command)
        except asyncssh.ChannelOpenError:
            if not self._shared:
                self._drop(host, connection)
                raise
            connection = await self._join_dialling(host)  # those who dialled together were too many for one
            return connection, await self._execute(connection, command)
        except (OSError, asyncssh.Error):
            self._drop(host, connection)
            raise
        except BaseException:
            if not self._shared:  # a call that is cancelled leaves the connection to the others
                self._drop(host, connection)
            raise

    async def _join_dialling(self, host: str) -> asyncssh.SSHClientConnection:
        """Connect; who comes while another does so gets the same connection, or the same error."""
        if not self._shared:
            return await self._connect(host)
        if host not in self._dialling:
            self._dialling[host] = asyncio.ensure_future(self._keep(host))
        return await asyncio.shield(self._dialling[host])

    async def _keep(self, host: str) -> asyncssh.SSHClientConnection:
        try:
            connection = await self._connect(host)
            self._open.setdefault(host, []).append(connection)
            return connection
        finally:
            del self._dialling[host]

    def _drop(self, host: str, connection: asyncssh.SSHClientConnection) -> None:
        connection.abort()
        with contextlib.suppress(KeyError, ValueError):
            self._open[host].remove(connection)

    async def _execute(
        self, connection: asyncssh.SSHClientConnection, command: str
    ) -> asyncssh.SSHClientProcess[bytes]:
        import asyncssh

        return await connection.create_process(command, encoding=None, window=_WINDOW, stdin=asyncssh.PIPE)

    async def close(self) -> None:
        """See `Dialer`."""
        for host, connections in self._open.items():
            for connection in list(connections):
                self._drop(host, connection)
                await connection.wait_closed()

    async def _connect(self, host: str) -> asyncssh.SSHClientConnection:
        import asyncssh

        options = await self._resolve(host)
        if options.program_only:
            raise NotSpoken(f"{host} is reached in a way that only the ssh program has")
        try:
            return await self._login(options)
        except asyncssh.HostKeyNotVerifiable:
            await self._learn(host)
            self._options.pop(host)  # the file of known hosts may only be there now
            try:
                return await self._login(await self._resolve(host))
            except asyncssh.HostKeyNotVerifiable as error:  # ssh does not keep it: UserKnownHostsFile /dev/null
                raise NotSpoken(f"{host} cannot be reached with ssh: {error}") from error

    async def _login(self, options: HostOptions) -> asyncssh.SSHClientConnection:
        import asyncssh

        return await asyncssh.connect(
            options.hostname,
            options.port,
            username=options.user,
            client_keys=options.keys or (),
            agent_path=self._agent or (),
            ignore_encrypted=True,
            known_hosts=options.known_hosts,
            host_key_alias=options.alias or None,
            encryption_algs=self._ciphers or options.ciphers or (),
            config=None,
            connect_timeout=_LOGIN,
            login_timeout=_LOGIN,
            keepalive_interval=_KEEPALIVE,
            keepalive_count_max=3,
            compression_algs=None,
        )

    async def _resolve(self, host: str) -> HostOptions:
        if host not in self._options or time.monotonic() - self._resolved.get(host, 0.0) > _RESOLVED:
            self._resolved[host] = time.monotonic()
            status, output, errors = await self._run("-G", "--", host)
            if status:
                raise FastcopyError(f"the options for {host} cannot be had from ssh: {errors}")
            self._options[host] = HostOptions.parse(output)
        return self._options[host]

    async def _learn(self, host: str) -> None:
        """One contact with the ssh program, which notes the host's key or refuses it by the administrator's rules."""
        status, _, errors = await self._run(
            "-o", "BatchMode=yes", "-o", "ControlPath=none", "-o", f"ConnectTimeout={_LOGIN}", "--", host, "true"
        )
        if status:
            raise LinkLost(f"{host} cannot be reached with ssh: {errors or 'its host key is not accepted'}")

    async def _run(self, *arguments: str) -> tuple[int, str, str]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._ssh, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        output, errors = await process.communicate()
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        return process.returncode or 0, output.decode("utf-8", "replace"), lines[-1] if lines else ""


def _reason(error: Exception) -> str:
    """What to tell an administrator: some of these errors have no text."""
    number = getattr(error, "errno", None)
    if number and number > 0:
        return os.strerror(number)
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return f"it did not answer within {_LOGIN} s"
    return str(error) or type(error).__name__


class WithFallback:
    """Dials with *first*, and with *second* where that does not speak as the administrator configured it."""

    def __init__(self, first: Dialer, second: Dialer) -> None:
        self._first, self._second = first, second
        self._others: Set[str] = set()

    async def dial(self, host: str, bulk: bool) -> Link:
        """See `Dialer`."""
        if host not in self._others:
            try:
                return await self._first.dial(host, bulk)
            except NotSpoken:
                self._others.add(host)
        return await self._second.dial(host, bulk)

    async def close(self) -> None:
        """See `Dialer`."""
        await self._first.close()
        await self._second.close()
