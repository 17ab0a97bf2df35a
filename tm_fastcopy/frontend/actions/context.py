"""context: makes the image that tells a VM who it is, and puts it beside the VM's disks.

    context FILE[:NAME]|ADDRESS...  HOST:<system datastore>/<VM>/disk.<N>  VM  DATASTORE
"""

from __future__ import annotations

import dataclasses
import os
from typing import List

from ...core.errors import FastcopyError, Refused, classify
from ...core.paths import DiskPath, disk_path
from .. import iso
from ..arguments import Endpoint, number
from ..call import Call, check_owner, datastore
from ..contents import Contents
from ..download import fetch
from ..image import Image
from ..oned import Vm
from ..push import Push, Wanted
from ..threads import in_thread

_MODE = 0o644  # what the stock scripts leave


async def run(call: Call) -> None:
    """Make the image; raise `FastcopyError` with nothing new at its name otherwise."""
    if len(call.argv) < 4:
        needed = "4 or more are needed: FILE... HOST:DISK VM_ID DATASTORE_ID"
        raise Refused(f"{len(call.argv)} arguments were given where {needed}")
    *words, destination, vm_id, store_id = call.argv
    endpoint = Endpoint.parse(destination)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        await _context(call, words, endpoint, number(vm_id, "a VM"), number(store_id, "a datastore"))


async def _context(call: Call, words: List[str], endpoint: Endpoint, vm_id: int, store_id: int) -> None:
    call.phases.enter("oned")
    vm, stores = await call.ask_oned(vm_id, store_id)
    store = datastore(stores, store_id)
    disk = disk_path(endpoint.path, store.base_path)
    check_owner(disk, vm, endpoint.path)
    _check_free(vm, disk)
    settings = call.configuration.settings(store)
    # It is made for one VM, a moment ago: no cache, so nothing to share blocks with.
    settings = dataclasses.replace(settings, clone="auto", cache=dataclasses.replace(settings.cache, enable=False))
    try:
        call.phases.enter("image")
        image = await in_thread(_make, call, words)
        try:
            wanted = Wanted(image.size, _MODE, True)
            await call.converse(
                endpoint.host,
                disk,
                vm.seq,
                True,
                lambda host: Push(host, image, wanted, call.store, None, settings, "", call.phases).run(),
            )
        finally:
            image.close()
    except FastcopyError as error:
        raise type(error)(f"cannot make the context {endpoint.host}:{endpoint.path}: {error}") from error
    call.log(f"{disk} on {endpoint.host} is the context: {image.size >> 10} KiB; {call.phases}")


def _check_free(vm: Vm, disk: DiskPath) -> None:
    """Raise `Refused` if the name is that of a disk: what is in it would be lost."""
    if disk.name in (*(f"disk.{number}" for number in vm.disks), "kernel", "initrd"):
        raise Refused(f"{disk} is a disk of VM {vm.id}, which no context may replace")


def _make(call: Call, words: List[str]) -> Image:
    """The image, in a file that has no name and is gone when it is closed, whatever happens."""
    state = call.places.state
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise classify(error, f"opening {state}") from error
    try:
        contents = Contents.of(words, lambda address: fetch(call.files, directory, address))
        try:
            fd = call.files.create_unnamed(directory)
            try:
                iso.write(contents, fd)
            except BaseException:
                os.close(fd)
                raise
        finally:
            contents.close()
    except OSError as error:
        raise classify(error, f"writing its image, for which there must be room in {state}") from error
    finally:
        os.close(directory)
    return Image("the context", fd)
