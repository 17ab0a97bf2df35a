"""Shelf: a disk that was brought back as an image stays on the host as a seed, in the cache, under its manifest's id.

Where blocks can be shared, the disk is reflinked into the cache when the conversation is over and nobody waits.
Elsewhere a copy would cost as much as the disk is large.  There a note is left, `<identity of the file>.kept`: how far
the cache may be used, and the manifest.  When oned has the disk removed, its file is moved into the cache instead of
being unlinked, and becomes an image when the removal has been answered.

The digests are those of the reading that brought the disk back.  They are believed if the disk had rested (see
`core/identity.py`) when it was opened, and has the same identity when it is taken; otherwise what was taken is read.

It is a help only: nothing in here fails an action.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict
from typing import Iterator, List, NamedTuple, Optional, Tuple

from ..core.errors import FastcopyError
from ..core.files import Files, close, lock
from ..core.hashing import hash_page
from ..core.identity import Identity
from ..core.manifest import DIGEST_SIZE, Manifest
from ..core.messages import DEFAULT_OPTIONS, PAGE_CHUNKS, CacheOptions
from ..core.paths import has, list_names
from ..core.staging import Staging
from ..core.tree import find_active
from .cache import ENTRY_MTIME, KEPT, Cache, root
from .directory import VmDirectory
from .room import fit

_MOST = 1 << 20  # chunks whose digests are held while a disk is read: 32 MiB, for 256 GiB at the default chunk size
_MAX_HEAD = 4096  # bytes of a note before its manifest
_MAX_NOTE = _MAX_HEAD + _MOST * DIGEST_SIZE + 4096
_DISK = re.compile(r"disk\.[0-9]{1,9}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Note(NamedTuple):
    """What is known of a disk: its content, whether that is proved by the disk's identity, and how the cache may be
    used for it.
    """

    manifest: Manifest
    proved: bool
    options: CacheOptions

    def encode(self) -> bytes:
        """As it is stored: a line of JSON, then the manifest."""
        head = {"version": 1, "proved": self.proved, "options": asdict(self.options)}
        return json.dumps(head).encode() + b"\n" + self.manifest.encode()

    @classmethod
    def decode(cls, raw: bytes) -> Note:
        """Read a note; ValueError or `FastcopyError` if it is none."""
        line, _, rest = raw.partition(b"\n")
        head = json.loads(line[:_MAX_HEAD])
        if not isinstance(head, dict) or head.get("version") != 1:
            raise ValueError("this is not a note")
        try:
            return cls(Manifest.decode(rest), head["proved"] is True, CacheOptions(**head["options"]))
        except (KeyError, TypeError) as error:
            raise ValueError("this is not a note") from error


class Shelf:
    """The disk that one conversation reads, if it may be kept."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._options = DEFAULT_OPTIONS
        self._digests = bytearray()
        self._chunk = 0
        self._kept: Optional[Tuple[Cache, int, Identity, Note]] = None

    def use(self, options: CacheOptions) -> None:
        """Go by these options."""
        self._options = options

    def read(self, first: int, chunk: int, digests: bytes) -> None:
        """Take in what was read.  Only a disk that is read once, in order, is kept."""
        if first == 0:
            self._digests, self._chunk = bytearray(), chunk
        here = len(self._digests) // DIGEST_SIZE
        if first == here and chunk == self._chunk and here + len(digests) // DIGEST_SIZE <= _MOST:
            self._digests += digests
        else:
            self._chunk = 0

    def keep(self, directory: VmDirectory, fd: int, identity: Identity, rested: bool, manifest_id: str) -> None:
        """Keep the disk *fd*, of which all was read, as the image *manifest_id*: when `finish` is called, or when it is
        removed.  *rested*: it had rested when it was opened.
        """
        try:
            self._keep(directory, fd, identity, rested, manifest_id)
        except (OSError, FastcopyError):
            pass

    def _keep(self, directory: VmDirectory, fd: int, identity: Identity, rested: bool, manifest_id: str) -> None:
        if not self._options.enable or not self._chunk or self._kept:
            return
        manifest = Manifest(identity.size, self._chunk, bytes(self._digests))
        if manifest.id != manifest_id:
            return
        cache, _ = Cache.open(self._files, directory.base_fd, directory.base)
        if cache is None:
            return
        note = Note(manifest, rested, self._options)
        known = cache.image(manifest_id)
        try:
            if known is not None:
                cache.close()
            elif cache.reflink:
                self._kept = cache, os.dup(fd), identity, note
            else:
                _write_note(self._files, cache, identity, note)
                cache.close()
        except BaseException:
            cache.close()
            raise
        finally:
            close(known)

    def finish(self) -> None:
        """Bring the disk into the cache as a reflink.  The guard has been given back, and nobody waits."""
        if self._kept is None:
            return
        cache, fd, identity, note = self._kept
        self._kept = None
        staging: Optional[Staging] = None
        try:
            if fit(self._files, cache, note.options, os.fstat(fd).st_blocks * 512, 0):
                return
            staging = Staging.open(self._files, cache.fd, cache.staging_for(identity.key("")), 0)
            if staging is None:
                return
            shared = self._files.clone(staging.fd, fd)
            now = Identity.of(os.fstat(fd))
            unwritten = now._replace(ctime_ns=identity.ctime_ns) == identity
            # It may have been removed since, which sets its ctime: then only its content proves what it is.
            if shared and unwritten and ((note.proved and now == identity) or _is(staging.fd, note.manifest)):
                cache.enter(staging, note.manifest, "")
            else:
                self._files.unlink(cache.fd, staging.name)
        except (OSError, FastcopyError):
            if staging:
                _drop(self._files, cache, staging.name)
        finally:
            os.close(fd)
            if staging:
                staging.close()
            cache.close()


