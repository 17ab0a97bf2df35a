"""fastcopy push: the engine without OpenNebula; an image becomes a VM's disk on a host."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from typing import Any, Dict

from ..core import qcow2
from ..core.errors import FastcopyError, Refused
from ..core.paths import DiskPath, disk_path
from ..frontend.arguments import Endpoint
from ..frontend.places import Places
from ..frontend.progress import Snapshot, duration, size
from . import show

_LOOKS = 10  # a second, at how far it is
_VM = re.compile(r"(/.*/[0-9]{1,9})/([0-9]{1,9})/[^/]+")

HELP = "bring an image to a host, without oned"
DESCRIPTION = """\
Makes IMAGE a disk on a host, as the action `clone` does: verified chunks over parallel ssh lanes, what the host has
already is not sent, and the disk appears when it is whole.  oned is not asked and not told.

A host writes only where VMs' disks belong: PATH must be DATASTORE/VM/disk.N, in the directory of a system datastore
(its last part is the datastore's number, and it is there already).  Take a number for the VM that oned does not use.
What is there already is replaced only with --replace, and a VM that runs from it is not asked.  The datastore's
.monitor names this driver afterwards.  `fastcopy status` does not show it: it runs by itself."""
EXAMPLES = """\
  fastcopy push debian.img host1:/var/lib/one/datastores/100/999999/disk.0
  fastcopy push --format qcow2 debian.qcow2 host1:/var/lib/one/datastores/100/999999/disk.0
  fastcopy push --json big.img host1:/var/lib/one/datastores/100/999999/disk.0 | jq .seconds
  FASTCOPY_LANES=4 FASTCOPY_CACHE_ENABLE=no fastcopy push ...        settings: docs/CONFIGURATION.md

The disk is removed with: ssh host1 rm -r /var/lib/one/datastores/100/999999"""


def options(parser: argparse.ArgumentParser) -> None:
    """The words that it knows."""
    parser.add_argument("image", metavar="IMAGE", help="a file on this machine")
    parser.add_argument("destination", metavar="HOST:PATH", help="where it goes: HOST:DATASTORE/VM/disk.N")
    text = "what the image is (default: raw); it is not guessed from its content"
    parser.add_argument("--format", choices=["raw", "qcow2"], default="raw", help=text)
    parser.add_argument("--replace", action="store_true", help="replace the disk that is there")
    parser.add_argument("--allocate", action="store_true", help="no holes: the disk occupies all of its size")
    parser.add_argument("--json", action="store_true", help="for programs: how it went; no bar")


def run(words: argparse.Namespace, environ: Dict[str, str]) -> int:
    """Do it."""
    endpoint, disk = destination(words.destination)
    try:
        found = asyncio.run(_push(words, environ, endpoint, disk))
    except asyncio.CancelledError:
        raise FastcopyError("ended; what has arrived is used if this is repeated") from None
    if words.json:
        show.as_json(found)
    else:
        print(f"{found['image']} is {disk} on {endpoint.host}: {found['how']}, sent {size(found['sent'])} in chunks, "
              f"{size(found['wire'])} on the wire, {found['seconds']:.2f} s")  # fmt: skip
    return 0


def destination(text: str) -> tuple[Endpoint, DiskPath]:
    """Read HOST:PATH; `Refused` with what PATH must be."""
    endpoint = Endpoint.parse(text)
    match = _VM.fullmatch(re.sub("/+", "/", endpoint.path))
    if not endpoint.host or not match:
        raise Refused(
            f"{text} is not of the form HOST:DATASTORE/VM/disk.N, as in "
            "host1:/var/lib/one/datastores/100/999999/disk.0: a host writes nowhere else"
        )
    return endpoint, disk_path(endpoint.path, match[1])


async def _push(words: argparse.Namespace, environ: Dict[str, str], endpoint: Endpoint, disk: DiskPath) -> Any:
    from ..frontend.call import Call
    from ..frontend.image import Image
    from ..frontend.push import Push, Wanted
    from ..frontend.services import Services
    from ..frontend.threads import in_thread

    path = os.path.realpath(words.image)
    image = await in_thread(Image.open, path, [os.path.dirname(path)], words.format)
    services = Services()
    try:
        if words.format == "qcow2":
            qcow2.check_stand_alone(qcow2.read(image.fd, path), path)
        call = Call([], environ, lambda text: print(text, file=sys.stderr), services)
        if not words.replace:
            await _nothing_there(services, environ, endpoint, disk)
        key = image.identity.key(call.machine()) if image.settled else ""
        known = await in_thread(call.store.get, image)
        wanted = Wanted(image.size, image.mode, not words.allocate, words.format)
        work = asyncio.ensure_future(
            call.converse(
                endpoint.host, disk, 0, True,
                lambda host: Push(host, image, wanted, call.store, known, call.settings, key, call.phases).run(),
            )
        )  # fmt: skip
        began = asyncio.get_running_loop().time()
        try:
            pushed = await (work if words.json or not sys.stderr.isatty() else _watched(work, call.phases, path))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        seconds = asyncio.get_running_loop().time() - began
    finally:
        image.close()
        await services.close()
    return {
        "image": path, "host": endpoint.host, "disk": str(disk), "how": pushed.how, "size": image.size,
        "sent": pushed.sent, "packed": pushed.packed, "wire": pushed.wire, "seconds": round(seconds, 3),
        "manifest": pushed.receipt.manifest, "phases": call.phases.seconds,
    }  # fmt: skip


async def _nothing_there(services: Any, environ: Dict[str, str], endpoint: Endpoint, disk: DiskPath) -> None:
    from ..frontend.examination import Examination

    agents = services.connections(environ, Places.of(environ)).agents
    async with Examination.open(agents, endpoint.host) as examination:
        found = await examination.look(disk)
    if found.kind:
        raise Refused(f"there is a {found.kind} at {disk} on {endpoint.host} already: --replace replaces it")


async def _watched(work: asyncio.Future[Any], phases: Any, path: str) -> Any:
    """Draw a bar until *work* is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.fields[name]}"), TextColumn("{task.fields[phase]:8}"), BarColumn(),
        TextColumn("{task.fields[text]}"), console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None, name=os.path.basename(path), phase="", text="")
        while not work.done():
            seen = phases.progress.snapshot()
            bar.update(task, total=seen.total or None, completed=seen.done, phase=phases.now, text=shown(seen))
            await asyncio.wait([work], timeout=1 / _LOOKS)
    return await work


def shown(seen: Snapshot) -> str:
    """What stands beside the bar."""
    if not seen.total:
        return ""
    left = "" if seen.left is None else f"{duration(seen.left)} left"
    return f"{size(seen.done)} of {size(seen.total)}  {size(int(seen.rate))}/s  {left}"
