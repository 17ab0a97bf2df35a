"""PipeWriter: the end of a pipe that another process reads, written without copies.

asyncio's own transport wakes up for every page that the reader has taken, which for ssh is a wake-up for each 16 KiB.
This one lets some room come together first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import List, Optional

from ..core.buffer import Buffer
from ..core.errors import LinkLost

_SIZE = 1024 * 1024  # /proc/sys/fs/pipe-max-size for an unprivileged process: fewer wake-ups for a chunk
_GATHER = 0.002  # seconds; at 400 MB/s the pipe is not empty by then
_MOST_PIECES = 64  # in one system call; the kernel takes 1024


class PipeWriter:
    """Writes to descriptor *fd*, which it owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        with contextlib.suppress(OSError):  # beyond the user's share of pipe pages it stays as it is
            fcntl.fcntl(fd, 1031, _SIZE)  # F_SETPIPE_SZ
        self._turn = asyncio.Lock()
        self._torn = False
        self._waiting: Optional[asyncio.Future[None]] = None

    async def write(self, *pieces: Buffer) -> None:
        """Write all *pieces*; returns when the pipe has taken them.  `LinkLost` if nobody reads it any more.

        A message that was cut off by a cancellation is the last one: what would follow it could not be told from it.
        """
        async with self._turn:
            if self._fd < 0 or self._torn:
                raise LinkLost("the connection broke")
            self._torn = True
            await self._put([memoryview(piece) for piece in pieces])
            self._torn = False

    async def _put(self, views: List[memoryview]) -> None:
        at = 0
        while at < len(views):
            try:
                taken = os.writev(self._fd, views[at : at + _MOST_PIECES])
            except BlockingIOError:
                await self._room()
                continue
            except OSError as error:
                raise LinkLost("the connection broke") from error
            while at < len(views) and taken >= len(views[at]):
                taken -= len(views[at])
                at += 1
            if taken:
                views[at] = views[at][taken:]

    async def _room(self) -> None:
        """Wait until there is room for more than a little, or nobody reads any more."""
        loop = asyncio.get_running_loop()
        ready = self._waiting = loop.create_future()
        loop.add_writer(self._fd, _settle, ready)
        try:
            await ready
        finally:
            self._waiting = None
            if self._fd >= 0:  # the number of one that was closed may be another's by now
                loop.remove_writer(self._fd)
        await asyncio.sleep(_GATHER)
        if self._fd < 0:
            raise LinkLost("the connection was closed")

    def close(self) -> None:
        """Let the reader see the end."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            if self._waiting:
                _settle(self._waiting)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
