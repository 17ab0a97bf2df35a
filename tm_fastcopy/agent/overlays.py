"""Overlays: the snapshots of a qcow2 disk in a tree, as the stock `local` driver keeps them (`core/chain.py`).

`create` freezes the active file and lays a new one over it; `revert` puts a new one in the active file's place, over
the snapshot's; `delete` has what rests on a snapshot's file rest on that one's base, with a copy of what it needs, and
then removes it.  The link of the disk, or a rename within its tree, is each one's commit point (docs/DESIGN.md).
"""

from __future__ import annotations

import functools
import os
import stat
from typing import Callable, Optional

from ..core import qcow2
from ..core.chain import MAX_FILES, Chain, open_member, read_chain
from ..core.errors import FastcopyError, Refused
from ..core.files import Files, room
from ..core.publish import Staged, publish
from ..core.staging import need_room
from ..core.tree import Active, point_link, tree_name
from . import qemu_img
from .copies import copy_whole, staged
from .directory import VmDirectory

_OVERLAY = 1024 * 1024  # bytes; an empty one has 200 KiB


class Overlays:
    """The snapshots of the disk whose active file is *active*, in the VM directory whose guard is held."""

    def __init__(
        self, files: Files, directory: VmDirectory, active: Active, share: bool, alive: Callable[[], bool]
    ) -> None:
        self._files, self._directory, self._share, self._alive = files, directory, share, alive
        self.tree, self.active = active.directory, active.name
        self._last_look = functools.partial(directory.publishable, alive)
        self.shown = f"{directory.path}/{tree_name(directory.name)}"
        self.chain: Chain = read_chain(self.tree, self.shown)
        if self.active not in self.chain.headers:
            raise Refused(f"there is no {directory.disk} on this host")

    def create(self, snapshot: int) -> str:
        """Freeze the active file, as the snapshot; what is written from now on goes into the next one."""
        if self.is_next(snapshot):
            return "it was made already"
        before = self.prepare(snapshot)
        try:
            self.lead_to(str(snapshot + 1))
        except FastcopyError:  # a last look that failed; nothing rests on what is given up
            self._files.unlink(self.tree, str(snapshot + 1))
            raise
        return f"{before} is frozen"

    def is_next(self, snapshot: int) -> bool:
        """Whether an earlier attempt has made the snapshot, and nothing was written since."""
        return self.active == str(snapshot + 1) and self._is_empty(self.active)

    def prepare(self, snapshot: int) -> str:
        """Make the file that will be the active one; return the name of the one that is.  Nobody sees it yet."""
        following, header = str(snapshot + 1), self.chain.headers[self.active]
        if header.encryption:
            raise Refused(
                f"{self._directory.disk} is encrypted, and what its guest writes after a snapshot would not be: "
                "keep a copy of the disk instead (`onevm disk-saveas`)"
            )
        for name in sorted({following, str(snapshot)} & set(self.chain.headers)):
            if name != str(snapshot) or name != self.active:
                self._check_left(name, snapshot)
        if following not in self.chain.headers and len(self.chain.headers) >= MAX_FILES:
            raise Refused(f"{self._directory.disk} has {MAX_FILES} files, and more are not handled: delete snapshots")
        self._lay_over(following, self.active, header.size)
        if self.active != str(snapshot):
            self._files.unlink(self.tree, str(snapshot))
            self._name_current(snapshot)
        return self.active

    def _check_left(self, name: str, snapshot: int) -> None:
        """Raise `Refused` if a file that a new snapshot needs the place of is more than what a failed one left."""
        if name == self.active or self.chain.children(name) or not self._is_empty(name):
            raise Refused(
                f"{self.shown}/{name}, whose place snapshot {snapshot} needs, is in use already: look at the tree with "
                "`qemu-img info`; nothing was changed"
            )

    def lead_to(self, name: str) -> None:
        """Make another file the active one: the commit point of `create`."""
        point_link(self._files, self._directory.fd, self._directory.name, name, self._last_look)
        self.active = name

    def take_back(self, snapshot: int, before: str) -> None:
        """Undo a snapshot that nothing was written after: the disk is *before* again."""
        self.lead_to(before)
        self._files.unlink(self.tree, f"{snapshot}.current")
        self._files.unlink(self.tree, str(snapshot + 1))
        self._files.sync_directory(self.tree)

    def revert(self, snapshot: int) -> str:
        """Give up what the active file holds: from now on the guest sees the snapshot."""
        name = self.chain.file_of(snapshot)
        if name not in self.chain.headers or name == self.active:
            raise Refused(f"{self._directory.disk} has no snapshot {snapshot}; it is as it was")
        if self.chain.children(self.active):
            raise Refused(f"a snapshot rests on what {self._directory.disk} is now, so it cannot be given up")
        self._lay_over(self.active, name, self.chain.headers[name].size)
        return f"{self.active} rests on {name}"

    def delete(self, snapshot: int, running: bool = False) -> str:
        """Remove the snapshot's file when nothing rests on it any more.  *running*: a VM writes to the active file."""
        name = self.chain.file_of(snapshot)
        if name == self.active:
            raise Refused(f"{self.shown}/{name} is the disk itself, so it is not removed")
        lifted = []
        if name in self.chain.headers and name not in (
            other for number, other in self.chain.others.items() if number != str(snapshot)
        ):
            lifted = self.chain.children(name)
            if running and self.active in lifted:  # it would go on writing to the file that was replaced
                raise Refused(
                    f"{self._directory.disk} rests on snapshot {snapshot}, and the VM that runs does not say that it "
                    "has let go of it: power it off, and repeat"
                )
            for child in lifted:
                self._lift(child, name)
            self._remove(name)
        self._files.unlink(self.tree, f"{snapshot}.current")
        self._files.sync_directory(self.tree)
        return f"what {', '.join(lifted)} needed of it was copied there" if lifted else "nothing rested on it"

    def _remove(self, name: str) -> None:
        self.chain = read_chain(self.tree, self.shown)
        if self.chain.children(name):
            raise FastcopyError(f"{self.shown}/{name} is still needed, so it is not removed: repeat the action")
        self._last_look()
        self._files.unlink(self.tree, name)

    def _is_empty(self, name: str) -> bool:
        """Whether a file rests on another and has nothing of its own."""
        fd = open_member(self.tree, name, self.shown)
        try:
            return self.chain.headers[name].backing is not None and qcow2.holds_nothing(fd, self.chain.headers[name])
        finally:
            os.close(fd)

    def _lay_over(self, name: str, backing: str, size: int) -> None:
        """Put an empty file that rests on *backing* at *name*, in one step."""
        path = f"{self.shown}/{name}"
        need_room(path, _OVERLAY, room(self._files, self.tree, _OVERLAY))
        with staged(self._files, self.tree, name, path, 0) as staging:
            qemu_img.make_overlay(staging.fd, backing, size, path, self._alive)
            self._publish(staging.name, staging.fd, name, self._mode(self.active))

    def _name_current(self, snapshot: int) -> None:
        """Write down that a snapshot is the active file, though of another number: an earlier one came to nothing."""
        name = f"{snapshot}.current"
        text = f"{self.shown}/{self.active}\n".encode()
        with staged(self._files, self.tree, name, f"{self.shown}/{name}", 0) as staging:
            self._files.write(staging.fd, text, 0)
            self._publish(staging.name, staging.fd, name, 0o644)

    def _lift(self, child: str, parent: str) -> None:
        """Have *child* rest on what *parent* rests on, and see the same as before; in one step."""
        path, base = f"{self.shown}/{child}", self.chain.headers[parent].backing
        source = open_member(self.tree, child, self.shown)
        try:
            size = os.fstat(source).st_size
            with staged(self._files, self.tree, child, path, size) as staging:
                copy_whole(self._files, staging, source, self._share, path, self._alive)
                needed = self._allocated(parent)
                need_room(path, needed, room(self._files, self.tree, needed))
                qemu_img.rebase(self.tree, staging.name, staging.fd, base, path, self._alive)
                self._check_lifted(staging.fd, base, child, staging.name)
                self._publish(staging.name, staging.fd, child, self._mode(child))
        finally:
            os.close(source)

    def _check_lifted(self, fd: int, base: Optional[str], child: str, name: str) -> None:
        path = f"{self.shown}/{child}"
        if qcow2.read(fd, path).backing != base or not qemu_img.same(self.tree, child, name, fd, path, self._alive):
            raise FastcopyError(f"{path} without the snapshot is not what it is with it, so the snapshot is kept")

    def _publish(self, staging: str, fd: int, name: str, mode: int) -> None:
        made = Staged(self.tree, staging, fd, "")
        publish(self._files, made, name, f"{self.shown}/{name}", mode, self._last_look)

    def _mode(self, name: str) -> int:
        return (stat.S_IMODE(os.stat(name, dir_fd=self.tree, follow_symlinks=False).st_mode) & 0o777) | 0o600

    def _allocated(self, name: str) -> int:
        return os.stat(name, dir_fd=self.tree, follow_symlinks=False).st_blocks * 512
