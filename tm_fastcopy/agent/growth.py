"""Growth: makes a disk that is there larger, in place.  It never makes one smaller.

In place, because a disk is its VM's only copy and may be larger than the room that is left.  What a crash leaves at
each point is in docs/DESIGN.md: a disk of the old size or of the new one, with the content that it had.
"""

from __future__ import annotations

import os
import stat
from typing import Callable

from ..core import qcow2
from ..core.errors import Refused, Superseded
from ..core.files import Files
from ..core.tree import find_active, settle
from ..core.volatile_messages import GrowDisk, Grown
from . import qemu_img
from .directory import VmDirectory
from .disk import RAW, check_format
from .volatile import Claim

_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would be waited for


class Growth:
    """A disk in the VM directory whose guard is held.  *claim* is asked before anything is allocated."""

    def __init__(
        self, files: Files, directory: VmDirectory, wanted: GrowDisk, claim: Claim, alive: Callable[[], bool]
    ) -> None:
        check_format(wanted.format)
        self._files, self._directory, self._wanted, self._claim, self._alive = files, directory, wanted, claim, alive

    def grow(self) -> Grown:
        """Make the disk as large as it must be, and durable; one that is large enough stays as it is."""
        fd = self._open()
        try:
            before = (self._grow_raw if self._wanted.format == RAW else self._grow_qcow2)(fd)
            self._files.sync(fd)
        finally:
            os.close(fd)
        return Grown(before, max(before, self._wanted.size))

    def _open(self) -> int:
        directory = self._directory
        missing = Refused(
            f"there is no {directory.disk} on this host, so it cannot be made larger: the disks of an undeployed VM "
            "are on the front-end; resume the VM and repeat the action"
        )
        if self._wanted.format != RAW:
            settle(self._files, directory.fd, directory.name)
        try:
            if self._wanted.format == RAW:
                fd = os.open(directory.name, _WRITE, dir_fd=directory.fd)
            else:
                active = find_active(directory.fd, directory.name, directory.disk)
                try:
                    fd = os.open(active.name, _WRITE, dir_fd=active.directory)
                finally:
                    os.close(active.directory)
        except FileNotFoundError as error:
            raise missing from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(f"{directory.disk} is not a regular file")
        return fd

    def _grow_raw(self, fd: int) -> int:
        files, size = self._files, self._wanted.size
        before = os.fstat(fd).st_size
        if size <= before:
            return before
        self._last_look()
        if not self._wanted.sparse:
            # Room first, then the size: a disk that has the size has the room as well, also after a crash.
            self._claim(size - before)
            try:
                files.allocate(fd, before, size - before)
            except OSError:
                files.truncate(fd, before)  # gives back what was reserved behind the end
                raise
        files.truncate(fd, size)
        return before

    def _grow_qcow2(self, fd: int) -> int:
        disk, wanted = self._directory.disk, self._wanted
        header = qcow2.read(fd, disk)
        overlay = header.backing is not None and not qcow2.is_outside(header.backing) and header.data_file is None
        if not overlay:
            qcow2.check_stand_alone(header, disk)
        if wanted.size > header.size:
            self._last_look()
            if not wanted.sparse:
                self._claim(wanted.size - header.size)
            qemu_img.resize(fd, wanted.size, not wanted.sparse, disk, self._alive, overlay)
        return header.size

    def _last_look(self) -> None:
        self._directory.check_fence()
        if not self._alive():
            raise Superseded(f"the front-end went away, so {self._directory.disk} is not made larger")
