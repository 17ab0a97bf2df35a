"""Upkeep: the conversation about the cache of a system datastore, in which an administrator looks after it."""

from __future__ import annotations

import os
from typing import Callable, Dict, List, Optional, Type

from ..core.cache_messages import CacheOpened, Entries, EntryRow, Evict, ListEntries, OpenCache, Pin, Scrub
from ..core.errors import FastcopyError, ProtocolError, Refused
from ..core.fiemap import Usage, usage
from ..core.files import Files, free_bytes
from ..core.paths import has
from ..core.wire import Done, Message
from .cache import BAD, Cache
from .directory import open_datastore
from .scrub import Scrubber, last_scrubs


class Upkeep:
    """The open cache of one conversation."""

    def __init__(self, files: Files, message: OpenCache, alive: Callable[[], bool]) -> None:
        self._files, self._alive = files, alive
        base = open_datastore(message.base)
        try:
            cache, reason = Cache.open(files, base, message.base)
        finally:
            os.close(base)
        if cache is None:
            raise FastcopyError(f"{message.base} has no cache: {reason}")
        self._cache = cache
        self._scrubber: Optional[Scrubber] = None
        self._handlers: Dict[Type[Message], Callable[..., Message]] = {
            ListEntries: self._list,
            Pin: self._pin,
            Evict: self._remove,
            Scrub: self._scrub,
        }

    def opened(self) -> CacheOpened:
        """What there is."""
        status = os.fstatvfs(self._cache.fd)
        total = status.f_blocks * status.f_frsize
        return CacheOpened(self._cache.path, self._cache.reflink, total, free_bytes(self._cache.fd))

    def handle(self, message: Message) -> Message:
        """Answer one message; errors are raised."""
        handler = self._handlers.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} makes no sense here")
        return handler(message)

    def _list(self, _: ListEntries) -> Message:
        scrubbed = last_scrubs(self._cache)
        rows: List[EntryRow] = []
        for entry in self._cache.entries():
            row = self._row(entry.id, ".img", int(entry.used), scrubbed.get(entry.id, 0), entry.pinned)
            rows += [row] if row else []
        for name in sorted(self._cache.quarantined()):
            row = self._row(name, BAD, 0, 0, False)
            rows += [row._replace(bad=True)] if row else []
        return Entries.make(rows)

    def _row(self, manifest_id: str, suffix: str, used: int, scrubbed: int, pinned: bool) -> Optional[EntryRow]:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(manifest_id + suffix, flags, dir_fd=self._cache.fd)
        except OSError:
            return None  # removed just now, or not ours
        try:
            size, blocks = os.fstat(fd).st_size, os.fstat(fd).st_blocks * 512
            try:
                found = usage(fd)
            except OSError:
                found = Usage(blocks, blocks, 0, ())
        finally:
            os.close(fd)
        times = max(0, used), max(0, scrubbed)
        return EntryRow(manifest_id, size, found.allocated, found.exclusive, found.extents, *times, pinned, False)

    def _pin(self, message: Pin) -> Message:
        self._cache.pin(message.manifest, message.pinned)
        return Done()

    def _remove(self, message: Evict) -> Message:
        cache, wanted = self._cache, message.manifest
        if wanted in cache.quarantined():
            self._files.unlink(cache.fd, wanted + BAD)
        elif cache.manifest(wanted) is None:
            raise Refused(f"there is no image {wanted[:64]} in {cache.path}")
        elif cache.pinned(wanted):
            raise Refused(f"image {wanted} is pinned: unpin it first")
        else:
            cache.remove(wanted)
            if has(cache.fd, f"{wanted}.manifest"):
                raise FastcopyError(f"image {wanted} cannot be removed: is {cache.path} writable?")
        return Done()

    def _scrub(self, message: Scrub) -> Message:
        if self._scrubber is None:
            self._scrubber = Scrubber(self._files, self._cache, self._alive)
        return self._scrubber.turn(message.manifest, message.rate)

    def close(self) -> None:
        """Let go of the cache."""
        if self._scrubber:
            self._scrubber.close()
        self._cache.close()
