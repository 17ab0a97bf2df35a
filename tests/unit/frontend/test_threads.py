"""Blocking work of the event loop: whoever is cancelled waits for its end, however often."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Optional

import pytest

from tm_fastcopy.core.files import Files
from tm_fastcopy.core.staging import Staging
from tm_fastcopy.frontend.threads import in_thread


@pytest.mark.parametrize("times", [1, 2, 3])
def test_who_is_cancelled_goes_on_only_when_the_thread_has_ended(times: int) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()

    async def scene() -> None:
        task = asyncio.ensure_future(in_thread(work))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(times):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scene())


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_was_opened_for_nobody_is_closed(tmp_path: Path, cancelled: bool) -> None:
    """Else a staging file would stay locked for the life of the process."""
    begun, may_end = threading.Event(), threading.Event()
    directory = os.open(tmp_path, os.O_RDONLY)

    def work() -> Optional[Staging]:
        begun.set()
        may_end.wait(10)
        return Staging.open(Files(), directory, ".a.fastcopy.part", 10)

    async def scene() -> None:
        task = asyncio.ensure_future(in_thread(work))
        await asyncio.to_thread(begun.wait, 10)
        if cancelled:
            task.cancel()
            await asyncio.sleep(0)
        may_end.set()
        (found,) = await asyncio.gather(task, return_exceptions=True)
        again = Staging.open(Files(), directory, ".a.fastcopy.part", 10)
        assert (again is not None) == cancelled
        for staging in (found, again):
            if isinstance(staging, Staging):
                staging.close()

    asyncio.run(scene())
    os.close(directory)
