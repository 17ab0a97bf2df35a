"""Publish: the one way a file gets its final name (and `core/tree.py` for a file with a tree around it).

Write order, and what a crash leaves after each arrow (docs/DESIGN.md argues it at length):

    stage -> write -> size, mode -> fsync -> rename | exchange -> fsync directory -> receipt -> discard the old file
          nothing at, or the old file at, the final name      |  the new file, whole

The rename is the commit point; because the content is durable before it, the final name is whole on either side of it,
whatever becomes of the rename itself.  The staging file lies in the same directory under a hidden name that begins with
a dot and ends with `.part`; no file of that form is ever the only copy of anything.
"""

from __future__ import annotations

import os
from typing import Callable

from .errors import Refused, Superseded
from .files import Files, lock
from .paths import has, is_named
from .receipt import Receipt

STAGING_SUFFIX = ".part"


def staging_name(final: str) -> str:
    """The hidden name under which *final* is staged; always the same, so that a repeated action finds it."""
    return f".{final}.fastcopy{STAGING_SUFFIX}"


def is_staging(name: str) -> bool:
    """Whether *name* is one that `staging_name` makes."""
    return name.startswith(".") and name.endswith(".fastcopy" + STAGING_SUFFIX)


class Staged:
    """A file that is complete under its staging name: open, all content written, not yet durable."""

    def __init__(self, directory: int, name: str, fd: int, manifest: str) -> None:
        self.directory = directory
        self.name = name
        self.fd = fd
        self.manifest = manifest


def publish(
    files: Files, staged: Staged, final: str, path: str, mode: int, last_look: Callable[[], None] = lambda: None
) -> Receipt:
    """Give a staged file its final name, replacing whatever has it, and return the receipt.

    *path* is the full path of the final name, for the receipt.  *last_look* is called right before the rename, after
    the fsync, which may have taken minutes; what it raises stops the publication.
    """
    make_durable(files, staged, mode)
    last_look()
    still_ours(staged)
    files.rename(staged.directory, staged.name, final)
    files.sync_directory(staged.directory)
    return receipt_for(staged, path)


def replace(files: Files, staged: Staged, final: str, path: str, mode: int) -> Receipt:
    """As `publish`, but the file that had the name before is kept under the staging name until its receipt is there.

    Where nothing has the name yet, it is `publish`: there is nothing to exchange with.  Where names cannot be
    exchanged, the rename lets go of the old file at the moment the new one, already durable, takes its name.
    """
    if has(staged.directory, final) is None:
        return publish(files, staged, final, path, mode)
    make_durable(files, staged, mode)
    # After the exchange the old file has the staging name; locked, it is not taken for a staging file to resume.
    old = os.open(final, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=staged.directory)
    try:
        if not lock(old):
            raise Superseded(f"another action is just replacing {path}; repeat this one when it is done")
        still_ours(staged)
        if not files.exchange(staged.directory, staged.name, final):
            files.rename(staged.directory, staged.name, final)
        files.sync_directory(staged.directory)
        receipt = receipt_for(staged, path)
        discard(files, staged.directory, staged.name, receipt)
        return receipt
    finally:
        os.close(old)


def discard(files: Files, directory: int, name: str, receipt: Receipt) -> None:
    """Delete *name*, of which the receipt's file is the copy that stays, or that supersedes it.

    Only a name in the receipt's own directory, and never the receipt's own file.  `Refused` if the receipt does
    not hold.
    """
    if name == os.path.basename(receipt.path):
        raise Refused(f"{receipt.path} cannot be deleted on the strength of its own receipt")
    receipt.confirm(directory)
    files.unlink(directory, name)


def still_ours(staged: Staged) -> None:
    """Raise `Superseded` if the staging name is another file's by now."""
    if not is_named(staged.directory, staged.name, staged.fd):
        raise Superseded(f"another action has taken the staging file {staged.name} away; repeat this one")


def make_durable(files: Files, staged: Staged, mode: int) -> None:
    """Give a staged file its permission bits, and return when it is durable."""
    files.chmod(staged.fd, mode)
    files.sync(staged.fd)


def receipt_for(staged: Staged, path: str) -> Receipt:
    """The receipt of a file that has its final name, *path*, durably.  For those who publish, and nobody else."""
    status = os.fstat(staged.fd)
    return Receipt(path, staged.manifest, status.st_size, status.st_dev, status.st_ino)
