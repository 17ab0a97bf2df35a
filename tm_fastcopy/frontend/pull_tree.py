"""PullTree: brings a disk back that has snapshots, file after file, and gives the image its new tree in one step.

Each file is staged in the staging tree as a reflink of the old tree's file of the same name, or with that as its seed,
so that only what changed travels.  The old tree, and the image, stay what they are until all of the new one is there.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Iterable, List, Optional

from ..core.chain import check_whole, list_files
from ..core.errors import FastcopyError, NoSpace, Refused, classify
from ..core.files import Files
from ..core.paths import has, open_directory, open_parent, relative_to_any
from ..core.receipt import Receipt
from ..core.tree import clear_staging_tree, open_staging_tree, publish_members, tree_name
from ..core.tree_messages import TreeListed
from .host import Host
from .image import ImageTree, ManifestStore
from .phases import Phases
from .pull import Pull, Pulled, Slot
from .settings import Settings
from .threads import in_thread


def is_tree(path: str, bases: Iterable[str], format: str, listed: TreeListed) -> bool:
    """Whether a disk, of which the host has *listed* the files, comes back as a tree: it has snapshots, or the image
    has some that the disk has not any more.
    """
    if format == "qcow2" and not listed.active:
        return False  # one file; what lies beside it is refused by whoever opens it
    if len(listed.names) > (1 if listed.active else 0):
        return True
    old = ImageTree.find(path, bases, format)
    if old:
        old.close()
    return old is not None


class PullTree:
    """One disk with its snapshots on its way to one image; `run` once.  *size* as for `Pull`."""

    def __init__(
        self,
        host: Host,
        path: str,
        bases: Iterable[str],
        store: ManifestStore,
        settings: Settings,
        files: Files,
        format: str,
        phases: Phases,
        listed: TreeListed,
        size: Optional[int] = None,
    ) -> None:
        self._host, self._path, self._bases, self._store = host, path, list(bases), store
        self._settings, self._files, self._format, self._phases = settings, files, format, phases
        self._listed, self._size = listed, size
        self._parent, self._final = open_parent(*relative_to_any(path, self._bases))
        self._tree = -1
        self._old: Optional[int] = None
        self._flat = False

    async def run(self) -> Pulled:
        """Bring the files back, and publish them.  A raw disk itself comes last: its name is its commit point."""
        try:
            await in_thread(self._open)
            pulled: List[Pulled] = []
            for name in self._listed.names:
                pulled.append(await self._pull(Slot(self._tree, name, self._old, self._flat)))
            self._phases.enter("publish")
            receipt = await in_thread(self._publish)
            if not self._listed.active:
                self._phases.named = "the image's snapshots have been replaced"
                pulled.append(await self._pull(None))
                receipt = pulled[-1].receipt
            return Pulled(receipt, sum(one.fetched for one in pulled), self._host.wire_bytes)
        except (OSError, NoSpace) as error:
            typed = classify(error, f"writing {self._path}")
            if isinstance(typed, NoSpace) and self._tree >= 0:
                with contextlib.suppress(OSError, FastcopyError):
                    await in_thread(clear_staging_tree, self._files, self._parent, self._final, self._tree)
            raise typed from error
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the datastore; `run` does it."""
        for fd in (self._parent, self._tree, self._old):
            if fd is not None and fd >= 0:
                os.close(fd)

    async def _pull(self, slot: Optional[Slot]) -> Pulled:
        common = self._store, self._settings, self._files, self._format, self._phases
        made = await in_thread(lambda: Pull(self._host, self._path, self._bases, *common, member=slot, size=self._size))
        return await made.run()

    def _open(self) -> None:
        # Another front-end may be at it, in a thread that has not seen yet that its host has given it up.
        self._tree = open_staging_tree(self._files, self._parent, self._final, self._listed.names, alone=True)
        image = has(self._parent, self._final)
        self._flat = image is not None and stat.S_ISREG(image.st_mode)
        status = has(self._parent, tree_name(self._final))
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._old = open_directory(self._parent, tree_name(self._final), tree_name(self._path))

    def _publish(self) -> Receipt:
        active, shown = self._listed.active, tree_name(self._path)
        missing = sorted(set(self._listed.names) - set(list_files(self._tree, shown)))
        if missing:
            raise Refused(f"the files {', '.join(missing)[:200]} of {self._path} are gone again; it is as it was")
        if active:
            check_whole(self._tree, active, f"the tree of {self._path}")
        publish_members(self._files, self._parent, self._tree, self._final, self._path, active)
        status = os.stat(active, dir_fd=self._tree) if active else os.fstat(self._tree)
        return Receipt(f"{shown}/{active}", "", status.st_size, status.st_dev, status.st_ino)
