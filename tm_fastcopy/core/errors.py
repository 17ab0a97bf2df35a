"""Errors, typed by what whoever catches them should do next.

The text of an error is one sentence that an administrator can act on; it is what oned shows.  The class says what the
program does: dial again, fetch again, or give up.  `classify` is the only place that turns an error of the operating
system into one of ours, and it looks at the error number, never at a text.
"""

from __future__ import annotations

import errno
from typing import Dict, Type


class FastcopyError(Exception):
    """The action failed; its text is one sentence that says what to do.  Nothing is retried."""

    kind = "give-up"


class LinkLost(FastcopyError):
    """The other machine stopped answering, or the connection broke: dialling again may help."""

    kind = "reconnect"


class BadChunk(FastcopyError):
    """A chunk is not what its digest says: fetching it again may help, using it never does."""

    kind = "refetch"


class SourceChanged(FastcopyError):
    """The file was written while we read it: the action can be repeated when the writer is done."""

    kind = "source-changed"


class Refused(FastcopyError):
    """What was asked for is not allowed or makes no sense (a path outside the datastores, a bad argument)."""

    kind = "refused"


class NoSpace(FastcopyError):
    """The destination is full.  The text names what is needed and what there is."""

    kind = "no-space"


class Superseded(FastcopyError):
    """A newer action has taken this VM directory over: stop, and touch nothing more."""

    kind = "superseded"


class ProtocolError(FastcopyError):
    """The peer broke the protocol.  The connection is of no further use."""

    kind = "protocol"


_BY_KIND: Dict[str, Type[FastcopyError]] = {
    cls.kind: cls
    for cls in (FastcopyError, LinkLost, BadChunk, SourceChanged, Refused, NoSpace, Superseded, ProtocolError)
}

_BY_ERRNO: Dict[int, Type[FastcopyError]] = {
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EFBIG: NoSpace,
    errno.EPIPE: LinkLost,
    errno.ECONNRESET: LinkLost,
    errno.ETIMEDOUT: LinkLost,
    errno.EHOSTUNREACH: LinkLost,
    errno.ENETUNREACH: LinkLost,
    errno.ELOOP: Refused,
}


def of_kind(kind: str, text: str) -> FastcopyError:
    """Rebuild an error that the peer sent; an unknown kind is a plain `FastcopyError`."""
    return _BY_KIND.get(kind, FastcopyError)(text)


def classify(error: BaseException, doing: str) -> FastcopyError:
    """Turn any exception into one of ours.  *doing* says what was attempted ("writing disk.0 on host1")."""
    if isinstance(error, FastcopyError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        cls = _BY_ERRNO.get(error.errno, FastcopyError)
        if error.errno == errno.ELOOP:
            return cls(f"{doing}: there is a symbolic link in the way, and links below a datastore are not followed")
        return cls(f"{doing}: {error.strerror or error}")
    return FastcopyError(f"{doing}: {type(error).__name__}: {error}".replace("\n", " "))