class Shelved:
    """A disk's file that was moved into the cache under a staging name, and is to become an image."""

    def __init__(self, files: Files, cache: Cache, staging: Staging, mtime_ns: int, note: Note) -> None:
        self._files, self._cache, self._staging, self._mtime_ns, self._note = files, cache, staging, mtime_ns, note

    def finish(self) -> None:
        """Make it an image.  Nobody waits."""
        cache, staging, note = self._cache, self._staging, self._note
        try:
            # It was moved, not written, if its time is the same.  A write from here on, also while it is read, changes
            # the time that it has as an image.
            untouched = os.fstat(staging.fd).st_mtime_ns == self._mtime_ns
            self._files.set_mtime(staging.fd, ENTRY_MTIME)
            proved = untouched and (note.proved or _is(staging.fd, note.manifest))
            if proved and not fit(self._files, cache, note.options, 0, 0):
                cache.enter(staging, note.manifest, "", dated=True)
            else:
                self._files.unlink(cache.fd, staging.name)
        except (OSError, FastcopyError):
            _drop(self._files, cache, staging.name)
        finally:
            staging.close()
            cache.close()


def shelve(files: Files, directory: VmDirectory) -> List[Shelved]:
    """Move the disks that are about to be removed, and of which there is a note, into the cache.  The guard is held."""
    found: List[Shelved] = []
    try:
        for shelved in _shelved(files, directory):
            found.append(shelved)
    except (OSError, FastcopyError):
        pass
    return found


def _shelved(files: Files, directory: VmDirectory) -> Iterator[Shelved]:
    notes = f"{root(directory.base_fd, directory.base)}/.fastcopy/cache"
    names = [directory.name] if directory.name else list_names(directory.fd)
    for name in filter(_DISK.fullmatch, names):
        try:
            active = find_active(directory.fd, name, name)
        except (OSError, FastcopyError):
            continue
        try:
            status = has(active.directory, active.name)
            # A look by path, which is cheap: most disks that are removed were never brought back.
            if status is not None and os.path.exists(f"{notes}/{_note_name(Identity.of(status))}"):
                moved = _move(files, directory, active.directory, active.name)
                if moved:
                    yield moved
        finally:
            os.close(active.directory)


def _move(files: Files, directory: VmDirectory, place: int, name: str) -> Optional[Shelved]:
    cache, _ = Cache.open(files, directory.base_fd, directory.base)
    if cache is None:
        return None
    fd = -1
    try:
        fd = os.open(name, _READ, dir_fd=place)
        status = os.fstat(fd)
        identity = Identity.of(status)
        note = _take_note(files, cache, identity)
        ours = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()
        staging = cache.staging_for(identity.key(""))
        if note and ours and not _there(cache, staging, f"{note.manifest.id}.img") and lock(fd):
            files.move(place, name, cache.fd, staging)
            kept = Staging(files, cache.fd, staging, fd, status.st_size, False)
            return Shelved(files, cache, kept, status.st_mtime_ns, note)
    except (OSError, FastcopyError):
        pass
    close(fd if fd >= 0 else None)
    cache.close()
    return None


def _there(cache: Cache, *names: str) -> bool:
    return any(has(cache.fd, name) for name in names)


# --- notes -------------------------------------------------------------------------------------------------------


def _note_name(identity: Identity) -> str:
    return f"{identity.key('')}{KEPT}"


def _write_note(files: Files, cache: Cache, identity: Identity, note: Note) -> None:
    """Straight to its name, and not durable: it is of use within minutes, and one that is torn is seen to be so."""
    name = _note_name(identity)
    files.unlink(cache.fd, name)
    fd = files.create(cache.fd, name)
    try:
        files.write(fd, note.encode(), 0)
    finally:
        os.close(fd)


def _take_note(files: Files, cache: Cache, identity: Identity) -> Optional[Note]:
    """Read the note of a file, and remove it: it serves once."""
    name = _note_name(identity)
    try:
        with open(os.open(name, _READ, dir_fd=cache.fd), "rb") as file:
            raw = file.read(min(os.fstat(file.fileno()).st_size, _MAX_NOTE))
        files.unlink(cache.fd, name)
        note = Note.decode(raw)
    except (OSError, ValueError, FastcopyError):
        return None
    return note if note.manifest.size == identity.size else None


def _is(fd: int, manifest: Manifest) -> bool:
    """Whether a file has the content that the manifest says; all of it is read."""
    chunk = manifest.chunk_size
    if os.fstat(fd).st_size != manifest.size:
        return False
    for first in range(0, manifest.count, PAGE_CHUNKS):
        count = min(PAGE_CHUNKS, manifest.count - first)
        wanted = manifest.digests[first * DIGEST_SIZE : (first + count) * DIGEST_SIZE]
        if hash_page(fd, manifest.size, chunk, first, count).digests != wanted:
            return False
    return True


def _drop(files: Files, cache: Cache, name: str) -> None:
    try:
        files.unlink(cache.fd, name)
    except OSError:
        pass  # swept when room is needed
