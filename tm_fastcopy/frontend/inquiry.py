"""Inquiry: what the `fastcopy` command asks a daemon, on the socket that actions come in by.

The question is the same kind of frame as a call, with a magic and a version of its own: the words `status`, or
`cancel VM DISK discard|keep` (DISK empty: all of them).  The answer is the line `H`, then lines `J<json>`: one for the
daemon, one for each call that it has (or has ended); last `X0`, or `E<sentence>` and `X1`.

A daemon that was replaced completes its calls under another name of its socket, and is asked as well.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

from async_timeout import timeout

from .. import __version__
from ..core.errors import FastcopyError
from .arguments import number
from .places import Places
from .running import MOST_SHOWN, Calls, Row

MAGIC = b"fastcopy-query 1"
FORMAT = 1
_MAX_LINE = 16 * 1024  # bytes: five texts of 256 characters, of which JSON may write each as twelve bytes
_ANSWER = 60.0  # seconds: to be cancelled, an action waits for its lanes to end, and has removed what they wrote


class Answer(NamedTuple):
    """What a daemon said: about itself, and about calls."""

    daemon: Dict[str, Any]
    calls: List[Row]


async def answer(words: Sequence[str], calls: Calls) -> List[str]:
    """The JSON lines that answer a question; `FastcopyError` for one that is not understood."""
    if list(words) == ["status"]:
        rows = calls.rows()
    elif len(words) == 4 and words[0] == "cancel" and words[3] in ("discard", "keep"):
        rows = await calls.cancel(number(words[1], "a VM"), words[2], keep=words[3] == "keep")
    else:
        raise FastcopyError(f"the daemon does not know the question {' '.join(words)[:80]!r}: it is of another version")
    about = {"format": FORMAT, "version": __version__, "pid": os.getpid()}
    return [json.dumps(item, separators=(",", ":")) for item in (about, *rows)]


def address(places: Places) -> Path:
    """The daemon's socket."""
    return places.state / f"daemon-{os.uname().nodename}.sock"


def sockets(address: Path) -> List[Path]:
    """The daemon's socket, and those of daemons that complete their calls."""
    aside = sorted(address.parent.glob(f"{address.stem}.*.sock")) if address.parent.is_dir() else []
    return [path for path in (address, *aside) if path.exists()]


def aside(name: str) -> str:
    """The name under which a daemon that takes no more calls can still be asked."""
    return f"{Path(name).stem}.{os.getpid()}.sock"


async def ask(address: Path, *words: str) -> List[Answer]:
    """What all daemons answer; none is there where nothing runs.  `FastcopyError` if one does not answer."""
    found = []
    for path in sockets(address):
        fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # by way of the directory's descriptor: sun_path holds 108 bytes
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{fd}/{path.name}", limit=_MAX_LINE)
        except PermissionError as error:
            raise FastcopyError("the daemon answers only oneadmin and root: run this as one of them") from error
        except OSError:
            continue  # a daemon that was killed left it
        finally:
            os.close(fd)
        try:
            async with timeout(_ANSWER):
                found.append(await _converse(reader, writer, words))
        except asyncio.TimeoutError:
            raise FastcopyError(f"the daemon has not answered for {_ANSWER:.0f} s; see its log") from None
        finally:
            writer.close()
    return found


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: Sequence[str]) -> Answer:
    fields = [MAGIC, b"%d" % len(words), *map(os.fsencode, words)]
    raw = b"".join(field + b"\0" for field in fields)
    writer.write(len(raw).to_bytes(4, "big") + raw)
    said: List[Dict[str, Any]] = []
    try:
        while True:
            got = await reader.readline()
            kind, text = got[:1], got[1:].decode("utf-8", "replace").strip()
            if kind == b"J" and len(said) <= MOST_SHOWN:
                said.append(json.loads(text))
            elif kind == b"E":
                raise FastcopyError(text)
            elif kind != b"H":
                break
            if not got:
                raise FastcopyError("the daemon ended before it had answered, or is of another version: ask again")
    except (OSError, ValueError) as error:
        raise FastcopyError(f"the daemon answers something that is not understood: {error}") from error
    if kind != b"X" or not said or said[0].get("format") != FORMAT:
        raise FastcopyError("the daemon is of another version and does not know this question; it ends by itself when "
                            "it has completed its calls")
    return Answer(said[0], said[1:])
