"""PushTree: brings an image that has snapshots to a host, file after file, each as if it were an image of its own.

So each is taken from the host's cache where that has it, and a new version of one costs what changed in it.
"""

from __future__ import annotations

from typing import List

from ..core.messages import Published
from ..core.receipt import Receipt
from ..core.tree_messages import BeginTree, Member, PublishTree, pack_names
from ..core.wire import Done
from .host import Host
from .image import Image, ImageTree, ManifestStore
from .phases import Phases
from .push import Push, Pushed, Wanted
from .settings import Settings
from .threads import in_thread


def image_keys(tree: ImageTree, machine: str) -> List[str]:
    """By what a host's cache names the files of an image that is a tree; *machine* as for `PushTree`.  Blocking."""
    found = []
    for name in tree.names:
        image = tree.open(name)
        found.append(image.identity.key(machine))
        image.close()
    return found


class PushTree:
    """One image with its snapshots on its way to one disk; `run` once.  *machine* tells this front-end's files."""

    def __init__(
        self, host: Host, tree: ImageTree, wanted: Wanted, store: ManifestStore, settings: Settings, machine: str,
        phases: Phases,
    ) -> None:  # fmt: skip
        self._host, self._tree, self._wanted, self._store = host, tree, wanted, store
        self._settings, self._machine, self._phases = settings, machine, phases

    async def run(self, beside: Image) -> Pushed:
        """Make the disk.  *beside* is the image: of a raw one, whose snapshots lie beside it, it comes last."""
        tree, wanted = self._tree, self._wanted
        await self._host.ask(BeginTree(wanted.format, pack_names(tree.names)), Done)
        pushed: List[Pushed] = []
        for name in tree.names:
            await self._host.ask(Member(name), Done)
            image = await in_thread(tree.open, name)
            try:
                whole = Wanted(image.size, image.mode, wanted.sparse, wanted.format)
                pushed.append(await self._push(image, whole))
            finally:
                image.close()
        self._phases.enter("publish")
        question = PublishTree(tree.active, wanted.virtual, not wanted.sparse)
        published: Published = await self._host.ask(question, Published)
        receipt = Receipt.decode(published.receipt)
        if not tree.active:
            self._phases.named = "the disk's snapshots have been made"
            await self._host.ask(Member(""), Done)
            pushed.append(await self._push(beside, wanted))
            receipt = pushed[-1].receipt
        how = f"{len(tree.names)} files of its tree, the last from {pushed[-1].how}"
        sent, packed = sum(one.sent for one in pushed), sum(one.packed for one in pushed)
        return Pushed(receipt, how, sent, packed, self._host.wire_bytes)

    async def _push(self, image: Image, wanted: Wanted) -> Pushed:
        key = image.identity.key(self._machine) if image.settled else ""
        known = await in_thread(self._store.get, image)
        return await Push(
            self._host, image, wanted, self._store, known, self._settings, key, self._phases
        ).run()
