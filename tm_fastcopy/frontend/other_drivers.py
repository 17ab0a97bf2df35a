"""Other drivers: oned calls only the system datastore's driver around a live migration, and that one must call those of
the VM's other disks, with the same arguments, the same standard input and its own name behind them.

Not all of them: the stock drivers whose disks are files in the VM's directory have nothing else to do than what is done
here, and they remove that directory, on the strength of host names, whoever calls them: `local` and `ssh` always,
`shared` and `qcow2` after a move to another datastore.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import xml.etree.ElementTree as ElementTree
from typing import List

from async_timeout import timeout

from ..core.errors import FastcopyError
from .call import Call
from .host import DRIVER

IN_THE_DIRECTORY = (DRIVER, "local", "qcow2", "shared", "ssh")
"""Drivers whose disks are files in the VM's directory, which is ours to prepare and to remove."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}")
_LONGEST = 600.0  # seconds for one of them: some activate volumes on hosts, none copies
_LOG = re.compile(r"(INFO|DEBUG|WARN|ERROR):\s+(.*)")


async def call_others(call: Call, action: str) -> None:
    """Call the drivers of the VM's other disks; `FastcopyError` if one of them fails, or cannot be named."""
    for name in others(call.stdin):
        script = call.places.drivers / name / action
        if not script.exists():
            raise FastcopyError(f"a disk of the VM belongs to the driver {name}, which has no {action}: see {script}")
        await _run(call, name, [str(script), *call.argv, DRIVER])


def others(given: str) -> List[str]:
    """The drivers of the disks in a VM's XML (in base64) that have something to do, each once."""
    try:
        root = ElementTree.fromstring(base64.b64decode(given.strip(), validate=False))
    except (binascii.Error, ValueError, ElementTree.ParseError) as error:
        raise FastcopyError("what came on standard input is not the XML of a VM in base64, as oned sends it") from error
    names = [(item.text or "").strip() for item in root.iterfind("TEMPLATE/DISK/TM_MAD")]
    for name in names:
        if name and not _NAME.fullmatch(name):
            raise FastcopyError(f"{name[:80]!r} is not the name of a driver")
    return [name for name in dict.fromkeys(names) if name and name not in IN_THE_DIRECTORY]


async def _run(call: Call, name: str, argv: List[str]) -> None:
    environ = {"PATH": os.environ.get("PATH", os.defpath), **call.environ}
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env=environ, start_new_session=True,
    )  # fmt: skip
    try:
        async with timeout(_LONGEST):
            _, said = await process.communicate(call.stdin.encode())
    except asyncio.TimeoutError:
        raise FastcopyError(f"the driver {name} has not ended after {_LONGEST:.0f} s: {argv[0]}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = said.decode("utf-8", "replace").splitlines()
    errors = [line.strip() for line in lines if line.strip() and not _LOG.fullmatch(line.strip())]
    for line in lines:
        match = _LOG.fullmatch(line.strip())
        if match and match.group(1) != "DEBUG":
            call.log(f"{name} says: {match.group(2)}")
    if process.returncode:
        raise FastcopyError(f"the driver {name} failed: {' '.join(errors) or f'exit code {process.returncode}'}")
