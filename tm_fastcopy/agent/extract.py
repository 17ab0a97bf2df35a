"""Extract: a disk, or one of its snapshots, opened as one file that needs no other.

A file that stands for itself is read where it is.  One that rests on others is made one by qemu-img, in a file
without a name, which is gone when it is closed, whatever happens.
"""

from __future__ import annotations

import os
from typing import Callable, Dict, List

from ..core import qcow2
from ..core.chain import Chain, open_member, read_chain
from ..core.errors import Refused, SourceChanged
from ..core.files import Files, room
from ..core.identity import Identity
from ..core.image_messages import OpenExtract
from ..core.paths import has, open_directory
from ..core.staging import need_room
from ..core.tree import Active, find_active, settle, tree_name
from . import qemu_img
from .directory import VmDirectory
from .disk import RAW, check_format, open_file


def open_extract(files: Files, directory: VmDirectory, message: OpenExtract, alive: Callable[[], bool]) -> int:
    """Open what was asked for, for reading; `Refused` if it is not there, or names files that it must not."""
    disk, snapshot = directory.disk, message.snapshot
    check_format(message.format)
    settle(files, directory.fd, directory.name)
    try:
        active = find_active(directory.fd, directory.name, disk)
    except FileNotFoundError as error:
        raise Refused(f"there is no {disk} on this host") from error
    try:
        if active.in_tree and message.format == RAW:
            raise Refused(f"{disk} is a link into a tree, though oned says that it is a raw disk")
        if active.in_tree:
            return _Tree(files, directory, active).open(snapshot, alive)
    finally:
        os.close(active.directory)
    fd = _open_copy(directory, snapshot) if snapshot else open_file(directory.fd, directory.name, disk)
    return fd if message.format == RAW else _checked(fd, disk)


def _open_copy(directory: VmDirectory, snapshot: str) -> int:
    """Open the snapshot of a disk that is one file."""
    shown = f"{directory.path}/{tree_name(directory.name)}"
    if has(directory.fd, tree_name(directory.name)) is None:
        raise Refused(f"{directory.disk} has no snapshot {snapshot}")
    tree = open_directory(directory.fd, tree_name(directory.name), shown)
    try:
        if has(tree, snapshot) is None:
            raise Refused(f"{directory.disk} has no snapshot {snapshot}")
        return open_member(tree, snapshot, shown)
    finally:
        os.close(tree)


def _checked(fd: int, shown: str) -> int:
    """Return *fd*, if it is a qcow2 image that stands for itself."""
    try:
        qcow2.check_stand_alone(qcow2.read(fd, shown), shown)
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Tree:
    """The tree of a disk, all of whose files were looked at."""

    def __init__(self, files: Files, directory: VmDirectory, active: Active) -> None:
        self._files, self._directory, self._active = files, directory, active
        self._tree, self._shown = active.directory, f"{directory.path}/{tree_name(directory.name)}"
        self._chain: Chain = read_chain(self._tree, self._shown)

    def open(self, snapshot: str, alive: Callable[[], bool]) -> int:
        name = self._name(snapshot)
        header = self._chain.headers[name]
        if header.backing is None:
            return _checked(open_member(self._tree, name, self._shown), f"{self._shown}/{name}")
        return self._made_one(name, alive)

    def _name(self, snapshot: str) -> str:
        name = self._chain.file_of(int(snapshot)) if snapshot else self._active.name
        if name not in self._chain.headers:
            what = f"{self._directory.disk} has no snapshot {snapshot}"
            raise Refused(what if snapshot else f"there is no {self._directory.disk} on this host")
        if snapshot and name == self._active.name:
            raise Refused(f"{self._directory.disk} has no snapshot {snapshot}")
        return name

    def _made_one(self, name: str, alive: Callable[[], bool]) -> int:
        before = self._identities(name)
        needed = sum(os.stat(part, dir_fd=self._tree).st_blocks * 512 for part in before)
        need_room(self._directory.disk, needed, room(self._files, self._directory.fd, needed))
        fd = self._files.create_unnamed(self._directory.fd)
        try:
            qemu_img.flatten(self._tree, name, fd, f"{self._shown}/{name}", alive)
            if self._identities(name) != before:
                raise SourceChanged(f"{self._directory.disk} was written while it was read; repeat when its VM is off")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _identities(self, name: str) -> Dict[str, Identity]:
        """The file and all that it rests on, as they are now."""
        parts: List[str] = [name]
        while (base := self._chain.headers[parts[-1]].backing) is not None:
            parts.append(base)
        return {part: Identity.of(os.stat(part, dir_fd=self._tree, follow_symlinks=False)) for part in parts}
