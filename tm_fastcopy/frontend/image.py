"""Images: opening a file in a datastore, its identity, and the store of manifests that belong to identities."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import Iterable, List, Optional, Tuple

from ..core.chain import check_whole, list_members, open_member
from ..core.errors import FastcopyError, Refused, SourceChanged, classify
from ..core.extents import data_runs
from ..core.files import Files
from ..core.hashing import Page, hash_page
from ..core.identity import Identity
from ..core.manifest import DIGEST_SIZE, MAX_CHUNKS, Manifest
from ..core.messages import PAGE_CHUNKS
from ..core.paths import has, open_directory, open_parent, relative_to_any
from ..core.tree import Active, check_alone, find_active, settle, tree_name

_HASH_PAGE = 128  # chunks hashed in one go, 32 MiB: small enough that lanes begin at once


class Image:
    """An open file of a datastore on this machine."""

    def __init__(self, path: str, fd: int, base: str = "", rest: str = "") -> None:
        self.path, self.fd = path, fd
        self.base, self.rest = base, rest
        """The datastore that it lies in, and its path below that."""
        status = os.fstat(fd)
        self.identity = Identity.of(status)
        self.mode = stat.S_IMODE(status.st_mode)
        self.data = min(status.st_blocks * 512, status.st_size)
        self.settled = self.identity.settled(time.time_ns())

    @classmethod
    def open(cls, path: str, bases: Iterable[str], format: str = "raw") -> Image:
        """Open an image for reading; `Refused` or `FastcopyError`, in one sentence, if that cannot be.

        A qcow2 image may be a link into its own tree (`core/tree.py`), as the stock `local` driver leaves it.
        """
        base, rest = relative_to_any(path, bases)
        try:
            place = open_place(base, rest, path, format)
            try:
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(place.name, flags, dir_fd=place.directory)
            finally:
                os.close(place.directory)
        except FileNotFoundError as error:
            raise Refused(f"there is no image {path}") from error
        except PermissionError as error:
            raise Refused(f"the image {path} cannot be read by this user; make it readable for oneadmin") from error
        except OSError as error:
            raise classify(error, f"opening the image {path}") from error
        kind = os.fstat(fd).st_mode
        if not stat.S_ISREG(kind):
            os.close(fd)
            raise Refused(f"{path} is {'a directory' if stat.S_ISDIR(kind) else 'not a regular file'}, not an image")
        return cls(path, fd, base, rest)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity.size

    def check(self) -> None:
        """Raise `SourceChanged` if the file was written since it was opened."""
        if Identity.of(os.fstat(self.fd)) != self.identity:
            raise SourceChanged(f"{self.path} was written while it was copied; repeat when nobody writes to it")

    def pages(self, chunk_size: int, known: Optional[Manifest]) -> List[Tuple[int, int]]:
        """(first chunk, count) of the pages to go through.  A known image needs no reading, so its pages are large."""
        most = PAGE_CHUNKS if known else _HASH_PAGE
        count = -(-self.size // chunk_size)
        pages: List[Tuple[int, int]] = []
        first = 0
        while first < count:
            length = min(most, count - first)
            if not known:
                ahead = next(data_runs(self.fd, first * chunk_size, self.size), (self.size, 0))[0] // chunk_size
                length = min(max(length, ahead - first), PAGE_CHUNKS, count - first)  # a hole costs nothing
            pages.append((first, length))
            first += length
        return pages

    def page(self, chunk_size: int, first: int, count: int, known: Optional[Manifest]) -> Page:
        """One page: from the manifest if it is known, otherwise read and digested.  Blocking."""
        if known is None:
            return hash_page(self.fd, self.size, chunk_size, first, count)
        runs = list(data_runs(self.fd, first * chunk_size, min(self.size, (first + count) * chunk_size)))
        return Page(first, known.digests[first * DIGEST_SIZE : (first + count) * DIGEST_SIZE], runs)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def open_place(base: str, rest: str, path: str, format: str) -> Active:
    """Where the file of the image *path* lies; the caller closes the directory.

    `Refused` if it is a qcow2 image with snapshots: a copy of its active file alone would lose them.
    """
    parent, final = open_parent(base, rest)
    if format != "qcow2":
        return Active(parent, final, False)
    try:
        try:
            active = find_active(parent, final, path)
        except FileNotFoundError as error:
            raise Refused(f"there is no image {path}: it is a link that leads nowhere") from error
        try:
            check_alone(parent, final, active, path)
        except BaseException:
            os.close(active.directory)
            raise
        return active
    finally:
        os.close(parent)


class ImageTree:
    """The files of an image that consists of several: *names* in the directory beside it, open as *tree*.

    *active* is the one that is the image ("": the image lies beside them).
    """

    def __init__(self, path: str, base: str, rest: str, tree: int, active: str) -> None:
        self.path, self._base, self._rest, self.tree, self.active = path, base, rest, tree, active
        self.shown = tree_name(path)
        self.names = list_members(tree, self.shown)

    @classmethod
    def find(cls, path: str, bases: Iterable[str], format: str) -> Optional[ImageTree]:
        """The tree of an image; None if the image is one file, also if that lies in a tree by itself.

        `Refused` if a file in it is not what it must be.
        """
        base, rest = relative_to_any(path, bases)
        try:
            parent, final = open_parent(base, rest)
        except FileNotFoundError:
            return None
        try:
            status = has(parent, tree_name(final))
            if status is None or not stat.S_ISDIR(status.st_mode):
                return None
            active = _active_in(parent, final, path) if format == "qcow2" else ""
            if active is None:
                return None
            tree = open_directory(parent, tree_name(final), tree_name(path))
        finally:
            os.close(parent)
        try:
            found = cls(path, base, rest, tree, active)
            if found.names and found.names != [active]:
                if active:
                    check_whole(tree, active, found.shown)
                return found
        except BaseException:
            os.close(tree)
            raise
        os.close(tree)
        return None

    def open(self, name: str) -> Image:
        """Open one of its files for reading."""
        fd = open_member(self.tree, name, self.shown)
        return Image(f"{self.shown}/{name}", fd, self._base, f"{tree_name(self._rest)}/{name}")

    def close(self) -> None:
        """Close the directory."""
        os.close(self.tree)


def _active_in(parent: int, final: str, path: str) -> Optional[str]:
    """The name of the active file, if it lies in the tree."""
    settle(Files(), parent, final)
    try:
        active = find_active(parent, final, path)
    except FileNotFoundError:
        return None
    os.close(active.directory)
    return active.name if active.in_tree else None


class ManifestStore:
    """Manifests by the identity of the file that they describe.  A help only: nothing in here may fail an action."""

    _MAX = MAX_CHUNKS * DIGEST_SIZE + 4096
    _KEEP = 1000  # manifests; about 100 MB for images of 1 GiB

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory, self._files = directory, files

    def get(self, image: Image) -> Optional[Manifest]:
        """The manifest of an unchanged image, or None."""
        try:
            with open(self._directory / image.identity.key(""), "rb") as file:
                raw = file.read(min(os.fstat(file.fileno()).st_size, self._MAX))  # a buffer is made for all it asks
            os.utime(file.name)
            manifest = Manifest.decode(raw)
        except (OSError, FastcopyError):
            return None
        return manifest if manifest.size == image.size else None

    def forget(self, image: Image) -> None:
        """Drop the manifest of an image: it turned out to be wrong."""
        with contextlib.suppress(OSError):
            (self._directory / image.identity.key("")).unlink()

    def put(self, image: Image, manifest: Manifest) -> None:
        """Remember the manifest of an image that was settled before it was read and has not changed since."""
        if image.settled:
            self.put_written(image.identity, manifest)

    def put_written(self, identity: Identity, manifest: Manifest) -> None:
        """Remember the manifest of a file that we have written ourselves and have given its times (`backdate`)."""
        key = identity.key("")
        scratch = f".{key}.{os.getpid()}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fd = self._files.create(directory, scratch)
            try:
                self._files.write(fd, manifest.encode(), 0)
                self._files.sync(fd)
            finally:
                os.close(fd)
            self._files.rename(directory, scratch, key)
            self._trim()
        except OSError:
            self._files.unlink(directory, scratch)
        finally:
            os.close(directory)

    def _trim(self) -> None:
        found = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[self._KEEP :]:
            path.unlink()
