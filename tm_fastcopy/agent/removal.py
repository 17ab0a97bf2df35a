"""Removal: takes a VM's disk, or its whole directory, off this host because oned says so.

What is being removed keeps its guard until it is gone.
"""

from __future__ import annotations

from ..core.errors import classify
from ..core.files import Files
from ..core.publish import staging_name
from ..core.tree import aside_name, remove_tree, tree_name
from .directory import VmDirectory
from .live import live_name


def remove_disk(files: Files, directory: VmDirectory) -> None:
    """Remove a disk with all that belongs to it: its snapshots, and what cut-off actions left."""
    disk = directory.name
    tree = tree_name(disk)
    try:
        for name in (disk, staging_name(disk), live_name(disk), tree, staging_name(tree), aside_name(disk)):
            remove_tree(files, directory.fd, name, f"{directory.path}/{name}")
        files.sync_directory(directory.fd)
    except OSError as error:
        raise classify(error, f"removing {directory.disk}") from error


def remove_directory(files: Files, directory: VmDirectory) -> None:
    """Remove a VM's directory and everything in it."""
    try:
        directory.mark_gone()
        remove_tree(files, directory.base_fd, str(directory.vm), directory.path)
        files.sync_directory(directory.base_fd)
    except OSError as error:
        raise classify(error, f"removing {directory.path}") from error
