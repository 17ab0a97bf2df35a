"""The cache: images that a host keeps, one cache per file system that holds system datastores.

    <root>/.fastcopy/cache/<manifest id>.img        the image, mode 0440
                           <manifest id>.manifest   its manifest; written last, an image without it does not count
                           <key>.source             the manifest id of the source that has this key
                           <manifest id>.pin        keeps the image from being evicted
                           <manifest id>.bad        an image in which something was wrong: quarantined, not used
                           <identity>.kept          what is in a disk, which becomes an image when it is removed
                           .<key>.img.fastcopy.part an image in the making, locked by who makes it

It is optional.  `Cache.open` answers None where none can be had, and no failure in here may fail an action.  What was
wrong in it is kept in `Cache.notes`, for the log line of the action.
"""

from __future__ import annotations

import os
import re
import struct
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from ..core.errors import FastcopyError, Refused
from ..core.files import Files, can_share, close
from ..core.manifest import DIGEST_SIZE, MAX_CHUNKS, ZERO_DIGEST, Manifest
from ..core.paths import has, list_names, open_directory
from ..core.plan import Place
from ..core.publish import Staged, publish, staging_name
from ..core.staging import Staging, discard

BAD, PIN, KEPT = ".bad", ".pin", ".kept"
PROBE = ".probe."  # files that try whether blocks can be shared; an agent that is killed meanwhile leaves them

# Every image gets this time of modification when it gets its name: one that was written to since has another, and no
# longer counts.  (What rots without a write is for the digests to find.)
ENTRY_MTIME = 1_000_000_000
ENTRY_MODE = 0o440

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_PUBLISHING = 3.0  # seconds between an image's name and its manifest: two fsyncs of small files on a busy disk

_ID = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{32}")
_MAX_MANIFEST = MAX_CHUNKS * DIGEST_SIZE + 4096
# Chunks whose places are kept in memory, at about 200 bytes each: 60 MB, for 75 GiB of data at the default chunk.
_MAX_SEEDS = 300_000
_DIGEST = struct.Struct(f"{DIGEST_SIZE}s")
_MAX_NOTES = 4  # of what was wrong in one action: the log has one line


class Entry(NamedTuple):
    """A whole image in the cache: its manifest id, allocated bytes, when it was last used (seconds, epoch), and whether
    it is pinned.
    """

    id: str
    allocated: int
    used: float
    pinned: bool = False


