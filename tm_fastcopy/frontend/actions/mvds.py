"""mvds: brings a persistent disk back as its image.  The host's disk stays; oned removes it with `delete` later.

    mvds HOST:<system datastore>/<VM>/disk.<N>  SOURCE|FE:SOURCE  VM  DATASTORE
"""

from __future__ import annotations

from ...core.errors import FastcopyError
from ...core.paths import disk_path, relative_to_any
from ...core.tree_messages import ListTree, TreeListed
from ..arguments import Endpoint, exactly, number
from ..call import Call, check_owner, datastore_of
from ..host import Host
from ..oned import check_format
from ..pull import Pull, Pulled, discard_pulled
from ..pull_tree import PullTree, is_tree
from ..threads import in_thread

_MIB = 1024 * 1024


async def run(call: Call) -> None:
    """Replace the image by the disk; raise `FastcopyError` with the image as it was otherwise."""
    source, destination, vm_id, store_id = exactly(call.argv, "HOST:DISK SOURCE VM_ID DATASTORE_ID")
    target = Endpoint.parse(destination).path
    endpoint = Endpoint.parse(source)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        await _bring_back(call, endpoint, target, number(vm_id, "a VM"), number(store_id, "a datastore"))


async def _bring_back(call: Call, endpoint: Endpoint, target: str, vm_id: int, store_id: int) -> None:
    source = call.argv[0]
    call.phases.enter("oned")
    vm, stores = await call.ask_oned(vm_id, store_id)
    base, _ = relative_to_any(endpoint.path, (store.base_path for store in stores.values() if store.system))
    disk = disk_path(endpoint.path, base)
    check_owner(disk, vm, endpoint.path)
    home = datastore_of(stores, target, system=False)
    call.settings = call.settings_for(datastore_of(stores, str(disk), system=True), home)
    attributes = next((d for d in vm.disks.values() if f"disk.{d.id}" == disk.name), None)
    format = check_format(attributes) if attributes else "raw"
    size = attributes.size if attributes else None
    images = [store.base_path for store in stores.values() if not store.system]
    try:

        async def pull(host: Host) -> Pulled:
            listed = await host.ask(ListTree(format), TreeListed)
            if await in_thread(is_tree, target, images, format, listed):
                parts = call.store, call.settings, call.files, format, call.phases, listed, size
                return await (await in_thread(PullTree, host, target, images, *parts)).run()
            common = call.store, call.settings, call.files, format, call.phases
            made = await in_thread(lambda: Pull(host, target, images, *common, keep=True, size=size))
            return await made.run()

        async with call.discarding(lambda: in_thread(discard_pulled, target, images, format, call.files)):
            pulled = await call.converse(endpoint.host, disk, vm.seq, False, pull)
    except FastcopyError as error:
        raise type(error)(f"cannot bring {source} back to {target}: {error}") from error
    call.log(
        f"{disk} on {endpoint.host} is {target}: "
        f"chunks fetched {pulled.fetched / _MIB:.1f} MiB, on the wire {pulled.wire / _MIB:.1f} MiB; {call.phases}"
    )
