"""Trees: a disk that consists of several files, on its way to this host or from it, one file after another.

On the way here its files are staged in one staging tree, and get their names there as they come; nothing of it is seen
before `publish`, which looks at all headers and gives the tree its name in one step (`core/tree.py`).
"""

from __future__ import annotations

import functools
import os
import stat
from typing import Callable, NamedTuple

from ..core import qcow2
from ..core.chain import check_whole, is_number, list_files, list_members, open_member
from ..core.errors import Refused
from ..core.files import Files, room
from ..core.paths import has, open_directory
from ..core.receipt import Receipt
from ..core.staging import need_room
from ..core.tree import (
    clear_staging_tree,
    drop_staging_tree,
    find_active,
    open_staging_tree,
    publish_members,
    settle,
    tree_name,
)
from ..core.tree_messages import BeginTree, PublishTree, TreeListed, pack_names
from . import qemu_img
from .directory import VmDirectory
from .disk import QCOW2, check_format


class Place(NamedTuple):
    """Where a file of a tree is staged: the staging tree's directory, and the name that it gets there."""

    tree: int
    name: str


class TreeInTheMaking:
    """The tree of a disk, in the VM directory whose guard is held."""

    def __init__(self, files: Files, directory: VmDirectory, wish: BeginTree, alive: Callable[[], bool]) -> None:
        self._files, self._directory, self._alive = files, directory, alive
        self._format, self._names = check_format(wish.format), wish.names
        self.tree = open_staging_tree(files, directory.fd, directory.name, self._names)

    def place(self, name: str) -> Place:
        """Where a file of it is to go."""
        if name not in self._names:
            raise Refused(f"{name} is none of the files that were announced for {self._directory.disk}")
        return Place(self.tree, name)

    def publish(self, wish: PublishTree) -> Receipt:
        """Give the tree its name; the receipt is the active file's, or the last one's where none is active."""
        directory, shown = self._directory, f"{self._directory.disk}.snap"
        missing = sorted(set(self._names) - set(list_files(self.tree, shown)))
        if missing:
            raise Refused(f"the files {', '.join(missing)[:200]} of {directory.disk} did not arrive; it is as it was")
        if (self._format == QCOW2) != bool(wish.active) or (wish.active and not is_number(wish.active)):
            raise Refused(f"the files of {directory.disk} do not make a disk; it is as it was")
        if wish.active:
            check_whole(self.tree, wish.active, shown)
            self._fit(wish)
        last_look = functools.partial(directory.publishable, self._alive)
        last_look()
        publish_members(
            self._files, directory.fd, self.tree, directory.name, directory.disk, wish.active, last_look
        )
        name = wish.active or (self._names[-1] if self._names else "")
        status = os.stat(name, dir_fd=self.tree, follow_symlinks=False) if name else os.fstat(self.tree)
        return Receipt(f"{shown}/{name}", "", status.st_size, status.st_dev, status.st_ino)

    def _fit(self, wish: PublishTree) -> None:
        """Make the active file larger for its guest, while it is still in the staging tree."""
        shown = f"{self._directory.disk}.snap/{wish.active}"
        fd = os.open(wish.active, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.tree)
        try:
            header = qcow2.read(fd, shown)
            size = header.size
            if wish.virtual <= size:
                return
            if wish.reserve:
                need_room(shown, wish.virtual - size, room(self._files, self.tree, wish.virtual - size))
            qemu_img.resize(fd, wish.virtual, wish.reserve, shown, self._alive, header.backing is not None)
            self._files.sync(fd)
        finally:
            os.close(fd)

    def no_room(self) -> None:
        """Remove what was staged: the file system is full, and a part that cannot be completed only keeps it so."""
        clear_staging_tree(self._files, self._directory.fd, self._directory.name, self.tree)

    def close(self) -> None:
        """Let go of it; what is staged stays, for the next action to resume."""
        os.close(self.tree)
        drop_staging_tree(self._files, self._directory.fd, self._directory.name)


def list_tree(files: Files, directory: VmDirectory, format: str) -> TreeListed:
    """The files that the disk consists of."""
    check_format(format)
    settle(files, directory.fd, directory.name)
    try:
        active = find_active(directory.fd, directory.name, directory.disk)
    except FileNotFoundError as error:
        raise Refused(f"there is no {directory.disk} on this host") from error
    os.close(active.directory)
    shown = f"{directory.disk}.snap"
    status = has(directory.fd, tree_name(directory.name))
    if status is None or not stat.S_ISDIR(status.st_mode):
        return TreeListed("", b"")
    tree = open_directory(directory.fd, tree_name(directory.name), shown)
    try:
        names = list_members(tree, shown)
        if active.in_tree:
            check_whole(tree, active.name, shown)
    finally:
        os.close(tree)
    return TreeListed(active.name if active.in_tree else "", pack_names(names))


def open_for_reading(directory: VmDirectory, name: str) -> int:
    """Open a file of the disk's tree for reading."""
    shown = f"{directory.disk}.snap"
    tree = open_directory(directory.fd, tree_name(directory.name), shown)
    try:
        return open_member(tree, name, shown)
    finally:
        os.close(tree)
