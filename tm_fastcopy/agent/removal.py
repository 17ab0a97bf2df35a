"""Removal: takes a VM's disk, or its whole directory, off this host because oned says so; or what was staged of it.

What is being removed keeps its guard until it is gone.
"""

from __future__ import annotations

import os
import stat

from ..core import tree
from ..core.arriving import aside_name, moved_name
from ..core.errors import Refused, classify
from ..core.files import Files, lock
from ..core.paths import has, is_named, open_directory
from ..core.publish import staging_name
from ..core.receipt import Receipt
from ..core.tree import discard_tree, remove_tree, tree_name
from .copies import clear_staging
from .directory import VmDirectory
from .live import live_name


def remove_disk(files: Files, directory: VmDirectory) -> None:
    """Remove a disk with all that belongs to it: its snapshots, and what cut-off actions left."""
    disk = directory.name
    own = tree_name(disk)
    try:
        for name in (disk, staging_name(disk), live_name(disk), own, staging_name(own), tree.aside_name(disk)):
            remove_tree(files, directory.fd, name, f"{directory.path}/{name}")
        files.sync_directory(directory.fd)
    except OSError as error:
        raise classify(error, f"removing {directory.disk}") from error


def discard_disk(files: Files, directory: VmDirectory) -> None:
    """Remove what was staged of a disk by an action that was ended; and the directory, if it was made for it alone."""
    name = tree_name(directory.name)
    try:
        tree.discard_staged(files, directory.fd, directory.name)
        status = has(directory.fd, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            snapshots = open_directory(directory.fd, name, f"{directory.path}/{name}")
            try:
                clear_staging(files, snapshots)
            finally:
                os.close(snapshots)
    except OSError as error:
        raise classify(error, f"removing what was staged of {directory.disk}") from error
    directory.drop_empty()


def discard_move(files: Files, directory: VmDirectory) -> bool:
    """Remove what was staged of a VM's directory by a move that was ended; False if somebody is still at it.

    `Refused` where a move was cut off when it gave the directory its name, or a VM uses what had the name before.
    """
    base, vm = directory.base_fd, str(directory.vm)
    name, shown = staging_name(vm), f"{directory.base}/{staging_name(vm)}"
    if has(base, aside_name(vm)) is not None:
        raise Refused(
            f"an earlier move was cut off when it gave {directory.path} its name: repeat it, so that it is completed"
        )
    if has(base, name) is None:
        directory.drop_empty()
        return True
    staged = open_directory(base, name, shown)
    try:
        # There may be no directory whose guard could be held, so the lock of whoever stages decides.
        if not lock(staged) or not is_named(base, name, staged):
            return False
        directory.check_unused(staged)  # after an exchange it is what had the VM's name
        remove_tree(files, base, name, shown)
        files.sync_directory(base)
        directory.drop_empty()
        return True
    except OSError as error:
        raise classify(error, f"removing {shown}") from error
    finally:
        os.close(staged)


def drop_tree(files: Files, directory: VmDirectory, receipt: Receipt) -> None:
    """Remove the tree that had the name of a raw disk before, on the disk's receipt; `Refused` if it is another's."""
    if receipt.path != directory.disk:
        raise Refused(f"the receipt of {receipt.path} says nothing of {directory.disk}")
    for old in (tree_name(directory.name), tree.aside_name(directory.name)):
        discard_tree(files, directory.fd, old, receipt, directory.fd)
    files.sync_directory(directory.fd)


def remove_directory(files: Files, directory: VmDirectory) -> None:
    """Remove a VM's directory and everything in it."""
    try:
        directory.mark_gone()
        remove_tree(files, directory.base_fd, str(directory.vm), directory.path)
        files.sync_directory(directory.base_fd)
        remove_moved(files, directory)
    except OSError as error:
        raise classify(error, f"removing {directory.path}") from error


def remove_moved(files: Files, directory: VmDirectory) -> None:
    """Remove what moves that were cut off left beside a VM's directory, which has just gone, or was not there."""
    vm = str(directory.vm)
    left = [name for name in (staging_name(vm), aside_name(vm), moved_name(vm)) if has(directory.base_fd, name)]
    for name in left:
        remove_tree(files, directory.base_fd, name, f"{directory.base}/{name}")
    if left:
        files.sync_directory(directory.base_fd)
