"""Arriving: the one way a VM's directory that was moved gets its name, and the one way the old one goes.

Write order of `publish_directory`, all in the system datastore (docs/DESIGN.md argues it):

    every file staged, and durable -> links, permissions, fsync of every directory -> the note of its origin -> fsync
      -> rename over an empty directory, or exchange with what has the name -> fsync -> receipt -> discard the old one

The note lies in the directory and gets its name with it: `.fastcopy.receipt` says which move brought it.  By that a
repeated move, whose source is gone, knows that it is done; and it is the file that the receipt speaks of.

    {"version": 1, "source": "host1:/var/lib/one/datastores/0/42", "seq": 3, "manifest": <id of the tree>}
"""

from __future__ import annotations

import json
import os
from typing import Callable, NamedTuple, Optional

from .errors import Refused, Superseded
from .files import Files
from .listing import RECEIPT
from .paths import has, is_named, list_names
from .publish import staging_name
from .receipt import Receipt
from .tree import discard_tree, remove_tree

_VERSION = 1
_MAX_NOTE = 16 * 1024  # a path of PATH_MAX bytes, each perhaps written as \\uXXXX in part, and a host's name


class Note(NamedTuple):
    """Where a directory came from: HOST:PATH, history sequence of the VM, id of what was moved."""

    source: str
    seq: int
    manifest: str


def aside_name(name: str) -> str:
    """Name under which what was replaced steps aside where names cannot be exchanged.  Never the only copy."""
    return f".{name}.fastcopy.old"


def moved_name(name: str) -> str:
    """Name that a directory gets when the receipt of its copy is there, until it is removed.  Never the only copy."""
    return f".{name}.fastcopy.moved"


def write_note(files: Files, directory: int, note: Note) -> os.stat_result:
    """Write the note of an open directory, in place of any other; durable but for its name."""
    files.unlink(directory, RECEIPT)
    fd = files.create(directory, RECEIPT, 0o600)
    try:
        files.write(fd, json.dumps({"version": _VERSION, **note._asdict()}).encode() + b"\n", 0)
        files.sync(fd)
        return os.fstat(fd)
    finally:
        os.close(fd)


def read_note(directory: int) -> Optional[Note]:
    """The note of an open directory; None if there is none, or none that can be understood."""
    try:
        fd = os.open(RECEIPT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        values = json.loads(os.read(fd, _MAX_NOTE))
        if values.pop("version") != _VERSION:
            return None
        return Note(str(values["source"]), int(values["seq"]), str(values["manifest"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    finally:
        os.close(fd)


def publish_directory(
    files: Files,
    base: int,
    staged: int,
    name: str,
    path: str,
    note: Note,
    last_look: Callable[[], None] = lambda: None,
) -> Receipt:
    """Give the staged directory, all of it durable, the name *name* in the open datastore *base*; return the receipt.

    *staged* is its descriptor, *path* the full path of the final name.  What had the name is deleted on the receipt.
    """
    status = write_note(files, staged, note)
    files.sync_directory(staged)
    files.sync_directory(base)
    last_look()
    if not is_named(base, staging_name(name), staged):
        raise Superseded(f"another action has taken what is staged for {path} away; repeat this one")
    _take_place(files, base, name)
    files.sync_directory(base)
    receipt = Receipt(f"{path}/{RECEIPT}", note.manifest, status.st_size, status.st_dev, status.st_ino)
    for old in (staging_name(name), aside_name(name)):
        discard_tree(files, base, old, receipt, staged)
    return receipt


def _take_place(files: Files, base: int, name: str) -> None:
    staging = staging_name(name)
    if is_empty(base, name):
        files.rename(base, staging, name)
    elif not files.exchange(base, staging, name):
        # A crash between the two leaves no directory here; the one that is moved is still whole where it came from.
        files.rename(base, name, aside_name(name))
        files.sync_directory(base)
        files.rename(base, staging, name)


def is_empty(base: int, name: str) -> bool:
    """Whether there is nothing of that name, or an empty directory."""
    if has(base, name) is None:
        return True
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    try:
        return not list_names(fd)
    finally:
        os.close(fd)


def give_up(files: Files, base: int, name: str, shown: str, manifest: str, receipt: Receipt) -> None:
    """Remove the directory *name*, whose content is *manifest*, because *receipt* says that it is elsewhere.

    It loses its name in one step, so that half of it is never found under it.  `Refused` if the receipt is for
    something else.
    """
    if receipt.manifest != manifest or os.path.basename(receipt.path) != RECEIPT:
        raise Refused(f"the receipt for {shown} is for something else, so nothing is deleted for it")
    finish_giving_up(files, base, name, shown)  # of an earlier time: the name must be free
    files.rename(base, name, moved_name(name))
    files.sync_directory(base)
    finish_giving_up(files, base, name, shown)


def finish_giving_up(files: Files, base: int, name: str, shown: str) -> None:
    """Remove what `give_up` has renamed; it is no error if there is nothing."""
    if has(base, moved_name(name)) is not None:
        remove_tree(files, base, moved_name(name), shown)
        files.sync_directory(base)
