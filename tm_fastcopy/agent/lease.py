"""Leases: room that a transfer will need, written down where other transfers see it.

A lease is a small file whose content is a number of bytes and whose mtime is its heartbeat.  It is not a lock: one that
has not been renewed for `EXPIRY` seconds counts for nothing, and whoever sees it removes it.
"""

from __future__ import annotations

import os
import time

from ..core.files import Files, lock
from ..core.paths import list_names
from .cache import Cache

EXPIRY = 45.0  # seconds; the front-end is heard every 5, and an agent gives up after 30 of silence
_SUFFIX = ".lease"


class Lease:
    """Room for one transfer on the cache's file system."""

    def __init__(self, files: Files, cache: Cache, needed: int) -> None:
        self._files, self._cache = files, cache
        self._name = f"{os.getpid()}.{time.monotonic_ns()}{_SUFFIX}"
        self._fd = files.create(cache.fd, self._name)
        lock(self._fd)  # a lease that nobody holds is one whose agent has ended
        self.renew(needed)

    def renew(self, remaining: int) -> None:
        """Say that *remaining* bytes are still to be written."""
        self._files.write(self._fd, b"%20d" % max(0, remaining), 0)
        os.utime(self._fd)

    def release(self) -> None:
        """Give the room back."""
        self._files.unlink(self._cache.fd, self._name)
        os.close(self._fd)


def leased(files: Files, cache: Cache, now: float) -> int:
    """Bytes that live leases speak for; expired ones are removed."""
    total = 0
    for name in list_names(cache.fd):
        if not name.endswith(_SUFFIX):
            continue
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cache.fd)
        except OSError:
            continue
        try:
            if abs(now - os.fstat(fd).st_mtime) > EXPIRY or lock(fd):  # also one from a future that a clock came from
                files.unlink(cache.fd, name)
            else:
                total += int(os.read(fd, 32) or b"0")
        except (OSError, ValueError):
            continue
        finally:
            os.close(fd)
    return total
