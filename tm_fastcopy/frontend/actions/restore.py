"""restore: puts disks of a backup in the place of a VM's disks.  The VM is off.

    restore HOST:<system datastore>/<VM>  VM  IMAGE  INCREMENT|-1  DISK|-1

All that is wanted is fetched to the front-end, and looked at, before anything on the host is touched; then each disk is
pushed as any image is, and replaces the one that is there in one step.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from typing import IO, Dict, List

from ...core import qcow2
from ...core.errors import FastcopyError, Refused
from ...core.files import free_bytes
from ...core.paths import DiskPath
from ...core.restore_messages import DropTree
from ...core.staging import need_room
from ...core.wire import Done
from .. import programs, qemu_img
from ..arguments import Endpoint, exactly, number
from ..backup import TPM, Backups, Documents
from ..call import Call, check_owner
from ..host import Host
from ..image import Image
from ..oned import Disk, Vm, check_format
from ..push import Push, Pushed, Wanted
from ..settings import Settings
from ..threads import in_thread

_MIB = 1024 * 1024
_MODE = 0o660  # a backup knows none


async def run(call: Call) -> None:
    """Replace the disks; raise `FastcopyError` with those that were not replaced as they were."""
    names = "HOST:DIRECTORY VM_ID IMAGE_ID INCREMENT_ID DISK_ID"
    target, vm_id, image_id, increment, disk_id = exactly(call.argv, names)
    endpoint = Endpoint.parse(target)
    call.phases.enter("turn")
    async with call.turn(endpoint):
        restore = _Restore(call, endpoint, number(vm_id, "a VM"), number(image_id, "an image"))
        await restore.run(_or_all(increment, "an increment"), _or_all(disk_id, "a disk"))


def _or_all(text: str, what: str) -> int:
    return -1 if text == "-1" else number(text, what)


class _Restore:
    """One call."""

    def __init__(self, call: Call, endpoint: Endpoint, vm: int, image: int) -> None:
        self._call, self._endpoint, self._vm_id, self._image_id = call, endpoint, vm, image
        self._backups = Backups(call.places.remotes, call.environ)
        self._environ = programs.environment(call.environ)

    async def run(self, increment: int, only: int) -> None:
        """Fetch, then replace."""
        call = self._call
        call.phases.enter("oned")
        stores = await call.services.datastores(call.oned, -1)  # -1: as they are now
        disk = _directory(self._endpoint.path, [store.base_path for store in stores.values() if store.system])
        vm = await in_thread(call.oned.vm, self._vm_id)
        check_owner(disk, vm, self._endpoint.path)
        system = next(store for store in stores.values() if store.system and store.base_path == disk.base)
        settings = call.configuration.settings(system)
        if settings.clone == "reflink":  # what comes from a backup is in no cache
            settings = dataclasses.replace(settings, clone="auto")
        call.settings = settings
        documents = await in_thread(Documents.ask, call.oned, self._vm_id, self._image_id)
        call.phases.enter("backup")
        found = await self._backups.disks(documents, increment)
        wanted = self._choose(vm, found, only)
        files: Dict[int, IO[bytes]] = {}
        try:
            await self._fetch_all(vm, documents, wanted, files)
            for disk_id, file in files.items():
                await self._replace(dataclasses.replace(disk, name=f"disk.{disk_id}"), vm, file, settings)
                call.phases.named = f"disk {disk_id}, and those before it, have been restored"
        finally:
            for file in files.values():
                file.close()
        if TPM in found and only in (-1, 0):
            call.log(f"the TPM of VM {vm.id} keeps its state: the one in the backup is not restored")

    def _choose(self, vm: Vm, found: Dict[str, str], only: int) -> Dict[int, str]:
        """The addresses of the disks that are wanted, which the VM must have."""
        wanted = {int(name): address for name, address in found.items() if re.fullmatch("[0-9]{1,9}", name)}
        if only >= 0:
            wanted = {disk_id: address for disk_id, address in wanted.items() if disk_id == only}
        if not wanted:
            which = f"disk {only}" if only >= 0 else "disk"
            raise Refused(f"there is no {which} in the backup, image {self._image_id}")
        for disk_id in sorted(wanted):
            if disk_id not in vm.disks:
                raise Refused(f"the backup, image {self._image_id}, has a disk {disk_id}, and VM {vm.id} has none")
            check_format(vm.disks[disk_id])
        return dict(sorted(wanted.items()))

    async def _fetch_all(
        self, vm: Vm, documents: Documents, wanted: Dict[int, str], files: Dict[int, IO[bytes]]
    ) -> None:
        """Fetch all that is wanted into files without a name, which vanish with this process."""
        state = self._call.places.state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        await in_thread(self._check_room, [vm.disks[disk_id] for disk_id in wanted], documents.size)
        for disk_id, address in wanted.items():
            shown = f"disk {disk_id} of the backup, image {self._image_id}"
            fetched = tempfile.TemporaryFile(dir=state)
            try:
                await self._backups.fetch(address, fetched, shown)
                header = qcow2.read(fetched.fileno(), shown)
                qcow2.check_stand_alone(header, shown)
                if vm.disks[disk_id].format == "qcow2":
                    await qemu_img.drop_bitmaps(fetched.fileno(), self._environ, shown)
                    files[disk_id] = fetched
                    continue
                files[disk_id] = tempfile.TemporaryFile(dir=state)
                await qemu_img.to_raw(fetched.fileno(), files[disk_id].fileno(), self._environ, shown)
            finally:
                if files.get(disk_id) is not fetched:
                    fetched.close()

    def _check_room(self, disks: List[Disk], held: int) -> None:
        """`NoSpace` if the front-end has no room for them.  What they hold is known only of all together."""
        largest = sum((disk.size or 0) * _MIB for disk in disks)
        needed = min(held, largest) if largest else held
        if any(disk.format == "raw" for disk in disks):
            needed *= 2  # the file that is fetched, and what is made of it
        state = self._call.places.state
        fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            need_room(f"the backup, image {self._image_id}, fetched to {state},", needed, free_bytes(fd))
        finally:
            os.close(fd)

    async def _replace(self, disk: DiskPath, vm: Vm, file: IO[bytes], settings: Settings) -> None:
        call, name = self._call, self._endpoint.host
        shown = f"{disk.name} of the backup, image {self._image_id}"
        image = Image(shown, file.fileno())
        wanted = _wanted(vm.disks[int(disk.name[5:])], image)

        async def push(host: Host) -> Pushed:
            pushed = await Push(host, image, wanted, call.store, None, settings, "", call.phases).run()
            if wanted.format == "raw":  # its snapshots are those of what was replaced; a qcow2 disk brings its own tree
                await host.ask(DropTree(pushed.receipt.encode()), Done)
            return pushed

        try:
            pushed = await call.converse(name, disk, vm.seq, True, push)
        except FastcopyError as error:
            raise type(error)(f"cannot restore {disk} on {name}: {error}") from error
        call.log(
            f"{disk} on {name} is {shown}: {pushed.how}, chunks sent {pushed.sent / _MIB:.1f} MiB, "
            f"on the wire {pushed.wire / _MIB:.1f} MiB; {call.phases}"
        )


def _directory(path: str, bases: List[str]) -> DiskPath:
    """The VM's directory; its disk's name is not known yet."""
    match = re.fullmatch(r"(/.*[^/])/+([0-9]{1,9})/*", path)
    base = re.sub("/+", "/", match.group(1)) if match else ""
    if match is None or base not in bases:
        raise Refused(f"{path} is not the directory of a VM in a system datastore that oned knows")
    return DiskPath(base, int(match.group(2)), "")


def _wanted(disk: Disk, image: Image) -> Wanted:
    """What the disk must be: as large as the VM's is by now, if it was made larger since the backup."""
    virtual = image.size if disk.format == "raw" else qcow2.read(image.fd, image.path).size
    grown = (disk.size or 0) * _MIB if (disk.size or 0) > -(-virtual // _MIB) else 0
    if disk.format == "raw":
        return Wanted(max(image.size, grown), _MODE, disk.sparse)
    return Wanted(image.size, _MODE, disk.sparse, "qcow2", grown)
