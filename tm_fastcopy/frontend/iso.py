"""ISO: the image that a VM's context is: ISO 9660 with Rock Ridge and Joliet, and the volume id CONTEXT.

Made by pycdlib in this process: 1.2 ms for a context of three files, where xorriso takes 0.1 s, most of which it
sleeps.  Every file has three names: a short one that hardly anybody sees (ISO 9660), its own (Rock Ridge), and its own
without what Windows does not allow (Joliet).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING, Dict, List, Mapping, Set, Tuple

from ..core.errors import FastcopyError
from .contents import Contents, Name, Piece

if TYPE_CHECKING:
    import pycdlib

VOLUME = "CONTEXT"  # what the guest looks for

_JOLIET_FORBIDDEN = re.compile(r"[*/:;?\\]")
_JOLIET_LONGEST = 64  # characters of UTF-16


def write(contents: Contents, fd: int) -> None:
    """Write the image into the open, empty file *fd*; `SourceChanged` if one of its files is written meanwhile."""
    import pycdlib  # 50 ms, for this action alone
    from pycdlib.pycdlibexception import PyCdlibException

    iso = pycdlib.PyCdlib()
    with contextlib.ExitStack() as opened:
        try:
            iso.new(interchange_level=3, vol_ident=VOLUME, joliet=3, rock_ridge="1.09")
            names = _Names(contents.pieces)
            for name in _in_order(contents.pieces):
                _add(iso, names, name, contents.pieces[name], opened)
            with os.fdopen(os.dup(fd), "wb") as out:
                iso.write_fp(out)
            iso.close()
        except PyCdlibException as error:
            raise FastcopyError(f"the image of the context cannot be made: {error}") from error
    contents.check()


def _in_order(pieces: Mapping[Name, Piece]) -> List[Name]:
    """Directories before what is in them."""
    return sorted(pieces, key=lambda name: (len(name), name))


def _add(iso: pycdlib.PyCdlib, names: _Names, name: Name, piece: Piece, opened: contextlib.ExitStack) -> None:
    short, joliet, own = names.short(name), names.joliet(name), name[-1]
    mode = piece.status.st_mode & ~0o7000
    if piece.is_directory:
        iso.add_directory(short, rr_name=own, joliet_path=joliet, file_mode=mode)
    elif piece.is_link:
        iso.add_symlink(f"{short};1", rr_symlink_name=own, rr_path=piece.target)  # Joliet has no links
    elif piece.fd is not None:
        file = opened.enter_context(os.fdopen(os.dup(piece.fd), "rb"))
        iso.add_fp(file, piece.status.st_size, f"{short};1", own, joliet, stat.S_IFREG | 0o644)
    else:
        iso.add_file(piece.path, f"{short};1", own, joliet, mode)


class _Names:
    """The paths in the image, unique in each directory whatever has to be cut off."""

    def __init__(self, pieces: Mapping[Name, Piece]) -> None:
        self._short: Dict[Name, str] = {(): ""}
        self._joliet: Dict[Name, str] = {(): ""}
        taken: Set[Tuple[str, Name, str]] = set()
        for name in _in_order(pieces):
            above, directory = name[:-1], pieces[name].is_directory
            for kind, paths in (("short", self._short), ("joliet", self._joliet)):
                number = 0
                while True:
                    made = _short(name[-1], number, directory) if kind == "short" else _joliet(name[-1], number)
                    if (kind, above, made.lower()) not in taken:
                        break
                    number += 1
                taken.add((kind, above, made.lower()))
                paths[name] = f"{paths[above]}/{made}"

    def short(self, name: Name) -> str:
        """Its path in ISO 9660, without a version."""
        return self._short[name]

    def joliet(self, name: Name) -> str:
        """Its path in Joliet."""
        return self._joliet[name]


def _short(name: str, number: int, directory: bool) -> str:
    """Eight characters, and three; *number* tells those apart that would be the same."""
    parts = (name, "") if directory else os.path.splitext(name)
    stem, suffix = (re.sub(r"[^A-Z0-9_]", "_", part.upper()) for part in (parts[0], parts[1].lstrip(".")))
    tail = f"_{number}" if number else ""
    short = stem[: 8 - len(tail)] + tail
    return short if directory else f"{short}.{suffix[:3]}"


def _joliet(name: str, number: int) -> str:
    """The name, with an underscore for what Joliet does not allow, cut at its end but for the suffix."""
    stem, suffix = os.path.splitext(_JOLIET_FORBIDDEN.sub("_", name))
    tail = (f"_{number}" if number else "") + suffix[:8]
    room = _JOLIET_LONGEST - _units(tail)
    while _units(stem) > room:
        stem = stem[:-1]
    return stem + tail


def _units(text: str) -> int:
    return len(text.encode("utf-16-be")) // 2
