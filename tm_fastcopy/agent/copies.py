"""Copies: the snapshots of a disk that is one file, as the stock drivers keep them: `disk.N.snap/<id>`, whole files.

Each stands for itself, so they can be removed in any order.  A copy is a reflink where blocks can be shared; elsewhere
it is read again, both ends, before it gets its name.  (What a guest writes into a raw disk is nobody's business here,
and neither is the format of a flat qcow2 disk, which the stock `ssh` driver leaves.)
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from typing import Callable, ContextManager, Iterator, Tuple

from ..core.chain import MAX_FILES, list_files, open_member
from ..core.errors import FastcopyError, Refused, SourceChanged, Superseded
from ..core.files import Files, lock, room
from ..core.hashing import hash_page
from ..core.identity import Identity
from ..core.manifest import Manifest, chunk_count, chunk_size_for
from ..core.messages import PAGE_CHUNKS
from ..core.paths import has, is_named, list_names, open_directory
from ..core.publish import Staged, is_staging, publish, staging_name
from ..core.staging import Staging, copy_sparse, need_room
from ..core.tree import tree_name
from .directory import VmDirectory

_PIECE = 64 * 1024 * 1024  # bytes copied between two looks whether the front-end is still there


class Copies:
    """The snapshots of a flat disk, in the VM directory whose guard is held."""

    def __init__(self, files: Files, directory: VmDirectory, share: bool, alive: Callable[[], bool]) -> None:
        self._files, self._directory, self._share, self._alive = files, directory, share, alive
        self._last_look = functools.partial(directory.publishable, alive)
        self._tree_name = tree_name(directory.name)
        self._shown = f"{directory.path}/{self._tree_name}"

    def create(self, snapshot: int, source: int) -> str:
        """Copy the disk, open as *source*."""
        tree = self._open_tree()
        try:
            self._check_number(tree, snapshot)
            return self.place(tree, str(snapshot), f"{self._shown}/{snapshot}", source)
        finally:
            os.close(tree)

    def create_live(
        self, snapshot: int, source: int, still: Callable[[], ContextManager[None]], copy: Callable[[str, int], None]
    ) -> str:
        """As `create`, while the VM runs: it stands still in a `with still()`.

        *copy* makes a copy at a path, open as a descriptor, where blocks cannot be shared.
        """
        tree = self._open_tree()
        try:
            self._check_number(tree, snapshot)
            path, how = f"{self._shown}/{snapshot}", "a reflink"
            with staged(self._files, tree, str(snapshot), path, os.fstat(source).st_size) as staging:
                if not (self._share and self._clone_still(staging.fd, source, still)):
                    self._files.truncate(staging.fd, 0)
                    needed = os.fstat(source).st_blocks * 512
                    need_room(path, needed, room(self._files, tree, needed))
                    copy(f"{self._shown}/{staging.name}", staging.fd)
                    how = "a copy"
                mode = (stat.S_IMODE(os.fstat(source).st_mode) & 0o777) | 0o600
                publish(
                    self._files, Staged(tree, staging.name, staging.fd, ""), str(snapshot), path, mode, self._last_look
                )
            return how
        finally:
            os.close(tree)

    def fill(self, target: int, source: int, path: str) -> None:
        """Copy the open file *source* to the empty one *target*."""
        size = os.fstat(source).st_size
        self._files.truncate(target, size)
        for at in range(0, size, _PIECE):
            _stay(self._alive, path)
            copy_sparse(self._files, target, source, at, min(_PIECE, size - at), at, True, share=False)

    def _clone_still(self, target: int, source: int, still: Callable[[], ContextManager[None]]) -> bool:
        """Reflink a disk that is in use.  Done twice: what the first has written out, the guest need not wait for."""
        if not self._files.clone(target, source):
            return False
        with still():
            return self._files.clone(target, source)

    def revert(self, snapshot: int, sparse: bool, mode: int) -> str:
        """Have a copy of the snapshot take the disk's name, in one step."""
        tree = open_directory(self._directory.fd, self._tree_name, self._shown)
        try:
            source = open_member(tree, str(snapshot), self._shown)
        finally:
            os.close(tree)
        try:
            directory = self._directory
            return self.place(directory.fd, directory.name, directory.disk, source, sparse, mode)
        finally:
            os.close(source)

    def delete(self, snapshot: int) -> str:
        """Remove a snapshot: nothing rests on it."""
        if has(self._directory.fd, self._tree_name) is None:
            return "there was no snapshot"
        tree = open_directory(self._directory.fd, self._tree_name, self._shown)
        try:
            status = has(tree, str(snapshot))
            if status is None:
                return "it was gone already"
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{self._shown}/{snapshot} is not a regular file, so it is not removed")
            self._files.unlink(tree, str(snapshot))
            self._files.sync_directory(tree)
        finally:
            os.close(tree)
        return "removed"

    def _open_tree(self) -> int:
        if self._files.make_directory(self._directory.fd, self._tree_name, 0o755):
            self._files.sync_directory(self._directory.fd)
        return open_directory(self._directory.fd, self._tree_name, self._shown)

    def _check_number(self, tree: int, snapshot: int) -> None:
        if has(tree, str(snapshot)) is None and len(list_files(tree, self._shown)) >= MAX_FILES:
            raise Refused(f"{self._directory.disk} has {MAX_FILES} snapshots, and more are not handled: delete some")

    def place(self, place: int, name: str, path: str, source: int, sparse: bool = True, mode: int = 0) -> str:
        """Copy the open file *source* to *name* in the open directory *place*; *mode* 0 is that of the source."""
        mode = mode or stat.S_IMODE(os.fstat(source).st_mode)
        with staged(self._files, place, name, path, os.fstat(source).st_size) as staging:
            content, how = copy_whole(self._files, staging, source, self._share, path, self._alive)
            if not sparse:
                self._files.fill(staging.fd, staging.size)
            made = Staged(place, staging.name, staging.fd, content)
            publish(self._files, made, name, path, (mode & 0o777) | 0o600, self._last_look)
        return how


