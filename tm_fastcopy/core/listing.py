"""Listing: what lies in a VM's directory, as one side tells the other; and the id of all of it.

Entries are ordered by path, a directory before what is in it; the first is the VM's directory itself, with the path "".
No link is followed.  A link is an entry only if it is the layout's own: `disk.N` to the active file of its tree, or a
tree's link to itself (which the stock drivers for shared storage make).  What is staged is left out, and so are
sockets, which mean nothing without the process that made them.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Iterator, List, Mapping, NamedTuple

import blake3

from .buffer import Buffer
from .errors import FastcopyError, ProtocolError, Refused
from .identity import Identity
from .manifest import MAX_SIZE
from .paths import MAX_PATH, is_mount, list_names, open_directory
from .publish import is_staging

RECEIPT = ".fastcopy.receipt"
"""The file in a VM's directory that says where it came from; each move writes its own (core/arriving.py)."""

TOKEN = ".fastcopy.token."
"""How the names of tokens begin, by which two sides find out whether they have the same directory."""

MAX_ENTRIES = 4096  # a VM has some ten files, and 32 snapshots of 32 disks are 1024; at 4 KiB a path, see `MAX_BLOB`
_DEEPEST = 16  # as `tree.remove_tree`: what cannot be removed is not taken
_MOST_NS = 1 << 63

DIRECTORY, FILE, LINK = "d", "f", "l"

_LINK = re.compile(r"(disk\.[0-9]{1,9})\.snap/[0-9]{1,9}")
_SELF = re.compile(r"disk\.[0-9]{1,9}\.snap/(disk\.[0-9]{1,9}\.snap)")


class Entry(NamedTuple):
    """A directory, file or link: path below the VM's directory, kind, permission bits, bytes, bytes that are not holes,
    time of last modification (ns), and the text of a link.
    """

    path: str
    kind: str
    mode: int
    size: int = 0
    data: int = 0
    mtime_ns: int = 0
    text: str = ""

    def check(self) -> Entry:
        """The entry, if it is one that may be made; `ProtocolError` otherwise."""
        numbers = (self.mode, self.size, self.data, self.mtime_ns)
        fine = all(type(number) is int and 0 <= number < _MOST_NS for number in numbers)
        fine = fine and type(self.path) is str and type(self.text) is str and self.kind in (DIRECTORY, FILE, LINK)
        parts = self.path.split("/") if fine and self.path else []
        if (
            not fine
            or len(self.path) > MAX_PATH
            or len(parts) > _DEEPEST
            or any(part in ("", ".", "..", RECEIPT) or "\0" in part or is_staging(part) for part in parts)
            or self.mode > 0o777
            or self.size > MAX_SIZE
            or (self.kind == LINK) != bool(self.text)
            or (self.kind == LINK and own_link(self.path, self.text) != self.text)
        ):
            raise ProtocolError(f"{self.path!r:.200} is no entry of a VM's directory")
        return self


def own_link(path: str, text: str, home: str = "") -> str:
    """The text of a link of the layout, "" if it is none.

    One that older drivers made with a full path into its own VM directory, *home*, comes out as it is made today.
    """
    if home and text.startswith(home.rstrip("/") + "/"):
        text = text[len(home.rstrip("/")) + 1 :]
    match = _LINK.fullmatch(text)
    if match and path == match.group(1):
        return text
    loop = _SELF.fullmatch(path)
    return text if loop and text == "." and path == f"{loop.group(1)}/{loop.group(1)}" else ""


def listing(directory: int, shown: str) -> List[Entry]:
    """What lies in the open *directory*; `Refused` for what cannot be carried.  *shown* is its full path."""
    entries = [Entry("", DIRECTORY, stat.S_IMODE(os.fstat(directory).st_mode) & 0o777)]
    for entry in _below(directory, "", shown, 0):
        entries.append(entry)
        if len(entries) > MAX_ENTRIES:
            raise Refused(f"{shown} holds more than {MAX_ENTRIES} files, which no VM has: look what they are")
    return entries


def _below(directory: int, prefix: str, shown: str, depth: int) -> Iterator[Entry]:
    if depth >= _DEEPEST:
        raise Refused(f"{shown}/{prefix} is nested deeper than anything of ours: look at it and move it away")
    for name in sorted(list_names(directory)):
        path = prefix + name
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode) & 0o777
        if is_staging(name) or name.startswith(TOKEN) or path == RECEIPT or stat.S_ISSOCK(status.st_mode):
            continue
        if stat.S_ISDIR(status.st_mode):
            below = open_directory(directory, name, f"{shown}/{path}")
            try:
                if is_mount(directory, below):
                    raise Refused(f"{shown}/{path} is a mount point: unmount it and repeat the action")
                yield Entry(path, DIRECTORY, mode)
                yield from _below(below, f"{path}/", shown, depth + 1)
            finally:
                os.close(below)
        elif stat.S_ISREG(status.st_mode):
            data = min(status.st_blocks * 512, status.st_size)
            yield Entry(path, FILE, mode, status.st_size, data, max(0, status.st_mtime_ns))
        elif stat.S_ISLNK(status.st_mode):
            text = own_link(path, os.readlink(name, dir_fd=directory), shown)
            if not text:
                raise Refused(f"{shown}/{path} is a symbolic link out of its own layout, which is not moved: remove it")
            yield Entry(path, LINK, 0o777, text=text)
        else:
            raise Refused(f"{shown}/{path} is neither a file nor a directory, so it cannot be moved: remove it")


def identities(directory: int, entries: List[Entry], shown: str) -> List[Identity]:
    """What tells whether one of these files has been written since."""
    found = []
    for entry in entries:
        if entry.kind == FILE:
            place, name = open_place(directory, entry.path, shown)
            try:
                found.append(Identity.of(os.stat(name, dir_fd=place, follow_symlinks=False)))
            finally:
                os.close(place)
    return found


def open_place(directory: int, path: str, shown: str) -> tuple[int, str]:
    """Open the directory that *path*, below the open *directory*, lies in, no link followed; the caller closes it."""
    *parents, name = path.split("/")
    place = os.dup(directory)
    for part in parents:
        try:
            below = open_directory(place, part, f"{shown}/{path}")
        finally:
            os.close(place)
        place = below
    return place, name


def tree_id(entries: List[Entry], manifests: Mapping[str, str]) -> str:
    """64 hexadecimal digits that name all of it: *manifests* has the manifest's id of every file, by path."""
    hasher = blake3.blake3(b"fastcopy tree 1\n")
    for entry in sorted(entries):
        row = [entry.path, entry.kind, entry.mode, entry.size, entry.text, manifests.get(entry.path, "")]
        hasher.update(json.dumps(row).encode() + b"\n")
    return hasher.hexdigest()


def encode(entries: List[Entry]) -> bytes:
    """Entries as a message carries them."""
    return json.dumps(entries, separators=(",", ":")).encode()


def decode(raw: Buffer) -> List[Entry]:
    """Undo `encode`; `ProtocolError` for what cannot be the listing of a VM's directory."""
    try:
        rows = json.loads(bytes(raw))
        if not isinstance(rows, list) or not 0 < len(rows) <= MAX_ENTRIES:
            raise ProtocolError("a listing is empty or too long")
        entries = [Entry(*row).check() for row in rows]
    except FastcopyError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError("a listing cannot be read") from error
    known = {entry.path: entry.kind for entry in entries}
    orphan = any(entry.path and known.get(entry.path.rpartition("/")[0]) != DIRECTORY for entry in entries)
    if len(known) != len(entries) or known.get("") != DIRECTORY or orphan:
        raise ProtocolError("a listing does not hang together")
    return entries
