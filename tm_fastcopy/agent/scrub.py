"""Scrub: reads images of the cache and holds every chunk against its digest.  A bad one puts its image in quarantine.

A scrub works in turns of a few seconds, for as long as it is asked to go on, and reads no faster than it is told.  The
file `scrub.state` says where the last turn ended and when each image was last read to its end, so the next one, perhaps
days later and of another process, goes on there.  It is a help only: one that cannot be read is begun anew.

    {"version": 1, "entry": <manifest id>, "chunk": <next chunk>, "began": <start of this pass>, "full": {<id>: <time>}}

Times are seconds since the epoch.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from ..core.cache_messages import MAX_ENTRIES, Scrubbed
from ..core.errors import BadChunk, FastcopyError, Refused, SourceChanged
from ..core.files import Files, lock
from ..core.hashing import digest, read_exactly
from ..core.manifest import ZERO_DIGEST, Manifest
from .cache import Cache

STATE = "scrub.state"
TURN = 10.0  # seconds from a question to its answer: the front-end can show that it goes on, and stop it
_BRIEFLY = 0.5  # seconds that are slept in one go, between looks whether the front-end is still there
_MAX_STATE = MAX_ENTRIES * 100 + 4096  # an id and a time for each image


def verified(image: int, manifest: Manifest, first: int = 0) -> Iterator[Tuple[int, bytes]]:
    """Yield (offset, content) of every chunk with data, from chunk *first* on; `BadChunk` at one that is not what the
    manifest says.
    """
    for index in range(first, manifest.count):
        wanted = manifest.digest(index)
        if wanted != ZERO_DIGEST:
            offset = index * manifest.chunk_size
            try:
                data = read_exactly(image, offset, min(manifest.chunk_size, manifest.size - offset))
            except OSError as error:
                raise BadChunk(f"has a chunk that cannot be read ({error.strerror})") from error
            except SourceChanged as error:
                raise BadChunk("is shorter than it should be") from error
            if digest(data) != wanted:
                raise BadChunk("has a damaged chunk")
            yield offset, data


class State:
    """The content of `scrub.state`, locked while it is open."""

    def __init__(self, files: Files, cache: Cache) -> None:
        self._files = files
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.fd = os.open(STATE, flags, dir_fd=cache.fd)
        except FileNotFoundError:
            self.fd = files.create(cache.fd, STATE)
        if not lock(self.fd):
            os.close(self.fd)
            raise Refused(f"{cache.path} is being scrubbed already; try again when that has ended")
        values = _parse(self.fd)
        self.entry: str = values.get("entry", "")
        self.chunk: int = values.get("chunk", 0)
        self.began: int = values.get("began", 0)
        self.full: Dict[str, int] = values.get("full", {})

    def save(self) -> None:
        """Write it down.  In place: a torn one is no worse than none."""
        values = {"version": 1, "entry": self.entry, "chunk": self.chunk, "began": self.began, "full": self.full}
        raw = json.dumps(values).encode()
        self._files.truncate(self.fd, 0)
        self._files.write(self.fd, raw, 0)

    def close(self) -> None:
        """Let another scrub."""
        os.close(self.fd)


def last_scrubs(cache: Cache) -> Dict[str, int]:
    """When each image was last read to its end, seconds since the epoch."""
    try:
        fd = os.open(STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cache.fd)
    except OSError:
        return {}
    try:
        found: Dict[str, int] = _parse(fd).get("full", {})
        return found
    finally:
        os.close(fd)


def _parse(fd: int) -> Dict[str, Any]:
    """The content of an open `scrub.state`; {} if it is damaged, or of another version."""
    try:
        values = json.loads(os.pread(fd, _MAX_STATE, 0))
        times = [values["chunk"], values["began"], *values["full"].values()]
        sound = type(values["entry"]) is str and all(type(time_) is int and 0 <= time_ < 1 << 62 for time_ in times)
        return values if sound and values["version"] == 1 else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


class Scrubber:
    """The scrub of one conversation.  *clock* and *sleep* are in seconds, *now* is the time of day."""

    def __init__(
        self,
        files: Files,
        cache: Cache,
        alive: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cache, self._alive, self._clock, self._sleep, self._now = cache, alive, clock, sleep, now
        self._state = State(files, cache)
        self._free_at = clock()  # nothing is read before: this is how the rate is kept
        self._single: Tuple[str, int] = "", 0

    def turn(self, manifest_id: str, rate: int) -> Scrubbed:
        """Read on for `TURN` seconds at most; *rate* in bytes a second, 0 for as fast as it goes."""
        ends = self._clock() + TURN
        return self._one(manifest_id, rate, ends) if manifest_id else self._all(rate, ends)

    def _one(self, manifest_id: str, rate: int, ends: float) -> Scrubbed:
        first = self._single[1] if self._single[0] == manifest_id else 0
        if self._cache.manifest(manifest_id) is None:
            raise Refused(f"there is no image {manifest_id[:64]} in {self._cache.path}")
        read, following, damaged = self._read(manifest_id, first, rate, ends)
        self._single = (manifest_id, following) if following is not None else ("", 0)
        if following is None and not damaged:
            self._state.full[manifest_id] = int(self._now())
            self._state.save()
        return Scrubbed(manifest_id, read, damaged, following is None)

    def _all(self, rate: int, ends: float) -> Scrubbed:
        state = self._state
        if not state.began:  # later than all that was read before, whatever the clock says
            state.began = max([int(self._now()), *(when + 1 for when in state.full.values())])
        read = damaged = 0
        while self._alive():
            todo = self._next()
            if todo is None:
                state.entry, state.chunk, state.began = "", 0, 0
                state.save()
                return Scrubbed("", read, damaged, True)
            if todo != state.entry:
                state.entry, state.chunk = todo, 0
            bytes_, following, bad = self._read(todo, state.chunk, rate, ends)
            read, damaged = read + bytes_, damaged + bad
            if following is not None:
                state.chunk = following
                break
            # Also one that was removed meanwhile has been dealt with in this pass.
            state.full[todo] = max(int(self._now()), state.began)
            state.entry, state.chunk = "", 0
        state.save()
        return Scrubbed(state.entry, read, damaged, False)

    def _next(self) -> Optional[str]:
        """Where this pass goes on: the image it stopped in, then the one that was not read for the longest time."""
        state = self._state
        present = [entry.id for entry in self._cache.entries()]
        state.full = {name: when for name, when in state.full.items() if name in set(present)}
        todo = [name for name in present if state.full.get(name, 0) < state.began]
        if state.entry in todo:
            return state.entry
        return min(todo, key=lambda name: (state.full.get(name, 0), name), default=None)

    def _read(self, manifest_id: str, first: int, rate: int, ends: float) -> Tuple[int, Optional[int], int]:
        """Read an image from chunk *first* on: (bytes, the chunk to go on with or None at the end, 1 if it is bad)."""
        manifest = self._cache.manifest(manifest_id)
        if manifest is None:
            return 0, None, 0
        try:
            image = os.open(
                f"{manifest_id}.img", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._cache.fd
            )
        except FileNotFoundError:
            return 0, None, 0
        except OSError as error:
            self._cache.quarantine(manifest_id, f"cannot be read ({error.strerror})")
            return 0, None, 1
        read = 0
        try:
            # What the page cache holds says nothing about the disk; and what guests have in it is not driven out.
            os.posix_fadvise(image, 0, 0, os.POSIX_FADV_DONTNEED)
            following = first
            chunks = verified(image, manifest, first)
            while self._wait(ends):
                offset, data = next(chunks, (-1, b""))
                if offset < 0:
                    return read, None, 0
                read += len(data)
                following = offset // manifest.chunk_size + 1
                os.posix_fadvise(image, offset, len(data), os.POSIX_FADV_DONTNEED)
                if rate:
                    self._free_at = max(self._free_at, self._clock()) + len(data) / rate
            return read, following, 0
        except FastcopyError as error:
            self._cache.quarantine(manifest_id, str(error))
            return read, None, 1
        finally:
            os.close(image)

    def _wait(self, ends: float) -> bool:
        """Wait until more may be read; False when the turn is over, or the front-end gone."""
        while self._alive() and self._clock() < ends:
            missing = self._free_at - self._clock()
            if missing <= 0:
                return True
            self._sleep(min(missing, _BRIEFLY, max(0.0, ends - self._clock())))
        return False

    def close(self) -> None:
        """End the scrub; another may begin."""
        self._state.close()
