"""Mutants: the product, broken on purpose, to see that the walk would notice.

Each takes the place of one function, in the forked process only.  What finds it is said in its docstring; test_mutants
holds the walk to that.
"""

from __future__ import annotations

from typing import Any, Callable, Dict

from tm_fastcopy.agent import arrival, cache, departure, disk, lanes
from tm_fastcopy.core import publish, staging, tree
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.publish import Staged
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.frontend import pull


def rename_before_fsync() -> None:
    """The name first, the content's fsync afterwards.

    Found by the power cut that keeps the journal and loses the pages: between the two the name is there, and its
    content is not.  (Some cases are forgiven: FICLONE writes out what it shares, ext4 what is renamed over a file, and
    a reflink of the old image whose changes are lost is the old image.)
    """

    def late(rename: Callable[..., Any]) -> Callable[..., Receipt]:
        def published(
            files: Files, staged: Staged, final: str, path: str, mode: int, last_look: Any = None
        ) -> Receipt:
            files.chmod(staged.fd, mode)
            rename(files, staged.directory, staged.name, final)
            files.sync(staged.fd)
            files.sync_directory(staged.directory)
            return publish.receipt_for(staged, path)

        return published

    for module in (cache, disk):
        module.publish = late(lambda files, *names: files.rename(*names))  # type: ignore[attr-defined]
    pull.replace = late(lambda files, *names: files.exchange(*names))  # type: ignore[attr-defined]


def skip_verify() -> None:
    """A chunk is written as it came.

    Found by the lane that flips a bit: the action reports success, and the disk is not the image.
    """
    honest = staging.store_chunk

    def gullible(sink: staging.Sink, index: int, length: int, encoding: int, payload: bytes) -> None:
        staging.digest = lambda data: sink.table.digest(index)
        honest(sink, index, length, encoding, payload)

    lanes.store_chunk = gullible  # type: ignore[attr-defined]
    pull.store_chunk = gullible  # type: ignore[attr-defined]


def delete_before_receipt() -> None:
    """The old image is removed when the new one is staged, and not on the strength of the new one's receipt.

    Found by the kill between the two: there is no image.
    """

    def eager(files: Files, staged: Staged, final: str, path: str, mode: int) -> Receipt:
        publish.make_durable(files, staged, mode)
        files.unlink(staged.directory, final)
        files.rename(staged.directory, staged.name, final)
        files.sync_directory(staged.directory)
        return publish.receipt_for(staged, path)

    pull.replace = eager  # type: ignore[attr-defined]


def discard_before_directory_sync() -> None:
    """The old image, exchanged for the new one, is removed before the exchange is durable.

    XFS and ext4 log both in order, so no crash on them shows it; the rules for the recorded order do.
    """

    def hasty(files: Files, staged: Staged, final: str, path: str, mode: int) -> Receipt:
        publish.make_durable(files, staged, mode)
        files.exchange(staged.directory, staged.name, final)
        files.unlink(staged.directory, staged.name)
        files.sync_directory(staged.directory)
        return publish.receipt_for(staged, path)

    pull.replace = hasty  # type: ignore[attr-defined]


def manifest_before_image() -> None:
    """The cache's manifest, which makes an entry count, is written before the image has its name.

    Found by the kill between the two: an entry counts that has no image.
    """
    honest = cache.Cache.enter

    def early(self: cache.Cache, staged: staging.Staging, manifest: Any, key: str, dated: bool = False) -> None:
        self.add_manifest(manifest, key)
        honest(self, staged, manifest, key, dated)

    cache.Cache.enter = early  # type: ignore[method-assign]


def manifest_without_fsync() -> None:
    """The cache's manifest is renamed before its content is durable.  Found by the cut that keeps the journal."""
    plain = cache.Cache._put

    def careless(self: cache.Cache, contents: Dict[str, bytes]) -> None:
        held, self.files = self.files, _NoSync(self.files)  # type: ignore[assignment]
        try:
            plain(self, contents)
        finally:
            self.files = held

    cache.Cache._put = careless  # type: ignore[method-assign]


class _NoSync:
    def __init__(self, files: Files) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def sync(self, fd: int) -> None:
        """Do nothing."""


def publish_in_place() -> None:
    """The disk is staged under its final name.  Found by every kill from then on: the name is there, half a disk."""
    disk.staging_name = lambda final: final  # type: ignore[attr-defined]


def link_before_tree() -> None:
    """A qcow2 disk's link gets its name before the tree that it leads into has its own.

    Found by the kill between the two, over an old tree: the new link leads to a file of the old tree.
    """
    honest = tree._take_place

    def hasty(files: Files, parent: int, final: str) -> None:
        files.rename(parent, publish.staging_name(final), final)
        honest(files, parent, final)
        files.make_link(parent, publish.staging_name(final), f"{final}.snap/0")

    tree._take_place = hasty


def depart_in_place() -> None:
    """What was moved is removed under its own name, file by file.

    Found by the kill in the middle: half a directory stands where the VM's was, and the repeated move takes it for the
    whole.
    """

    def torn(files: Files, base: int, name: str, shown: str, manifest: str, receipt: Receipt) -> None:
        tree.remove_tree(files, base, name, shown)

    departure.give_up = torn  # type: ignore[attr-defined]


def arrive_without_fsync() -> None:
    """The files that were moved are not made durable.  Found by the rules for the recorded order."""
    plain = arrival.Arrival.commit

    def careless(self: arrival.Arrival, manifest_id: str) -> None:
        held, self._files = self._files, _NoSync(self._files)  # type: ignore[assignment]
        try:
            plain(self, manifest_id)
        finally:
            self._files = held

    arrival.Arrival.commit = careless  # type: ignore[method-assign]


MUTANTS: Dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        rename_before_fsync,
        skip_verify,
        delete_before_receipt,
        discard_before_directory_sync,
        manifest_before_image,
        manifest_without_fsync,
        publish_in_place,
        link_before_tree,
        depart_in_place,
        arrive_without_fsync,
    )
}


def apply(name: str) -> None:
    """Break this process."""
    if name:
        MUTANTS[name]()
