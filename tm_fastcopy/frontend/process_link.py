"""Links over a child process's standard input and output: the ssh program's, or (in tests) the agent itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import signal
from typing import Dict, List, Mapping, Optional, Sequence

from async_timeout import timeout

from ..core import ssh_words
from ..core.buffer import Buffer
from ..core.errors import FastcopyError
from .bundle import bootstrap_argv
from .pipe_writer import PipeWriter

_PIPE = 1024 * 1024  # bytes that are read ahead of whoever asks for them
_ERRORS_KEPT = 4096
_LAST_WORDS = 5.0  # seconds for a child's pipes to follow it; they take no time
_AFTERWORK = 60.0  # seconds that an agent without ssh between us may take to complete its cache


class ProcessLink:
    """A stream over the pipes of a child process."""

    def __init__(self, process: asyncio.subprocess.Process, writer: PipeWriter, lives_on: bool = False) -> None:
        assert process.stdout is not None
        self._process, self._lives_on = process, lives_on
        self._input, self._output = writer, process.stdout
        self._errors = asyncio.ensure_future(self._keep_errors())

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Optional[Dict[str, str]] = None, lives_on: bool = False
    ) -> ProcessLink:
        """Start a program and return the stream to it.

        *lives_on*: it is the agent itself, which ends by itself and may still have to complete its cache.
        """
        pipe = asyncio.subprocess.PIPE
        read_end, write_end = os.pipe()
        writer = PipeWriter(write_end)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=read_end, stdout=pipe, stderr=pipe, limit=_PIPE, env=env, start_new_session=True
            )
        except BaseException:
            writer.close()
            raise
        finally:
            os.close(read_end)
        return cls(process, writer, lives_on)

    async def _keep_errors(self) -> str:
        assert self._process.stderr is not None
        kept = b""
        while True:
            piece = await self._process.stderr.read(_ERRORS_KEPT)
            if not piece:
                return kept.decode("utf-8", "replace")
            kept = (kept + piece)[-_ERRORS_KEPT:]

    async def read_exactly(self, length: int) -> bytes:
        """See `Link`."""
        return await self._output.readexactly(length)

    async def read_line(self, limit: int) -> bytes:
        """See `Link`."""
        line = b""
        while len(line) < limit and not line.endswith(b"\n"):
            byte = await self._output.read(1)
            if not byte:
                break
            line += byte
        return line

    async def write(self, *pieces: Buffer) -> None:
        """See `Link`."""
        await self._input.write(*pieces)

    async def close(self, wait: float = 0.0) -> None:
        """See `Link`."""
        self._input.close()
        # Output that nobody reads would keep the program from ending, and us from seeing that it has.
        unread = asyncio.ensure_future(self._discard())
        wait = max(wait, _AFTERWORK) if self._lives_on else wait
        try:
            if wait:
                with contextlib.suppress(asyncio.TimeoutError):
                    async with timeout(wait):
                        await self._process.wait()
        finally:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # its children, too: a ProxyCommand holds our pipes
        await self._process.wait()
        unread.cancel()
        self._errors.cancel()
        await asyncio.gather(unread, self._errors, return_exceptions=True)

    async def _discard(self) -> None:
        while await self._output.read(_PIPE):
            pass

    async def epitaph(self) -> tuple[Optional[int], str]:
        """See `Link`."""
        try:
            async with timeout(_LAST_WORDS):
                errors = await asyncio.shield(self._errors)
                return await self._process.wait(), errors.strip()
        except asyncio.TimeoutError:
            return None, ""


class SshDialer:
    """Dials with the system's ssh program: C crypto in its own process, the administrator's ssh_config in full.

    *agent* is what the environment says of the ssh agent, where that is another than this process's.
    """

    def __init__(self, options: Sequence[str] = (), agent: Optional[Mapping[str, str]] = None) -> None:
        found = shutil.which("ssh", path=ssh_words.PLACES)
        if found is None:
            raise FastcopyError("there is no ssh program on the front-end: install openssh-client")
        self._ssh = found
        self._env = None if agent is None else {**_without(os.environ, "SSH_AUTH_SOCK"), **agent}
        self._options = [*options, *ssh_words.options()]
        self._ciphers: Dict[str, str] = {}

    async def dial(self, host: str, bulk: bool) -> ProcessLink:
        """See `Dialer`."""
        return await self.start(host, bulk, " ".join(bootstrap_argv()))

    async def start(self, host: str, bulk: bool, command: str) -> ProcessLink:
        """As `dial`, for another command than our bootstrap."""
        argv = [self._ssh, *self._options]
        if bulk:
            argv += await self._bulk_cipher(host)
        return await ProcessLink.start([*argv, "--", host, command], env=self._env)

    async def _bulk_cipher(self, host: str) -> List[str]:
        """Prefer AES-GCM where this CPU has AES instructions, among the ciphers that the administrator allows.

        Measured here: chacha20-poly1305, OpenSSH's default, moves about two thirds of what aes128-gcm does.
        """
        if host not in self._ciphers:
            argv = [self._ssh, *self._options, "-G", "--", host]
            process = await asyncio.create_subprocess_exec(
                *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            output, _ = await process.communicate()
            self._ciphers[host] = prefer_fast_cipher(output.decode("utf-8", "replace"), _cpu_has_aes())
        return ["-c", self._ciphers[host]] if self._ciphers[host] else []

    async def close(self) -> None:
        """See `Dialer`."""


def _without(environ: Mapping[str, str], name: str) -> Dict[str, str]:
    return {key: value for key, value in environ.items() if key != name}


def prefer_fast_cipher(options: str, has_aes: bool) -> str:
    """The cipher list of `ssh -G`'s output with the fast one in front; "" to leave the order alone.  Pure."""
    match = re.search(r"(?m)^ciphers (\S+)$", options)
    names = match.group(1).split(",") if match else []
    fast = [name for name in ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com") if name in names]
    if not has_aes or not fast:
        return ""
    return ",".join(fast + [name for name in names if name not in fast])


@functools.lru_cache(maxsize=1)
def _cpu_has_aes() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = file.read(64 * 1024)
    except OSError:
        return False
    return re.search(r"(?m)^(flags|Features)\s*:.*\baes\b", flags) is not None


class LocalDialer:
    """Starts the bootstrap on this machine, without ssh: for the crash walk, and for a front-end that is its own
    host.
    """

    def __init__(self, python: str = "python3", prefix: Sequence[str] = ()) -> None:
        self._argv = [*prefix, python, "-I", "-S", "-c", bootstrap_argv()[-1].strip('"')]

    async def dial(self, host: str, bulk: bool) -> ProcessLink:
        """See `Dialer`."""
        return await ProcessLink.start(self._argv, env=dict(os.environ), lives_on=True)

    async def close(self) -> None:
        """See `Dialer`."""
