"""Faulty links: a wrapper around a `Link` that breaks it after so many bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Optional

from tm_fastcopy.core.buffer import Buffer
from tm_fastcopy.core.errors import LinkLost

_AFTERWORK = 60.0  # seconds that an agent may take to complete its cache after the front-end has gone


class StreamLink:
    """A `Link` over a socket whose other end is a process of ours."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, sock: socket.socket) -> StreamLink:
        """The link over a connected socket."""
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 20))

    async def read_exactly(self, length: int) -> bytes:
        """See `Link`."""
        try:
            return await self._reader.readexactly(length)
        except OSError as error:
            raise asyncio.IncompleteReadError(b"", length) from error

    async def read_line(self, limit: int) -> bytes:
        """See `Link`."""
        return await self._reader.readline()

    async def write(self, *pieces: Buffer) -> None:
        """See `Link`."""
        try:
            self._writer.write(b"".join(pieces))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise LinkLost("the connection broke") from error

    async def close(self, wait: float = 0.0) -> None:
        """See `Link`.  Returns when the process at the other end has ended."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            while await asyncio.wait_for(self._reader.read(1 << 20), _AFTERWORK):
                pass
        self.cut()

    def cut(self) -> None:
        """Break the connection at once."""
        self._writer.transport.abort()

    async def epitaph(self) -> tuple[Optional[int], str]:
        """See `Link`."""
        return None, ""


class Faulty:
    """A link that fails: *drop_after*, *stall_after* so many bytes, or flips a bit of byte number *flip_bit_in*.

    *direction* says which way the bytes are counted: "in" (to the front-end) or "out".  Only messages count, not
    the banner.  A stalled link takes what is written and lets nothing through, either way.
    """

    def __init__(self, link: Any, direction: str, **faults: int) -> None:
        self._link, self._direction = link, direction
        self._drop = faults.get("drop_after", -1)
        self._stall = faults.get("stall_after", -1)
        self._flip = faults.get("flip_bit_in", -1)
        self._passed = 0
        self._stalled = False
        self._closed = asyncio.Event()

    async def read_line(self, limit: int) -> bytes:
        """See `Link`."""
        line: bytes = await self._link.read_line(limit)
        return line

    async def read_exactly(self, length: int) -> bytes:
        """See `Link`."""
        data = await self._link.read_exactly(length)
        data = await self._through(data) if self._direction == "in" else data
        if self._stalled:
            await self._closed.wait()
        return data

    async def write(self, *pieces: Buffer) -> None:
        """See `Link`."""
        data = b"".join(pieces)
        if data.startswith(b"BUNDLE "):
            await self._link.write(data)
            return
        data = await self._through(data) if self._direction == "out" else data
        if not self._stalled:
            await self._link.write(data)

    async def _through(self, data: bytes) -> bytes:
        start, self._passed = self._passed, self._passed + len(data)
        if start <= self._flip < self._passed:
            at = self._flip - start
            data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        if 0 <= self._drop < self._passed:
            if self._direction == "out":
                with contextlib.suppress(LinkLost):
                    await self._link.write(data[: max(0, self._drop - start)])
            self._link.cut()
            raise LinkLost("the link was cut")
        if 0 <= self._stall < self._passed:
            self._stalled = True
        return data

    async def close(self, wait: float = 0.0) -> None:
        """See `Link`.  A stalled link is cut: nothing would tell the other side."""
        self._closed.set()
        if self._stalled:
            self._link.cut()
            return
        await self._link.close(wait)

    async def epitaph(self) -> tuple[Optional[int], str]:
        """See `Link`."""
        answer: tuple[Optional[int], str] = await self._link.epitaph()
        return answer
