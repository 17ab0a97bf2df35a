"""Link: a byte stream to a program on another machine, and the dialer that makes it.

The interface is small on purpose: the ssh program, asyncssh and a process on this machine implement it, and pass one
contract suite.
"""

from __future__ import annotations

from typing import Optional, Protocol

from ..core.buffer import Buffer


class Link(Protocol):
    """A stream to the program that was started on the other machine."""

    async def read_exactly(self, length: int) -> bytes:
        """Return *length* bytes; `asyncio.IncompleteReadError` if the stream ends before."""

    async def read_line(self, limit: int) -> bytes:
        """Return one line with its newline, or what is left at the end of the stream, at most *limit* bytes."""

    async def write(self, *pieces: Buffer) -> None:
        """Send *pieces*; returns when there is room for more.  `LinkLost` if the other side is gone."""

    async def close(self, wait: float = 0.0) -> None:
        """End the stream, give the program *wait* seconds to end by itself, then cut the connection."""

    async def epitaph(self) -> tuple[Optional[int], str]:
        """After the end of the stream: exit status, if there was one, and the last that came on standard error."""


class Dialer(Protocol):
    """Starts our bootstrap on hosts."""

    async def dial(self, host: str, bulk: bool) -> Link:
        """Connect to *host* and start the bootstrap.  *bulk* asks for a stream that is good at throughput."""

    async def close(self) -> None:
        """End what is kept for streams to come."""
