"""Disk: what a VM's disk is made of in its directory: where it is staged, how it gets its name, how it is read.

A raw disk, a kernel and an initrd are one file.  A qcow2 disk is a tree, as the stock `local` driver lays it out
(`core/tree.py`); one that is a flat file, as `ssh` leaves it, can be read too.
"""

from __future__ import annotations

import functools
import os
import stat
from typing import Callable, Optional, Tuple

from ..core import qcow2
from ..core.errors import FastcopyError, Refused
from ..core.files import Files, close, room
from ..core.publish import Staged, publish, staging_name
from ..core.receipt import Receipt
from ..core.staging import Staging, need_room
from ..core.tree import (
    ACTIVE,
    check_alone,
    drop_staging_tree,
    find_active,
    open_staging_tree,
    publish_tree,
    settle,
)
from . import qemu_img
from .directory import VmDirectory

RAW, QCOW2 = "raw", "qcow2"

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would be waited for


class Target:
    """What the disk must be in the end: bytes of its file, permission bits, whether it may have holes, its format, and
    (qcow2) how many bytes the guest must see, 0 for those of the image.
    """

    def __init__(self, size: int, mode: int, sparse: bool, format: str = RAW, virtual: int = 0) -> None:
        self.size, self.mode, self.sparse = size, (mode & 0o777) | 0o600, sparse
        self.format, self.virtual = check_format(format), virtual


def check_format(format: str) -> str:
    """Return the format if it is one that we know."""
    if format not in (RAW, QCOW2):
        raise Refused(f"disks of the format {format!r:.40} are not handled by this driver; use raw or qcow2")
    return format


class Disk:
    """One disk in the making, in the VM directory whose guard is held."""

    def __init__(
        self,
        files: Files,
        directory: VmDirectory,
        target: Target,
        alive: Callable[[], bool],
        member: Optional[Tuple[int, str]] = None,
    ) -> None:
        """*member*: it is one file of a tree in the making, with this name in that open directory."""
        self._files, self._directory, self._target, self._alive = files, directory, target, alive
        self._tree: Optional[int] = None
        self._member = member

    def stage(self, size: int) -> Staging:
        """Its staging file, which an earlier action may have begun."""
        directory, place, name = self._directory, self._directory.fd, self._directory.name
        if self._member:
            place, name = self._member
        elif self._target.format == QCOW2:
            if self._tree is None:
                self._tree = open_staging_tree(self._files, directory.fd, directory.name)
            place, name = self._tree, ACTIVE
        staging = Staging.open(self._files, place, staging_name(name), size)
        if staging is None:
            raise FastcopyError(f"a transfer that was cut off still writes beside {directory.disk}: repeat in a minute")
        return staging

    def stage_anew(self) -> Staging:
        """An empty staging file: what an earlier action left is of no use."""
        staging = self.stage(0)
        if not staging.fresh:
            self._files.unlink(staging.directory, staging.name)
            staging.close()
            staging = self.stage(0)
        return staging

    def publish(self, staging: Staging, manifest_id: str) -> Receipt:
        """Make the staged file what the disk must be, and give it its name."""
        directory, target, files = self._directory, self._target, self._files
        if target.size != os.fstat(staging.fd).st_size:
            files.truncate(staging.fd, target.size)
        if target.format == QCOW2 and not self._member:
            self._fit(staging.fd)
        if not target.sparse:
            files.fill(staging.fd, os.fstat(staging.fd).st_size)
        staged = Staged(staging.directory, staging.name, staging.fd, manifest_id)
        last_look = functools.partial(directory.publishable, self._alive)
        last_look()
        if self._member:  # its header is looked at with those of all others
            name = self._member[1]
            return publish(files, staged, name, f"{directory.disk}.snap/{name}", target.mode, last_look)
        if target.format == RAW:
            return publish(files, staged, directory.name, directory.disk, target.mode, last_look)
        return publish_tree(files, directory.fd, staged, directory.name, directory.disk, target.mode, last_look)

    def _fit(self, fd: int) -> None:
        """Look at the header again, on this side, before anything opens the image as one; make it larger."""
        directory, target = self._directory, self._target
        header = qcow2.read(fd, directory.disk)
        qcow2.check_stand_alone(header, directory.disk)
        if target.virtual <= header.size:
            return
        added = target.virtual - header.size
        if not target.sparse:
            need_room(directory.disk, added, room(self._files, directory.fd, added))
        try:
            qemu_img.resize(fd, target.virtual, not target.sparse, directory.disk, self._alive)
        except Refused as error:
            raise Refused(f"{error}; deploy it in the size of its image") from error

    def clear(self) -> None:
        """Leave no empty directory."""
        if self._target.format == QCOW2 and not self._member:
            drop_staging_tree(self._files, self._directory.fd, self._directory.name)

    def close(self) -> None:
        """Let go of the staging tree."""
        close(self._tree)
        self._tree = None


def open_disk(files: Files, directory: VmDirectory, format: str) -> int:
    """Open the disk of a VM for reading; `Refused` if it is none, or cannot be carried as one file."""
    disk = directory.disk
    if check_format(format) == RAW:
        return open_file(directory.fd, directory.name, disk)
    settle(files, directory.fd, directory.name)
    try:
        active = find_active(directory.fd, directory.name, disk)
    except FileNotFoundError as error:
        raise Refused(f"there is no {disk} on this host") from error
    try:
        fd = open_file(active.directory, active.name, disk)
    finally:
        os.close(active.directory)
    try:
        check_alone(directory.fd, directory.name, active, disk)
        qcow2.check_stand_alone(qcow2.read(fd, disk), disk)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_file(place: int, name: str, disk: str) -> int:
    """Open a file for reading, which errors call *disk*; `Refused` if it is none."""
    try:
        fd = os.open(name, _READ, dir_fd=place)
    except FileNotFoundError as error:
        raise Refused(f"there is no {disk} on this host") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(f"{disk} is not a regular file")
    return fd