@contextlib.contextmanager
def staged(files: Files, place: int, name: str, path: str, size: int) -> Iterator[Staging]:
    """A staging file for *name*.  What is not published is removed, because a half of it is never resumed."""
    staging = Staging.open(files, place, staging_name(name), size)
    if staging is None:
        raise FastcopyError(f"an action that was cut off is still at work on {path}: repeat this one in a minute")
    try:
        yield staging
    finally:
        try:
            if is_named(place, staging.name, staging.fd):
                files.unlink(place, staging.name)
        finally:
            staging.close()


def clear_staging(files: Files, tree: int) -> None:
    """Remove what actions that were cut off have left in a tree, unless a program of theirs still writes it."""
    for name in list_names(tree):
        if not is_staging(name):
            continue
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=tree)
        except OSError:
            continue
        try:
            if lock(fd):
                files.unlink(tree, name)
        finally:
            os.close(fd)


def copy_whole(
    files: Files, staging: Staging, source: int, share: bool, path: str, alive: Callable[[], bool]
) -> Tuple[str, str]:
    """Make the staging file a copy of *source*; return its manifest's id ("": it was not read) and how it was made.

    `SourceChanged` if the source was written meanwhile; `NoSpace` before anything is copied.
    """
    before = Identity.of(os.fstat(source))
    content, how = "", "a reflink"
    if not (share and files.clone(staging.fd, source)):
        status = os.fstat(source)
        needed = min(status.st_blocks * 512, status.st_size)
        need_room(path, needed, room(files, staging.directory, needed) + os.fstat(staging.fd).st_blocks * 512)
        for at in range(0, staging.size, _PIECE):
            _stay(alive, path)
            length = min(_PIECE, staging.size - at)
            copy_sparse(files, staging.fd, source, at, length, at, staging.fresh, share=False)
        content, how = _verify(staging, source, path, alive), "a copy"
    if Identity.of(os.fstat(source)) != before:
        raise SourceChanged(f"what {path} is a copy of was written meanwhile; repeat when its VM is off")
    return content, how


def _verify(staging: Staging, source: int, path: str, alive: Callable[[], bool]) -> str:
    """Read both and compare them; return the id of their manifest."""
    chunk = chunk_size_for(staging.size)
    digests = []
    for first in range(0, chunk_count(staging.size, chunk), PAGE_CHUNKS):
        _stay(alive, path)
        page = (staging.size, chunk, first, min(PAGE_CHUNKS, chunk_count(staging.size, chunk) - first))
        digests.append(hash_page(staging.fd, *page).digests)
        if digests[-1] != hash_page(source, *page).digests:
            raise FastcopyError(f"{path} is not what it was copied from: look whether its file system is sound")
    return Manifest(staging.size, chunk, b"".join(digests)).id


def _stay(alive: Callable[[], bool], path: str) -> None:
    if not alive():
        raise Superseded(f"the front-end went away while {path} was made")
