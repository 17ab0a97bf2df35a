"""Threads: blocking work of an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Callable, TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run blocking work in a thread.  If we are cancelled meanwhile, wait for its end first: the thread cannot be
    stopped, and must not go on with descriptors that have been closed and given to others.  Also if we are cancelled
    again: a host that goes away ends its lanes and its conversation, and each of them cancels.  What the work has
    opened for us is closed then: a staging file would stay locked for as long as this process lives.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            close = getattr(task.result(), "close", None)
            if close is not None:
                close()
        raise
