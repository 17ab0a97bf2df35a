"""Snapshots: which of the two ways a disk's snapshots are kept in, and the action that was asked for.

A disk that is one file has copies (`copies.py`), whatever its format; one that is a link into a tree has overlays
(`overlays.py`).  So a disk that another driver has left is handled in the way that this driver kept it.
"""

from __future__ import annotations

import os
import stat
from typing import Callable, Union

from ..core.errors import Refused
from ..core.files import Files
from ..core.paths import has, open_directory
from ..core.snapshot_messages import SnapCreate, SnapCreateLive, SnapDelete, Snapped, SnapRevert
from ..core.tree import Active, find_active, settle, tree_name
from .copies import Copies, clear_staging
from .directory import VmDirectory
from .disk import RAW, check_format, open_file
from .live_snapshot import Virsh, copy_live, copy_of_container, lay_over_live, let_go_live
from .overlays import Overlays

Wish = Union[SnapCreate, SnapCreateLive, SnapRevert, SnapDelete]


def perform(files: Files, directory: VmDirectory, wish: Wish, alive: Callable[[], bool]) -> Snapped:
    """Do what was asked about the disk of *directory*, whose guard is held."""
    check_format(wish.format)
    settle(files, directory.fd, directory.name)
    _clear(files, directory)
    try:
        active = find_active(directory.fd, directory.name, directory.disk)
    except FileNotFoundError as error:
        raise Refused(f"there is no {directory.disk} on this host") from error
    try:
        if not active.in_tree:
            return Snapped(_copies(files, Copies(files, directory, wish.share, alive), directory, wish, alive))
        if wish.format == RAW:
            raise Refused(f"{directory.disk} is a link into a tree, though oned says that it is a raw disk")
        return Snapped(_overlays(files, directory, active, wish, alive))
    finally:
        os.close(active.directory)


def _clear(files: Files, directory: VmDirectory) -> None:
    name = tree_name(directory.name)
    status = has(directory.fd, name)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return
    tree = open_directory(directory.fd, name, f"{directory.path}/{name}")
    try:
        clear_staging(files, tree)
    finally:
        os.close(tree)


def _copies(files: Files, copies: Copies, directory: VmDirectory, wish: Wish, alive: Callable[[], bool]) -> str:
    if isinstance(wish, SnapDelete):
        return copies.delete(wish.id)
    disk = open_file(directory.fd, directory.name, directory.disk)
    try:
        if isinstance(wish, SnapRevert):
            return copies.revert(wish.id, wish.sparse, stat.S_IMODE(os.fstat(disk).st_mode))
        if isinstance(wish, SnapCreateLive):
            if wish.container:
                return copy_of_container(files, directory, copies, wish, disk)
            return copy_live(copies, wish, disk, Virsh(files, directory, wish.domain, alive))
        return copies.create(wish.id, disk)
    finally:
        os.close(disk)


def _overlays(files: Files, directory: VmDirectory, active: Active, wish: Wish, alive: Callable[[], bool]) -> str:
    overlays = Overlays(files, directory, active, wish.share, alive)
    if isinstance(wish, SnapCreate):
        return overlays.create(wish.id)
    if isinstance(wish, SnapRevert):
        return overlays.revert(wish.id)
    if isinstance(wish, SnapCreateLive):
        if wish.container:
            raise Refused("snapshots of a container that runs can be made of raw disks only: power it off, and repeat")
        return lay_over_live(overlays, wish, Virsh(files, directory, wish.domain, alive))
    if wish.domain:
        let_go_live(overlays, wish.id, Virsh(files, directory, wish.domain, alive), wish.target)
        overlays = Overlays(files, directory, active, wish.share, alive)
    return overlays.delete(wish.id, bool(wish.domain))
