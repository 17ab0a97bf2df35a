"""What oned passes on an entry point's command line."""

from __future__ import annotations

import re
from typing import List, NamedTuple, Sequence, Tuple

from ..core.errors import Refused

# A name or an address, also IPv6; never something that ssh could take for an option.
_HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:%\[\]-]{0,254}")


class Endpoint(NamedTuple):
    """`host:path`; the host is "" where oned gave a path alone."""

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `host:/path` or `/path`; `Refused` for anything else."""
        if text.startswith("/"):
            return cls("", text)
        host, separator, path = text.partition(":/")
        if not separator or not _HOST.fullmatch(host):
            raise Refused(f"{text!r} is not of the form HOST:/PATH")
        return cls(host, "/" + path)


def directory_and_name(path: str) -> Tuple[str, str]:
    """The VM's directory and the name in it that *path* looks like; ("<path>", "") for a directory.  Checks nothing."""
    clean = re.sub("/+", "/", path).rstrip("/")  # a directory is named by a number, and so is its parent
    match = re.fullmatch(r"(.*/[0-9]+)/([^/]*[^0-9/][^/]*)", clean)
    return (match.group(1), match.group(2)) if match else (clean, "")


def number(text: str, what: str) -> int:
    """Read an id; `Refused` if it is none."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Refused(f"{text!r} is not the id of {what}")
    return int(text)


def exactly(argv: Sequence[str], names: str) -> List[str]:
    """Return the arguments if there are as many as *names* (separated by blanks) has words."""
    wanted = names.split()
    if len(argv) != len(wanted):
        raise Refused(f"{len(argv)} arguments were given where {len(wanted)} are needed: {names}")
    return list(argv)