class Cache:
    """The cache of one file system.  `reflink` says whether its files can be cloned."""

    def __init__(self, files: Files, fd: int, path: str) -> None:
        self.files, self.fd, self.path = files, fd, path
        self.notes: List[str] = []
        """What was wrong, in a few words each."""
        self._condemned: Set[str] = set()
        self.reflink = can_share(files, fd, f"{PROBE}{os.getpid()}")

    @classmethod
    def open(cls, files: Files, base_fd: int, base: str) -> tuple[Optional[Cache], str]:
        """Open (or make) the cache that serves the datastore *base*.  (None, reason) where there can be none."""
        top = root(base_fd, base)
        fds: List[int] = []
        try:
            fds.append(os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            if os.fstat(fds[0]).st_dev != os.fstat(base_fd).st_dev:
                return None, "the datastore is not on one file system"
            path = top
            for name in (".fastcopy", "cache"):
                path = f"{path}/{name}"
                files.make_directory(fds[-1], name, 0o700)
                fds.append(open_directory(fds[-1], name, path))
            if os.fstat(fds[-1]).st_dev != os.fstat(base_fd).st_dev or not os.access(".", os.W_OK, dir_fd=fds[-1]):
                return None, f"{path} cannot be written"
            return cls(files, fds.pop(), path), ""
        except (OSError, FastcopyError) as error:
            return None, str(error)
        finally:
            for fd in fds:
                os.close(fd)

    def note(self, text: str) -> None:
        """Remember for the log that something was wrong."""
        if text not in self.notes and len(self.notes) < _MAX_NOTES:
            self.notes.append(text)

    def image(self, manifest_id: str) -> Optional[int]:
        """A descriptor of an image, for reading; None if it is not here, or not whole.  Marks it as used."""
        found = self.open_image(manifest_id)
        return found[0] if found else None

    def open_image(self, manifest_id: str) -> Optional[Tuple[int, Manifest]]:
        """As `image`, with the manifest: it has five megabytes for an image of 40 GiB, and is read once."""
        manifest = self.manifest(manifest_id)
        if manifest is None or manifest_id in self._condemned:
            return None
        fd: Optional[int] = None
        why = "is not what it was stored as"
        try:
            fd = os.open(f"{manifest_id}.img", _READ, dir_fd=self.fd)
            status = os.fstat(fd)
            if (status.st_size, int(status.st_mtime)) == (manifest.size, ENTRY_MTIME):
                self._touch(manifest_id)
                return fd, manifest
            why = "was written to"
        except FileNotFoundError:
            return None  # it is just being published
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        close(fd)
        self.quarantine(manifest_id, why)
        return None

    def quarantine(self, manifest_id: str, why: str) -> None:
        """Stop using an image for good: something in it is wrong.  It is fetched again when it is wanted again.

        The manifest goes first, so that it stops counting.  Where nothing can be written, it is only not used by us.
        """
        self.note(f"image {manifest_id[:8]} {why}")
        self._condemned.add(manifest_id)
        try:
            self.files.unlink(self.fd, f"{manifest_id}.manifest")
            if has(self.fd, f"{manifest_id}.img"):
                self.files.rename(self.fd, f"{manifest_id}.img", f"{manifest_id}{BAD}")
        except OSError:
            pass

    def quarantined(self) -> List[str]:
        """Ids of the images that are in quarantine."""
        stems = (name[: -len(BAD)] for name in list_names(self.fd) if name.endswith(BAD))
        return [stem for stem in stems if _ID.fullmatch(stem)]

    def pin(self, manifest_id: str, pinned: bool) -> None:
        """Keep an image from being evicted, or no longer; `Refused` if there is no such image."""
        if not _ID.fullmatch(manifest_id) or (pinned and has(self.fd, f"{manifest_id}.manifest") is None):
            raise Refused(f"there is no image {manifest_id[:64]} in {self.path}")
        if not pinned:
            self.files.unlink(self.fd, f"{manifest_id}{PIN}")
        elif has(self.fd, f"{manifest_id}{PIN}") is None:
            os.close(self.files.create(self.fd, f"{manifest_id}{PIN}"))
        self.files.sync_directory(self.fd)

    def pinned(self, manifest_id: str) -> bool:
        """Whether an image is kept from being evicted."""
        return has(self.fd, f"{manifest_id}{PIN}") is not None

    def allocated(self) -> int:
        """Bytes that all files of the cache occupy.  What entries share counts for each of them."""
        found = (has(self.fd, name) for name in list_names(self.fd))
        return sum(status.st_blocks * 512 for status in found if status)

    def _touch(self, manifest_id: str) -> None:
        try:
            os.utime(f"{manifest_id}.manifest", dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            pass  # it only makes the entry look older than it is

    def manifest(self, manifest_id: str) -> Optional[Manifest]:
        """The manifest of an entry, or None."""
        if not _ID.fullmatch(manifest_id):
            return None
        raw = self._read(f"{manifest_id}.manifest", _MAX_MANIFEST)
        if raw is None:
            return None
        try:
            manifest = Manifest.decode(raw)
            if manifest.id == manifest_id:
                return manifest
        except FastcopyError:
            pass
        self.note(f"the manifest of image {manifest_id[:8]} is damaged")
        return None

    def ready(self, key: str) -> str:
        """The manifest id of the source with this key if the image is here; "" otherwise."""
        if not _KEY.fullmatch(key):
            return ""
        raw = self._read(f"{key}.source", 256)
        if raw is None:
            return ""
        found = raw.decode("ascii", "replace").strip()
        if not _ID.fullmatch(found):
            self.note("an entry of its index is damaged")
            return ""
        image = self.image(found)
        close(image)
        return "" if image is None else found

    def _read(self, name: str, limit: int) -> Optional[bytes]:
        try:
            fd = os.open(name, _READ, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.note(f"{name[:8]}{os.path.splitext(name)[1]} cannot be read ({error.strerror})")
            return None
        try:
            size = os.fstat(fd).st_size
            return os.read(fd, size) if size <= limit else b""  # which is damaged, whatever it should be
        except OSError as error:
            self.note(f"{name[:8]}{os.path.splitext(name)[1]} cannot be read ({error.strerror})")
            return None
        finally:
            os.close(fd)

    def staging_for(self, key: str) -> str:
        """Name of the staging file of the image whose source has this key."""
        return staging_name(f"{key}.img")

    def discard(self, key: str) -> bool:
        """Remove what is staged of that image; False if somebody is still at it."""
        return discard(self.files, self.fd, self.staging_for(key))

    def enter(self, staging: Staging, manifest: Manifest, key: str, dated: bool = False) -> None:
        """Give a staged image its name and its manifest; *key* names its source, "" if that cannot be named.

        *dated*: it has an image's time already, and any other that it may have got since is to tell of a write.
        """
        name = f"{manifest.id}.img"
        staged = Staged(self.fd, staging.name, staging.fd, manifest.id)
        if not dated:
            self.files.set_mtime(staging.fd, ENTRY_MTIME)
        publish(self.files, staged, name, f"{self.path}/{name}", ENTRY_MODE)
        self.add_manifest(manifest, key)

    def add_manifest(self, manifest: Manifest, key: str) -> None:
        """Make an image that has its final name count: write its manifest, and remember its source."""
        contents = {f"{manifest.id}.manifest": manifest.encode()}
        if key:
            contents[f"{key}.source"] = manifest.id.encode() + b"\n"
        self._put(contents)
        self.files.sync_directory(self.fd)

    def _put(self, contents: Dict[str, bytes]) -> None:
        """Write small files, and give them their names, in this order, when all are written.

        So there is no moment between two of them at which `publishing` would find neither.
        """
        staged = {staging_name(f"{name}.{os.getpid()}"): name for name in contents}
        try:
            for staging, name in staged.items():
                self._write(staging, contents[name])
            for staging, name in staged.items():
                self.files.rename(self.fd, staging, name)
        except BaseException:
            for staging in staged:
                self.files.unlink(self.fd, staging)
            raise

    def _write(self, staging: str, content: bytes) -> None:
        self.files.unlink(self.fd, staging)
        fd = self.files.create(self.fd, staging, 0o600)
        try:
            self.files.write(fd, content, 0)
            self.files.sync(fd)
        finally:
            os.close(fd)

    def entries(self) -> List[Entry]:
        """All whole images, the one that was used last first."""
        found = []
        for name in list_names(self.fd):
            stem, _, suffix = name.partition(".")
            image, mark = has(self.fd, f"{stem}.img"), has(self.fd, f"{stem}.manifest")
            if suffix == "manifest" and _ID.fullmatch(stem) and image and mark:
                found.append(Entry(stem, image.st_blocks * 512, mark.st_mtime, self.pinned(stem)))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def orphans(self) -> List[str]:
        """Names of images without a manifest: just being published, or left by an agent that was killed there."""
        names = set(list_names(self.fd))
        stems = (name[:-4] for name in names if name.endswith(".img"))
        return [f"{stem}.img" for stem in stems if _ID.fullmatch(stem) and f"{stem}.manifest" not in names]

    def publishing(self, key: str, now: float) -> bool:
        """Whether an image has just got its name, and is about to get its manifest or this source key.

        To be asked before `ready`, which then knows of what got its names between our looks.
        """
        names = self.orphans()  # first: the key is staged by the time that an image is none any more
        names += [name for name in list_names(self.fd) if name.startswith(f".{key}.source.")]
        found = (has(self.fd, name) for name in names)
        return any(status is not None and abs(now - status.st_ctime) < _PUBLISHING for status in found)

    def remove(self, manifest_id: str) -> None:
        """Take an image out: the manifest first, so that it stops counting before it is gone.  Errors are swallowed."""
        try:
            self.files.unlink(self.fd, f"{manifest_id}.manifest")
            self.files.unlink(self.fd, f"{manifest_id}.img")
        except OSError:
            pass  # a cache that cannot be written

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.fd)


class CacheSeeds:
    """Every chunk of every image in the cache, as a seed for others of the same chunk size."""

    def __init__(self, cache: Cache, chunk_size: int) -> None:
        self._cache = cache
        self._names: List[str] = []
        self._places: Dict[bytes, int] = {}
        self._open: Dict[str, int] = {}
        tables: List[bytes] = []
        total = 0
        for manifest in self._manifests():
            if manifest.chunk_size != chunk_size:
                continue
            total += manifest.count - manifest.digests.count(ZERO_DIGEST)
            if total > _MAX_SEEDS:
                break
            self._names.append(manifest.id)
            tables.append(manifest.digests)
        # All in C, the most recently used image last so that it wins: measured, 0.13 s for 50 of 4 GiB.
        for number in reversed(range(len(tables))):
            digests = [digest for digest, in _DIGEST.iter_unpack(tables[number])]
            self._places.update(zip(digests, range(number << 32, (number << 32) + len(digests))))
        self._places.pop(ZERO_DIGEST, None)

    def _manifests(self) -> Iterator[Manifest]:
        for entry in self._cache.entries():
            manifest = self._cache.manifest(entry.id)
            if manifest is not None:
                yield manifest

    def find(self, digest: bytes) -> Optional[Place]:
        """Where a chunk lies."""
        place = self._places.get(digest)
        return None if place is None else Place(self._names[place >> 32], place & 0xFFFFFFFF)

    def open(self, source: str) -> int:
        """The image of an entry."""
        if source not in self._open:
            fd = self._cache.image(source)
            if fd is None:
                raise KeyError(source)
            self._open[source] = fd
        return self._open[source]

    def damaged(self, source: str) -> None:
        """A chunk of an entry is not what its manifest says.  (Others of it are verified too, and may still serve.)"""
        self._cache.quarantine(source, "has a damaged chunk")

    def close(self) -> None:
        """Close the images."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def root(base_fd: int, base: str) -> str:
    """The directory that the cache of this file system lies in: above the datastore, or the datastore if it is a
    mount.
    """
    real = os.path.realpath(base)
    above = os.path.dirname(real)
    try:
        if os.stat(above).st_dev == os.fstat(base_fd).st_dev:
            return above
    except OSError:
        pass
    return real
