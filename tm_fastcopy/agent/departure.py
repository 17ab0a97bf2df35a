"""Departure: a VM's directory that is to be moved: guarded, listed, read, and removed when it has arrived elsewhere."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List

from ..core.arriving import give_up
from ..core.errors import ProtocolError, Refused, SourceChanged, classify
from ..core.files import Files
from ..core.hashing import Page, hash_page
from ..core.identity import Identity
from ..core.listing import FILE, Entry, identities, listing, open_place, tree_id
from ..core.manifest import DEFAULT_CHUNK, DIGEST_SIZE, Manifest, check_geometry, chunk_count
from ..core.messages import PAGE_CHUNKS
from ..core.paths import is_mount, list_names
from ..core.receipt import Receipt
from ..core.tree import settle
from .directory import VmDirectory

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TREE = re.compile(r"\.?(disk\.[0-9]{1,9})\.snap(\.fastcopy\.old)?")  # a tree, or one that has stepped aside


class SourceFile:
    """One file of the directory, open for reading; what was digested of it is remembered."""

    def __init__(self, fd: int, entry: Entry, shown: str) -> None:
        self.fd, self.entry, self._shown = fd, entry, shown
        self._identity = Identity.of(os.fstat(fd))
        self._chunk = 0
        self._pages: Dict[int, bytes] = {}

    def scan(self, first: int, count: int, chunk: int) -> Page:
        """Digest *count* chunks from *first* on."""
        size = self.entry.size
        check_geometry(size, chunk)
        if count > PAGE_CHUNKS or first + count > chunk_count(size, chunk) or self._chunk not in (0, chunk):
            raise ProtocolError("a page that the file does not have was asked for")
        self._chunk = chunk
        halves = [(first, count // 2), (first + count // 2, -(-count // 2))]
        with ThreadPoolExecutor(2) as pool:  # hashing and reading release the GIL
            pages = list(pool.map(lambda half: hash_page(self.fd, size, chunk, *half), (h for h in halves if h[1])))
        digests = b"".join(page.digests for page in pages)
        self._pages[first] = digests
        return Page(first, digests, [run for page in pages for run in page.runs])

    def manifest(self) -> str:
        """The id of the manifest, when all was digested; `SourceChanged` if the file was written meanwhile."""
        if Identity.of(os.fstat(self.fd)) != self._identity:
            raise SourceChanged(f"{self._shown} was written while it was moved; repeat when its VM is off")
        digests = b"".join(self._pages[first] for first in sorted(self._pages))
        if len(digests) != DIGEST_SIZE * chunk_count(self.entry.size, self._chunk or DEFAULT_CHUNK):
            raise ProtocolError(f"{self._shown} was not read to its end")
        return Manifest(self.entry.size, self._chunk or DEFAULT_CHUNK, digests).id

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class Departure:
    """The directory, whose guard *directory* holds."""

    def __init__(self, files: Files, directory: VmDirectory) -> None:
        self._files, self._directory = files, directory
        if is_mount(directory.base_fd, directory.fd):  # it cannot be renamed in the end
            raise Refused(f"{directory.path} is a mount point: unmount it and repeat the action")
        directory.check_unused()
        self._settle()
        self.entries = listing(directory.fd, directory.path)
        self._before = identities(directory.fd, self.entries, directory.path)
        self.manifests: Dict[str, str] = {}
        """Manifest ids of the files that were read to their ends, by path."""

    def _settle(self) -> None:
        """Finish or undo exchanges of trees that were cut off: what is staged is not carried, nor is an intent."""
        found = (_TREE.fullmatch(name) for name in list_names(self._directory.fd))
        for disk in sorted({match.group(1) for match in found if match}):
            settle(self._files, self._directory.fd, disk)

    def open(self, number: int) -> SourceFile:
        """Open file *number* of the listing."""
        if number >= len(self.entries) or self.entries[number].kind != FILE:
            raise ProtocolError(f"entry {number} of the listing is no file")
        entry = self.entries[number]
        shown = f"{self._directory.path}/{entry.path}"
        place, name = open_place(self._directory.fd, entry.path, self._directory.path)
        try:
            fd = os.open(name, _READ, dir_fd=place)
        except PermissionError as error:
            raise Refused(f"{shown} cannot be read by this user: make it readable for oneadmin") from error
        except OSError as error:
            raise classify(error, f"reading {shown}") from error
        finally:
            os.close(place)
        if os.fstat(fd).st_size != entry.size:
            os.close(fd)
            raise SourceChanged(f"{shown} was written while it was moved; repeat when its VM is off")
        return SourceFile(fd, entry, shown)

    def depart(self, receipt: Receipt) -> None:
        """Remove the directory on the receipt for its copy; raises if anything in it is not what was read."""
        directory = self._directory
        directory.check_fence()
        now = listing(directory.fd, directory.path)
        same = _but_blocks(now) == _but_blocks(self.entries)
        if not same or identities(directory.fd, now, directory.path) != self._before:
            raise SourceChanged(f"{directory.path} was changed while it was moved: repeat when nobody writes to it")
        directory.mark_gone()
        manifest = tree_id(self.entries, self.manifests)
        give_up(self._files, directory.base_fd, str(directory.vm), directory.path, manifest, receipt)


def _but_blocks(entries: List[Entry]) -> List[Entry]:
    """Entries without what is allocated, which changes when the kernel writes a file out, or trims it."""
    return [entry._replace(data=0) for entry in entries]
