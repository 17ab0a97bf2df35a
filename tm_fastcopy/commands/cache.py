"""fastcopy cache: looks after the images that hosts keep."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Tuple

from ..core.errors import FastcopyError, Refused
from ..frontend.kinds import Bytes
from ..frontend.progress import size
from . import show

if TYPE_CHECKING:
    from ..core.cache_messages import EntryRow
    from ..frontend.upkeep import CacheUpkeep

_SHORT = 12  # characters of an image's name that are shown
_LEAST = 4  # characters that name one

HELP = "look after the images that hosts keep"
DESCRIPTION = """\
A host keeps images in a cache beside its system datastores, one for each file system.  HOST:DATASTORE names the system
datastore by its number or its path; without one, all of this driver are looked at.  An image is named by its digest, or
the first characters of it, as `ls` shows them.  The cache is never the only copy of anything: what is removed is
fetched again when it is needed."""
EXAMPLES = """\
  fastcopy cache ls host1                        what is there, the image used last first
  fastcopy cache pin host1 3f5a9c0e11d2          keep it, whatever room is needed for
  fastcopy cache rm host1:100 3f5a9c0e11d2
  fastcopy cache verify host1 3f5a9c0e11d2       read it now, and compare it with its digests
  fastcopy cache scrub host1 --rate 50M          all of them, on from where the last scrub stopped
  fastcopy cache ls host1:/var/lib/one/datastores/100 --json"""
_VERBS = {
    "ls": "list the images",
    "pin": "keep an image, whatever room is needed for",
    "unpin": "let an image go again when room is needed",
    "rm": "remove an image",
    "verify": "read an image, and put it aside if it is damaged",
    "scrub": "read all images, and put damaged ones aside",
}

Work = Callable[["CacheUpkeep", List["EntryRow"]], Awaitable[Any]]


def options(parser: argparse.ArgumentParser) -> None:
    """The words that it knows."""
    verbs = parser.add_subparsers(dest="verb", metavar="WHAT", required=True)
    for verb, text in _VERBS.items():
        below = verbs.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.  See fastcopy cache -h.")
        below.add_argument("host", metavar="HOST[:DATASTORE]", help="a host; a system datastore by number or path")
        if verb not in ("ls", "scrub"):
            below.add_argument("image", metavar="IMAGE", help="the first characters of its digest")
        if verb in ("verify", "scrub"):
            below.add_argument("--rate", default="0", help="bytes a second, as in 50M (default: as fast as it goes)")
        below.add_argument("--json", action="store_true", help="for programs")


def run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    """Do it.  The exit code is 1 if something damaged was found."""
    return asyncio.run(_run(words, environ))


async def _run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    from ..frontend.threads import in_thread
    from ..frontend.upkeep import CacheUpkeep, NotThere
    from .hosts import connected, host_and_bases
    from .names import names

    prefix = _prefix(words.image) if hasattr(words, "image") else ""
    rate = _rate(words.rate) if hasattr(words, "rate") else 0
    host, bases = await in_thread(host_and_bases, words.host, environ)
    found: List[Dict[str, Any]] = []
    seen = set()
    async with connected(environ) as connections:
        for base in bases:
            try:
                async with CacheUpkeep.open(connections.agents, host, base) as cache:
                    if cache.opened.path in seen:
                        continue  # one for several datastores
                    seen.add(cache.opened.path)
                    rows = [row for row in await cache.entries() if row.manifest.startswith(prefix)]
                    found.append({"cache": cache, "path": cache.opened.path, "entries": rows, "base": base})
                    if words.verb == "scrub":
                        found[-1]["damaged"] = await _scrub(cache, "", rate, sum(row.size for row in rows), words.json)
            except NotThere:
                if base == bases[-1] and not found:
                    raise
        if words.verb == "scrub":
            return _scrubbed(words, host, found)
        if words.verb == "ls":
            sizes = {row.size for item in found for row in item["entries"]}
            return _listed(words, host, found, await in_thread(names, environ, sizes))
        base, row = _one(words.image, host, found)
        async with CacheUpkeep.open(connections.agents, host, base) as cache:
            return await _with(words, host, cache, row, rate)


def _prefix(text: str) -> str:
    if len(text) < _LEAST or set(text.lower()) - set("0123456789abcdef"):
        raise Refused(f"{text!r} is not the beginning of a digest ({_LEAST} characters or more); see fastcopy cache ls")
    return text.lower()


def _rate(text: str) -> int:
    try:
        return Bytes(64 * 1024).read(text)
    except ValueError:
        raise Refused(f"--rate is {text!r}; it must be {Bytes(64 * 1024).allowed}") from None


def _one(text: str, host: str, found: List[Dict[str, Any]]) -> Tuple[str, EntryRow]:
    """The one image that is meant, and a datastore of its cache."""
    rows = [(item["base"], row) for item in found for row in item["entries"]]
    if len(rows) == 1:
        return rows[0]
    if not rows:
        paths = " and ".join(item["path"] for item in found)
        raise FastcopyError(f"there is no image {text} in {paths} on {host}; see fastcopy cache ls {host}")
    raise FastcopyError(f"{text} is the beginning of {len(rows)} images on {host}: give more of it, or the datastore")


async def _with(words: argparse.Namespace, host: str, cache: CacheUpkeep, row: EntryRow, rate: int) -> int:
    """Do with one image what is wanted."""
    damaged, name = 0, row.manifest[:_SHORT]
    if words.verb in ("pin", "unpin"):
        await cache.pin(row.manifest, words.verb == "pin")
        text = f"image {name} on {host} is {'kept' if words.verb == 'pin' else 'not kept any more'}"
    elif words.verb == "rm":
        await cache.remove(row.manifest)
        text = f"image {name} on {host} is gone; {size(row.exclusive)} were its own"
    else:
        damaged = await _scrub(cache, row.manifest, rate, row.size, words.json)
        text = f"image {name} on {host} is {'damaged, was put aside, and is fetched again' if damaged else 'sound'}"
    if words.json:
        show.as_json({"host": host, "image": row.manifest, "did": words.verb, "damaged": damaged})
    else:
        print(text)
    return 1 if damaged else 0


async def _scrub(cache: CacheUpkeep, manifest: str, rate: int, total: int, quiet: bool) -> int:
    """Read, and return how many damaged images were found."""
    damaged = read = 0
    async for done in cache.scrub(manifest, rate):
        damaged += done.damaged
        read += done.read
        if not quiet and sys.stderr.isatty():
            print(f"\r{size(read)} of {size(total)} read  ", end="\n" if done.finished else "", file=sys.stderr)
    return damaged


def _scrubbed(words: argparse.Namespace, host: str, found: List[Dict[str, Any]]) -> int:
    damaged = sum(item["damaged"] for item in found)
    if words.json:
        caches = [{"path": item["path"], "images": len(item["entries"]), "damaged": item["damaged"]} for item in found]
        show.as_json({"host": host, "caches": caches})
    else:
        for item in found:
            said = f"{item['damaged']} damaged, put aside, and fetched again" if item["damaged"] else "all sound"
            print(f"{item['path']} on {host}: {len(item['entries'])} images, {said}")
    return 1 if damaged else 0


def _listed(words: argparse.Namespace, host: str, found: List[Dict[str, Any]], known: Dict[str, str]) -> int:
    if words.json:
        show.as_json({
            "host": host,
            "caches": [
                {
                    "path": item["path"], "reflink": item["cache"].opened.reflink,
                    "total": item["cache"].opened.total, "free": item["cache"].opened.free,
                    "images": [{**row._asdict(), "name": known.get(row.manifest)} for row in item["entries"]],
                }
                for item in found
            ],
        })  # fmt: skip
        return 0
    console = show.console()
    for item in found:
        opened, rows = item["cache"].opened, item["entries"]
        room = f"{size(opened.free)} of {size(opened.total)} free"
        disks = "reflinks" if opened.reflink else "copies"
        console.print(f"{item['path']} on {host}: {len(rows)} images, {room}, disks are {disks}")
        if rows:
            made = show.table("IMAGE", "SIZE", "ON DISK", "ITS OWN", "PIECES", "USED", "CHECKED", "NAME", "",
                              right="SIZE,ON DISK,ITS OWN,PIECES,USED,CHECKED")  # fmt: skip
            for row in rows:
                made.add_row(*_cells(row, known.get(row.manifest, "")))
            console.print(made)
    return 0


def _cells(row: EntryRow, name: str) -> List[str]:
    state = "damaged" if row.bad else "pinned" if row.pinned else ""
    return [
        row.manifest[:_SHORT], size(row.size), size(row.allocated), size(row.exclusive), str(row.extents or "-"),
        show.ago(row.used), show.ago(row.scrubbed), name, state,
    ]  # fmt: skip
