"""Contents of a context: which files go into it, under which names.

What oned passes is, for each: a path; `path:name`, with the name in quotes if it is an image's of a files datastore
(oned does not know that blanks end a word, so a name may be several words); or the address of a file on the web.
A directory goes in with all that is below it, links in it as links, as the stock driver does it.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import unquote, urlsplit

from ..core.errors import Refused, SourceChanged, classify
from ..core.identity import Identity

MAX_FILES = 1000  # names in one context: a handful in practice, and the ISO's tables are made in memory
MAX_BYTES = 2 << 30  # of all files together; it goes to the host for every start of the VM
_DEEPEST = 7  # directories below each other: ISO 9660 has eight levels
_LONGEST = 200  # bytes of a name: Rock Ridge keeps it in one record of 255 bytes with others

_WEB = re.compile(r"https?://", re.IGNORECASE)

Name = Tuple[str, ...]
"""A path in the context: its parts."""


class Piece(NamedTuple):
    """One file, directory or link of a context: its path here; what it is; where a link leads; or the open file."""

    path: str
    status: os.stat_result
    target: str = ""
    fd: Optional[int] = None

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        """Whether it is one."""
        return stat.S_ISLNK(self.status.st_mode)

    def check(self) -> None:
        """Raise `SourceChanged` if the file was written since it was looked at."""
        if self.fd is not None or self.is_link or self.is_directory:
            return
        if Identity.of(os.stat(self.path)) != Identity.of(self.status):
            raise SourceChanged(f"{self.path} was written while it was put into the context; repeat the action")


Fetch = Callable[[str], int]
"""Fetches an address into a file without a name; returns its descriptor."""


class Contents:
    """What goes into one context.  `close` it."""

    def __init__(self) -> None:
        self.pieces: Dict[Name, Piece] = {}
        self._total = 0

    @classmethod
    def of(cls, words: Sequence[str], fetch: Fetch) -> Contents:
        """Look at everything that oned names; what comes later replaces what has the same name."""
        contents = cls()
        try:
            for source, name in _sources(words):
                if _WEB.match(source):
                    contents._add_fetched(source, fetch)
                else:
                    contents._add_file(source, name)
        except BaseException:
            contents.close()
            raise
        return contents

    def _add_fetched(self, address: str, fetch: Fetch) -> None:
        name = os.path.basename(unquote(urlsplit(address).path))
        if not name:
            raise Refused(f"{address} names no file, so the context has no name for it")
        fd = fetch(address)
        self._put((_part(name, address),), Piece(address, os.fstat(fd), fd=fd))

    def _add_file(self, path: str, name: str) -> None:
        if not path.startswith("/"):
            raise Refused(f"{path!r:.200} is not an absolute path, so it cannot go into the context")
        clean = path.rstrip("/") or "/"
        wanted = tuple(_part(part, path) for part in (name or os.path.basename(clean)).split("/"))
        try:
            self._walk(wanted, clean, os.stat(clean))  # a link that is named by itself is followed, as `cp` does
        except OSError as error:
            raise classify(error, f"putting {path} into the context") from error

    def _walk(self, name: Name, path: str, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            self._put(name, Piece(path, status, os.readlink(path)))
        elif stat.S_ISREG(status.st_mode):
            if not os.access(path, os.R_OK):
                raise Refused(f"{path} cannot be read by this user, so it cannot go into the context")
            self._put(name, Piece(path, status))
        elif stat.S_ISDIR(status.st_mode):
            if len(name) > _DEEPEST:
                raise Refused(f"{path} is nested deeper than the {_DEEPEST} directories that a context can hold")
            self._put(name, Piece(path, status))
            for entry in sorted(os.listdir(path)):
                below = f"{path}/{entry}"
                self._walk((*name, _part(entry, below)), below, os.lstat(below))
        else:
            raise Refused(f"{path} is neither a file nor a directory, so it cannot go into the context")

    def _put(self, name: Name, piece: Piece) -> None:
        before = self.pieces.get(name)
        if before is not None and before.is_directory != piece.is_directory:
            raise Refused(f"the context would have a file and a directory named {'/'.join(name)}: rename one of them")
        for depth in range(1, len(name)):  # of a name with slashes in it
            above = self.pieces.get(name[:depth])
            if above is None or not above.is_directory:
                raise Refused(f"the context has no directory {'/'.join(name[:depth])} for {piece.path}")
        if before is not None and before.fd is not None:
            os.close(before.fd)
        self.pieces[name] = piece
        self._total += 0 if piece.is_directory else piece.status.st_size
        if len(self.pieces) > MAX_FILES:
            raise Refused(f"the context would have more than {MAX_FILES} files: pack them into one")
        if self._total > MAX_BYTES:
            raise Refused(f"the context would have more than {MAX_BYTES >> 20} MiB: use an image for so much")

    def check(self) -> None:
        """Raise `SourceChanged` if anything was written since it was looked at."""
        for piece in self.pieces.values():
            piece.check()

    def close(self) -> None:
        """Let go of what was fetched."""
        for piece in self.pieces.values():
            if piece.fd is not None:
                os.close(piece.fd)
        self.pieces.clear()


def _sources(words: Sequence[str]) -> Iterator[Tuple[str, str]]:
    """(path or address, name or "") of each file."""
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        path, colon, name = word.partition(":")
        if _WEB.match(word) or not colon:
            yield word, ""
            continue
        if name.startswith("'"):
            parts: List[str] = [name]
            while waiting and not (len(" ".join(parts)) > 1 and parts[-1].endswith("'")):
                parts.append(waiting.pop(0))
            quoted = " ".join(parts)
            if len(quoted) < 3 or not quoted.endswith("'"):
                raise Refused(f"{word!r:.200} begins a name in quotes that has no end")
            name = quoted[1:-1]
        if not name:
            raise Refused(f"{word!r:.200} has no name after the colon")
        yield path, name


def _part(name: str, where: str) -> str:
    """One part of a name in the context, if it can be one."""
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError:
        raw = b""
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or not 0 < len(raw) <= _LONGEST:
        raise Refused(f"{name!r:.200} ({where[:200]!r}) cannot be the name of a file in a context: rename it")
    return name
