"""qemu-img on the front-end: makes of a backup, which is a qcow2 file, what a disk must be.

It is given open files and formats, so it probes nothing and follows no name; the header must have been looked at before
(`core/qcow2.py`), because a backing file would be opened by its name.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any, List, Mapping, Sequence

from ..core.errors import FastcopyError
from . import programs

PROGRAM = "qemu-img"
_MAX_INFO = 16 << 20  # bytes; a line for each bitmap and internal snapshot
_STALL = 600.0  # seconds without a block more: what it writes are zeros, or the disk hangs
_MAX_BITMAPS = 65535  # of an image, by the format


async def to_raw(source: int, target: int, environ: Mapping[str, str], shown: str) -> None:
    """Write what the guest sees in the qcow2 image *source* to the empty file *target*, zeros as holes."""

    def written() -> object:
        status = os.fstat(target)
        return status.st_blocks, status.st_size

    await _run(["convert", "-f", "qcow2", "-O", "raw", _name(source), _name(target)], [source, target], environ, shown,
               written)  # fmt: skip


async def drop_bitmaps(fd: int, environ: Mapping[str, str], shown: str) -> None:
    """Remove the dirty bitmaps of a qcow2 image: they count from an earlier backup, and the next would believe them."""
    raw = await _run(["info", "-f", "qcow2", "--output", "json", _name(fd)], [fd], environ, shown)
    try:
        data: Any = json.loads(raw)["format-specific"]["data"]
        names: List[str] = [str(item["name"]) for item in data.get("bitmaps", [])][:_MAX_BITMAPS]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FastcopyError(f"qemu-img says of {shown} what is no description of a qcow2 image") from error
    for name in names:
        await _run(["bitmap", "--remove", "-f", "qcow2", "--", _name(fd), name], [fd], environ, shown)


def _name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


async def _run(
    words: Sequence[str], fds: Sequence[int], environ: Mapping[str, str], shown: str, progress: Any = lambda: None
) -> bytes:
    with tempfile.TemporaryFile() as output:
        try:
            await programs.run(
                [PROGRAM, *words], environ, output, pass_fds=fds, stall=_STALL, progress=progress
            )
        except FastcopyError as error:
            text = str(error)
            for fd in fds:
                text = text.replace(_name(fd), shown)
            raise FastcopyError(f"{shown} cannot be made a disk: {text}") from error
        output.seek(0)
        return output.read(_MAX_INFO)
