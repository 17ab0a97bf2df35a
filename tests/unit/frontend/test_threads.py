"""Blocking work of the event loop: whoever is cancelled waits for its end, however often."""

from __future__ import annotations

import asyncio
import threading

import pytest

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
