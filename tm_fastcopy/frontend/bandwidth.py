"""Bandwidth: how fast this process talks to all hosts together, and to each of them.

A bucket keeps the time at which all that was sent is paid for; who wants to send more waits until then.  What is paid
for is what a transfer's streams have carried since it last paid, both ways and as packed as it was, so nobody has to
know beforehand how large an answer will be.  The price of that: up to a lane's window travels before it is paid.

Every transfer pays at the rate that its own settings give, into the same buckets: where settings differ, all of them
together are not faster than the fastest of them allows.
"""

from __future__ import annotations

import asyncio
import time
from typing import Awaitable, Callable, Dict, List, Tuple

_BURST = 0.25  # seconds that a bucket which nobody used may be behind: what came late by chance is made up for
_HOSTS = 1000  # buckets that are remembered; a cloud of one front-end has fewer hosts


class Bucket:
    """The debt of all who pay into it; times are seconds of the caller's clock."""

    def __init__(self) -> None:
        self.paid = 0
        """Bytes, ever."""
        self._due = float("-inf")

    def pay(self, size: int, rate: int, now: float) -> float:
        """Pay for *size* bytes at *rate* bytes a second; the seconds until more may be sent."""
        self.paid += size
        self._due = max(self._due, now - _BURST) + size / rate
        return max(0.0, self._due - now)

    def idle(self, now: float) -> bool:
        """Whether it makes no difference to a new one."""
        return self._due <= now - _BURST


class Meter:
    """One transfer's payments, to buckets with a rate for each."""

    def __init__(
        self,
        buckets: List[Tuple[Bucket, int]],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._buckets, self._clock, self._sleep = buckets, clock, sleep
        self._seen = 0

    def charge(self, carried: int) -> float:
        """Pay for what has been carried; *carried* counts from the transfer's begin.  Returns seconds to wait."""
        size, self._seen = max(0, carried - self._seen), max(carried, self._seen)
        now = self._clock()
        return max((bucket.pay(size, rate, now) for bucket, rate in self._buckets), default=0.0)

    async def pay(self, carried: int) -> None:
        """As `charge`, and wait."""
        seconds = self.charge(carried)
        if seconds > 0:
            await self._sleep(seconds)


class Bandwidth:
    """The buckets of this process.  Tests give a *clock*, and a *sleep* that moves it."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self.all = Bucket()
        self._hosts: Dict[str, Bucket] = {}

    def meter(self, host: str, limit: int, host_limit: int) -> Meter:
        """The meter of a transfer with *host*; limits are bytes a second, 0 for none."""
        buckets = [(self.all, limit)] if limit else []
        if host_limit:
            buckets.append((self.host(host), host_limit))
        return Meter(buckets, self._clock, self._sleep)

    def host(self, name: str) -> Bucket:
        """A host's bucket."""
        if name not in self._hosts and len(self._hosts) >= _HOSTS:
            now = self._clock()
            self._hosts = {key: bucket for key, bucket in self._hosts.items() if not bucket.idle(now)}
        return self._hosts.setdefault(name, Bucket())
