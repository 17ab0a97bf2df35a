"""clone: puts a copy of an image where a VM will use it.

    clone FE:SOURCE HOST:<system datastore>/<VM>/disk.<N>|kernel|initrd  VM  DATASTORE
"""

from __future__ import annotations

import re
from typing import List, Optional

from ...core import qcow2
from ...core.errors import FastcopyError
from ...core.paths import DiskPath, disk_path
from ..arguments import Endpoint, exactly, number
from ..call import Call, check_owner, datastore_of
from ..host import Host
from ..image import Image, ImageTree
from ..oned import Disk, Vm, check_format
from ..push import Push, Pushed, Wanted
from ..push_tree import PushTree, image_keys
from ..threads import in_thread

_MIB = 1024 * 1024


async def run(call: Call) -> None:
    """Make the disk; raise `FastcopyError` with nothing at its name otherwise."""
    source, destination, vm_id, store_id = exactly(call.argv, "FE:SOURCE HOST:DISK VM_ID DATASTORE_ID")
    endpoint = Endpoint.parse(destination)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        await _clone(call, source, endpoint, number(vm_id, "a VM"), number(store_id, "a datastore"))


async def _clone(call: Call, source: str, endpoint: Endpoint, vm_id: int, store_id: int) -> None:
    destination = call.argv[1]
    call.phases.enter("oned")
    vm, stores = await call.ask_oned(vm_id, store_id)
    # The datastore that oned names is the image's.
    disk = disk_path(endpoint.path, datastore_of(stores, endpoint.path, system=True).base_path)
    check_owner(disk, vm, endpoint.path)
    try:
        attributes = _attributes(vm, disk)
        format = check_format(attributes) if attributes else "raw"
    except FastcopyError as error:
        raise type(error)(f"cannot clone to {destination}: {error}") from error
    origin = datastore_of(stores, Endpoint.parse(source).path, system=False)
    call.settings = call.settings_for(datastore_of(stores, str(disk), system=True), origin)
    call.phases.enter("image")
    images = [store.base_path for store in stores.values() if not store.system]
    path = Endpoint.parse(source).path
    tree = await in_thread(ImageTree.find, path, images, format) if attributes else None
    try:
        image = await in_thread(_open, path, images, format, tree)
    except BaseException:
        if tree:
            tree.close()
        raise
    try:
        wanted = _wanted(attributes, format, image, tree)
        if tree:
            pushed = await _push_tree(call, endpoint.host, disk, vm.seq, tree, image, wanted)
        else:
            pushed = await _push(call, endpoint.host, disk, vm.seq, image, wanted)
    except FastcopyError as error:
        raise type(error)(f"cannot clone {path} to {destination}: {error}") from error
    finally:
        image.close()
        if tree:
            tree.close()
    call.log(
        f"{path} is {disk} on {endpoint.host}: {pushed.how}, chunks sent {pushed.sent / _MIB:.1f} MiB "
        f"({pushed.packed / _MIB:.1f} MiB packed where they shrink), on the wire {pushed.wire / _MIB:.1f} MiB; "
        f"{call.phases}"
    )


async def _push(call: Call, name: str, disk: DiskPath, seq: int, image: Image, wanted: Wanted) -> Pushed:
    """One conversation; while another brings the same image to the same host, its end is awaited first."""
    known = await in_thread(call.store.get, image)
    key = image.identity.key(call.machine()) if image.settled or known else ""
    if call.settings.cache.enable:
        connections = call.services.connections(call.environ, call.places)
        call.services.caretaker.note(connections.agents, name, disk.base, call.settings.cache.scrub_rate)
    call.phases.enter("flight")
    return await call.converse(
        name,
        disk,
        seq,
        True,
        lambda host: Push(host, image, wanted, call.store, known, call.settings, key, call.phases).run(),
        lambda: [key],
        (name, disk.base, key) if key else None,
    )


def _open(path: str, images: List[str], format: str, tree: Optional[ImageTree]) -> Image:
    """The image's file; its tree was looked at, if it has one."""
    return tree.open(tree.active) if tree and tree.active else Image.open(path, images, format)


async def _push_tree(
    call: Call, name: str, disk: DiskPath, seq: int, tree: ImageTree, image: Image, wanted: Wanted
) -> Pushed:
    """One conversation, in which every file of the image travels."""
    machine = call.machine()

    async def work(host: Host) -> Pushed:
        push = PushTree(host, tree, wanted, call.store, call.settings, machine, call.phases)
        return await push.run(image)

    return await call.converse(name, disk, seq, True, work, lambda: image_keys(tree, machine))


def _attributes(vm: Vm, disk: DiskPath) -> Optional[Disk]:
    """What oned says of the disk; None for a boot file (kernel, initrd)."""
    match = re.fullmatch(r"disk\.([0-9]+)", disk.name)
    if match is None:
        return None
    if int(match.group(1)) not in vm.disks:
        raise FastcopyError(f"VM {vm.id} has no disk {match.group(1)}")
    return vm.disks[int(match.group(1))]


def _wanted(attributes: Optional[Disk], format: str, image: Image, tree: Optional[ImageTree] = None) -> Wanted:
    """Size, mode and sparseness of the disk; boot files are the image as it is."""
    if attributes is None:
        return Wanted(image.size, image.mode, True)
    grown = 0
    if attributes.size and attributes.original_size and attributes.size > attributes.original_size:
        grown = attributes.size * _MIB
    if format == "raw":
        return Wanted(max(image.size, grown), image.mode, attributes.sparse)
    header = qcow2.read(image.fd, image.path)
    if tree is None:
        qcow2.check_stand_alone(header, image.path)
    return Wanted(image.size, image.mode, attributes.sparse, format, grown if grown > header.size else 0)
