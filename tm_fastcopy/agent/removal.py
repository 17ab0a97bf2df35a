"""Removal: takes a VM's disk, or its whole directory, off this host because oned says so.

What is being removed keeps its guard until it is gone.
"""

from __future__ import annotations

from ..core.errors import Refused, classify
from ..core.files import Files
from ..core.publish import staging_name
from ..core.receipt import Receipt
from ..core.tree import aside_name, discard_tree, remove_tree, tree_name
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


def drop_tree(files: Files, directory: VmDirectory, receipt: Receipt) -> None:
    """Remove the tree that had the name of a raw disk before, on the disk's receipt; `Refused` if it is another's."""
    if receipt.path != directory.disk:
        raise Refused(f"the receipt of {receipt.path} says nothing of {directory.disk}")
    for old in (tree_name(directory.name), aside_name(directory.name)):
        discard_tree(files, directory.fd, old, receipt, directory.fd)
    files.sync_directory(directory.fd)


def remove_directory(files: Files, directory: VmDirectory) -> None:
    """Remove a VM's directory and everything in it."""
    try:
        directory.mark_gone()
        remove_tree(files, directory.base_fd, str(directory.vm), directory.path)
        files.sync_directory(directory.base_fd)
    except OSError as error:
        raise classify(error, f"removing {directory.path}") from error
