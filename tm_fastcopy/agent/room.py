"""Room: making it on a cache's file system, for a disk and for one image more, and keeping the cache within its limits.

What is decided is in `eviction`; here it is carried out.  After each image the file system is asked again how much is
free, because blocks that others share do not come free, and it ends when nothing does.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import List, Sequence, Tuple

from ..core.errors import FastcopyError
from ..core.fiemap import usage
from ..core.files import Files, free_bytes, lock, room
from ..core.messages import CacheOptions
from ..core.paths import has, list_names
from ..core.publish import is_staging
from .cache import BAD, KEPT, PROBE, Cache
from .eviction import Candidate, for_limit, for_room
from .lease import EXPIRY, leased

_QUARANTINE = 7 * 24 * 3600.0  # seconds that a bad image is kept for whoever wants to see it, while there is room
_MIB = 1024 * 1024


def make_room(files: Files, cache: Cache, needed: int, keep: str = "", min_age: float = 0.0) -> int:
    """Evict until *needed* bytes are free and not leased, or nothing more can be won.  Return the bytes that are.

    What cut-off transfers left goes first, then images in quarantine.  The image *keep* stays, and so do those that
    were used within *min_age* seconds.
    """
    free = _unclaimed(files, cache, needed)
    if free < needed:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            sweep(files, cache, time.time())
            _drop_quarantined(files, cache)
        free = _unclaimed(files, cache, needed)
    stay = [keep]
    removed = 0
    while free < needed:
        images = [i for i in survey(cache, stay) if min_age == 0 or not 0 <= time.time() - i.used < min_age]
        chosen = for_room(images, needed - free)
        if not chosen:
            break
        cache.remove(chosen[0].id)
        stay.append(chosen[0].id)
        removed += 1
        before, free = free, _unclaimed(files, cache, needed)
        if free <= before and chosen[0].exclusive > 0:
            break  # it should have freed something: a snapshot holds it, or nothing can be removed
    _note_removed(cache, removed, "to make room")
    return free


def room_for(files: Files, base_fd: int, base: str, needed: int) -> int:
    """Bytes that are free in the system datastore *base*, after cached images have made room for *needed*."""
    free = room(files, base_fd, needed)
    if free >= needed:
        return free
    cache, _ = Cache.open(files, base_fd, base)
    if cache is None:
        return free
    try:
        return max(0, make_room(files, cache, needed))
    except OSError:
        return free
    finally:
        cache.close()


def fit(files: Files, cache: Cache, options: CacheOptions, image: int, needed: int) -> str:
    """Make the cache ready to take in *image* bytes more, by a transfer that writes *needed* in all.

    "", or in a few words why the image has to go past the cache.  Two transfers at once may exceed the limit together:
    the next one brings the cache back below it.
    """
    size = os.fstatvfs(cache.fd)
    total = size.f_blocks * size.f_frsize
    limits = [options.limit] if options.limit else []
    if options.limit_percent:
        limits.append(total * options.limit_percent // 100)
    if limits and not _keep_within(files, cache, min(limits), image, options.min_age):
        return f"its limit of {min(limits) // _MIB} MiB has no room for {-(-image // _MIB)} MiB"
    reserve = max(options.reserve, total * options.reserve_percent // 100)
    if make_room(files, cache, needed + reserve, min_age=options.min_age) < needed + reserve:
        return f"no room for it with {reserve // _MIB} MiB of the file system reserved" if reserve else "no room for it"
    return ""


def _keep_within(files: Files, cache: Cache, limit: int, image: int, min_age: float) -> bool:
    excess = cache.allocated() + image - limit
    if excess > 0:
        with contextlib.suppress(OSError):
            _drop_quarantined(files, cache)
        excess = cache.allocated() + image - limit
    if excess <= 0:
        return True
    images = [Candidate(entry.id, entry.allocated, 0, entry.used, entry.pinned) for entry in cache.entries()]
    chosen = for_limit(images, excess, min_age, time.time())
    for candidate in chosen:
        cache.remove(candidate.id)
    _note_removed(cache, len(chosen), "to keep its limit")
    return bool(chosen) and cache.allocated() + image <= limit


def _note_removed(cache: Cache, count: int, why: str) -> None:
    if count:
        cache.note(f"{count} image{'s' if count > 1 else ''} removed {why}")


def survey(cache: Cache, without: Sequence[str] = ()) -> List[Candidate]:
    """The images of the cache as eviction sees them.  Where blocks cannot be shared, each holds all its own alone."""
    found: List[Candidate] = []
    for entry in cache.entries():
        if entry.id in without:
            continue
        alone = entry.allocated
        shared: Tuple[Tuple[int, int], ...] = ()
        if cache.reflink:
            try:
                fd = os.open(f"{entry.id}.img", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cache.fd)
            except OSError:
                continue
            try:
                _, alone, _, shared = usage(fd)
            except OSError:
                pass
            finally:
                os.close(fd)
        found.append(Candidate(entry.id, entry.allocated, alone, entry.used, entry.pinned, shared))
    return found


def sweep(files: Files, cache: Cache, now: float) -> None:
    """Remove what killed agents left `EXPIRY` seconds ago or earlier: scratch files, and images that never counted.
    And what has been in quarantine, or a note of a disk that was not removed, for a week.
    """
    for name in cache.orphans():
        status = has(cache.fd, name)
        if status is not None and now - status.st_ctime > EXPIRY:  # its rename was the last change
            files.unlink(cache.fd, name)
    for stem in cache.quarantined():
        status = has(cache.fd, stem + BAD)
        if status is not None and now - status.st_ctime > _QUARANTINE:
            files.unlink(cache.fd, stem + BAD)
    for name in list_names(cache.fd):
        status = has(cache.fd, name) if name.endswith(KEPT) else None
        if status is not None and now - status.st_mtime > _QUARANTINE:  # its disk went some other way
            files.unlink(cache.fd, name)
        if not is_staging(name) and not name.startswith(PROBE):
            continue
        try:
            # Not for writing: what was cut off right before its rename is read-only already.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cache.fd)
        except OSError:
            continue
        try:
            if now - os.fstat(fd).st_mtime > EXPIRY and lock(fd):
                files.unlink(cache.fd, name)
        finally:
            os.close(fd)


def _drop_quarantined(files: Files, cache: Cache) -> None:
    for stem in cache.quarantined():
        files.unlink(cache.fd, stem + BAD)


def _unclaimed(files: Files, cache: Cache, needed: int) -> int:
    try:
        claimed = leased(files, cache, time.time())
    except (OSError, FastcopyError):
        claimed = 0
    free = free_bytes(cache.fd) - claimed
    if free < needed:
        files.sync_file_system(cache.fd)
        free = free_bytes(cache.fd) - claimed
    return free
