"""Volatile disks: what `mkimage` and `mkswap` have in common."""

from __future__ import annotations

import re

from ..core.errors import FastcopyError, Refused
from ..core.messages import Published
from ..core.paths import DiskPath, disk_path
from ..core.receipt import Receipt
from ..core.volatile_messages import SWAP, MakeDisk
from .arguments import Endpoint
from .call import Call, check_owner
from .filesystems import options
from .host import Host
from .oned import FORMATS, Disk, Vm

_MODE = 0o644  # what the stock scripts leave


async def make(call: Call, size: int, format: str, destination: str, vm_id: int, store_id: int) -> None:
    """Make a volatile disk of *size* bytes; *format* is "raw", "qcow2" or `SWAP`."""
    endpoint = Endpoint.parse(destination)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        call.phases.enter("oned")
        vm, stores = await call.ask_oned(vm_id, store_id)
        disk = disk_path(endpoint.path, stores[store_id].base_path)
        check_owner(disk, vm, endpoint.path)
        try:
            wanted = _wanted(call, size, format, attributes_of(vm, disk))

            async def work(host: Host) -> Published:
                call.phases.enter("disk")
                published: Published = await host.ask(wanted, Published)
                return published

            published = await call.converse(endpoint.host, disk, vm.seq, True, work)
            Receipt.decode(published.receipt)
        except FastcopyError as error:
            raise type(error)(f"cannot make {destination}: {error}") from error
    inside = wanted.fs or "no file system"
    call.log(f"{disk} on {endpoint.host} is made: {wanted.format}, {inside}, {size >> 20} MiB; {call.phases}")


def attributes_of(vm: Vm, disk: DiskPath) -> Disk:
    """What oned says of a VM's disk; `Refused` if it has none of that number."""
    match = re.fullmatch(r"disk\.([0-9]+)", disk.name)
    if match is None:
        raise Refused(f"{disk} is not a disk: expected disk.<N>")
    if int(match.group(1)) not in vm.disks:
        raise Refused(f"VM {vm.id} has no disk {match.group(1)}")
    return vm.disks[int(match.group(1))]


def _wanted(call: Call, size: int, format: str, attributes: Disk) -> MakeDisk:
    if format == SWAP:
        return MakeDisk(size, "raw", SWAP, "", _MODE, attributes.sparse)
    if format not in FORMATS:
        raise Refused(f"disks of the format {format!r:.40} are not made by this driver; use raw or qcow2")
    words = options(attributes.fs, call.places.datastore_conf) if attributes.fs else []
    return MakeDisk(size, format, attributes.fs, "\n".join(words), _MODE, attributes.sparse)
