"""Live: a copy of a running guest's disk, as it was at one moment, that is read in the disk's place.

Where blocks can be shared it is a reflink that is made while the guest stands still, for some milliseconds.  Elsewhere
libvirt copies the disk under the running guest (blockcopy); where it cannot, the guest stands still for the copy.  The
copy lies beside the disk under a staging name until the conversation is over.
"""

from __future__ import annotations

import os
from typing import Callable

from ..core.errors import FastcopyError, NoSpace, Superseded
from ..core.files import Files, room
from ..core.image_messages import OpenLive
from ..core.paths import has
from ..core.publish import staging_name
from ..core.staging import copy_sparse, need_room
from .directory import VmDirectory
from .disk import open_disk
from .hypervisor import Hypervisor, NotDone
from .standstill import remove_mark, standstill, write_mark

_BRIEF = 30.0  # seconds that a guest may stand still for a reflink: 10,000 extents take 0.3 s
_LONG = 1800.0  # for a copy, which is the last resort


def live_name(disk: str) -> str:
    """Name of the copy of a disk in the VM's directory."""
    return staging_name(f"{disk}.live")


def open_live(files: Files, directory: VmDirectory, message: OpenLive, alive: Callable[[], bool]) -> int:
    """Make the copy and open it.  Whatever is raised, the guest goes on and no copy is left."""
    hypervisor = Hypervisor(message.uri, message.patience, alive)
    disk = open_disk(files, directory, message.format)
    name = live_name(directory.name)
    try:
        files.unlink(directory.fd, name)
        copy = files.create(directory.fd, name)
        try:
            # Of a guest that writes, a reflink is worth nothing; but it shows whether there can be one, and writes out
            # what is in memory, so that the second one takes less time.
            if files.clone(copy, disk):
                with standstill(files, directory, hypervisor, message.domain, _BRIEF):
                    if not files.clone(copy, disk):  # what the first has made is of no one moment
                        raise FastcopyError(f"blocks of {directory.disk} cannot be shared any more: repeat the action")
                return copy
            need_room(directory.disk, _allocated(disk), room(files, directory.fd, _allocated(disk)))
            return _copied(files, directory, hypervisor, message, disk, copy)
        except BaseException as error:
            os.close(copy)
            remove_live(files, directory)
            if isinstance(error, NotDone):
                raise FastcopyError(f"the disk of the running VM cannot be copied: {error}; or power it off") from error
            raise
    finally:
        os.close(disk)


def _copied(
    files: Files, directory: VmDirectory, hypervisor: Hypervisor, message: OpenLive, disk: int, copy: int
) -> int:
    """Have libvirt fill the copy, or fill it while the guest stands still; return its descriptor."""
    name = live_name(directory.name)
    try:
        write_mark(files, directory, hypervisor.uri, message.domain, message.target)
        try:
            hypervisor.copy(message.domain, message.target, f"{directory.path}/{name}")
        finally:
            remove_mark(files, directory)
        made = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
        os.close(copy)  # libvirt may have put another file in its place
        return made
    except (Superseded, NoSpace):
        raise
    except NotDone:
        size = os.fstat(disk).st_size
        with standstill(files, directory, hypervisor, message.domain, _LONG):
            files.truncate(copy, 0)
            files.truncate(copy, size)
            copy_sparse(files, copy, disk, 0, size, 0, fresh=True)
        return copy


def remove_live(files: Files, directory: VmDirectory) -> None:
    """Remove the copy, if there is one."""
    if has(directory.fd, live_name(directory.name)) is not None:
        files.unlink(directory.fd, live_name(directory.name))


def _allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512
