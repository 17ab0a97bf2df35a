"""Backup: what a datastore driver of OpenNebula's (rsync, restic, ...) keeps of a VM's disks, and how it comes here.

The drivers are programs.  `datastore/<driver>/ls` is given the XML of datastore, VM and backup image, and names the
disks in it; `datastore/downloader.sh` writes one of them to its standard output.  That is a qcow2 file that names no
other, whatever format the disk had: increments are merged where they are kept.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Dict, Mapping

from ..core.errors import FastcopyError, NoSpace, Refused
from ..core.files import free_bytes
from . import programs
from .oned import Oned
from .threads import in_thread

TPM = "tpm"
"""What the state of a VM's TPM is called among the disks."""

_MAX_LIST = 1 << 20  # bytes; a VM has some tens of disks, and an address some hundreds of characters
_STALL = 4 * 3600.0  # seconds without a byte: long chains of increments are merged before the first comes
_FULL = 4 << 20  # bytes free where a write has failed: nothing else made it fail
_ADDRESS = re.compile(r"[a-z][a-z0-9]{0,31}(\+rbd)?://[!-~]{1,8000}")  # printable, no blank
_DRIVER = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True)
class Documents:
    """XML of the VM, of the image that holds its backup, and of that image's datastore."""

    vm: ElementTree.Element
    image: ElementTree.Element
    datastore: ElementTree.Element

    @classmethod
    def ask(cls, oned: Oned, vm: int, image: int) -> Documents:
        """Ask oned; blocking.  `Refused` if the image is no backup of the VM."""
        document = oned.ask("one.image.info", image, False)
        vms = [item.text for item in document.iterfind("VMS/ID")]
        if vms != [str(vm)]:
            raise Refused(f"image {image} is no backup of VM {vm}")
        store = int(document.findtext("DATASTORE_ID") or "-1")
        # Decrypted: the drivers need the password of their repository.
        return cls(oned.ask("one.vm.info", vm, False), document, oned.ask("one.datastore.info", store, True))

    @property
    def size(self) -> int:
        """What the whole backup holds, in bytes."""
        text = self.image.findtext("SIZE") or ""
        return int(text) << 20 if re.fullmatch("[0-9]{1,12}", text) else 0

    @property
    def driver(self) -> str:
        """The datastore's driver; `Refused` for a name that is none."""
        name = (self.datastore.findtext("DS_MAD") or "").strip().lower()
        if not _DRIVER.fullmatch(name):
            raise Refused(f"the datastore of the backup has the driver {name!r:.80}, which is no name of one")
        return name

    def encode(self) -> bytes:
        """As datastore drivers read it."""
        root = ElementTree.Element("DS_DRIVER_ACTION_DATA")
        root.extend([self.datastore, self.vm, self.image])
        encoded: bytes = ElementTree.tostring(root, encoding="utf-8")
        return encoded


class Backups:
    """The datastore drivers in OpenNebula's *remotes*."""

    def __init__(self, remotes: Path, environ: Mapping[str, str]) -> None:
        self._datastore, self._environ = remotes / "datastore", programs.environment(environ)

    async def disks(self, documents: Documents, increment: int) -> Dict[str, str]:
        """The addresses of all disks, up to *increment* (-1: the last), by their number; and `TPM`, if it is there."""
        program = self._datastore / documents.driver / "ls"
        with tempfile.TemporaryFile() as output:
            argv = [str(program), "-i", str(increment)]
            await programs.run(argv, self._environ, output, documents.encode())
            output.seek(0)
            raw = output.read(_MAX_LIST + 1)
        return parse_list(raw, str(program))

    async def fetch(self, address: str, file: IO[bytes], shown: str) -> None:
        """Write what is at an address to an open file; `NoSpace` if that is full."""
        argv = [str(self._datastore / "downloader.sh"), "--nodecomp", address, "-"]

        def size() -> int:
            return os.fstat(file.fileno()).st_size

        try:
            await programs.run(argv, self._environ, file, stall=_STALL, progress=size)
        except FastcopyError as error:
            free = await in_thread(free_bytes, file.fileno())
            if free < _FULL:
                raise NoSpace(f"there is no room on the front-end for {shown} ({free >> 20} MiB free)") from error
            raise FastcopyError(f"{shown} cannot be fetched: {error}") from error


def parse_list(raw: bytes, program: str) -> Dict[str, str]:
    """What `ls` printed; `FastcopyError` if it is not a list of disks."""
    try:
        found = json.loads(raw) if len(raw) <= _MAX_LIST else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FastcopyError(f"{program} did not print a list of disks")
    disks: Dict[str, str] = {}
    for name, address in found.items():
        if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
            raise FastcopyError(f"{program} names no address for {name!r:.80}")
        if "+rbd://" in address:
            raise Refused("the backup was made of disks in Ceph, and cannot be restored as files")
        disks[name] = address
    return disks
