"""Relocation: a VM's directory goes to another datastore that this same machine reaches.

On one file system it is renamed.  Where that cannot be (another file system, another mount, a subvolume) it is copied,
with blocks shared where the kernel can, and every file is read on both sides before the source goes.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Callable, Generator, Iterator, Optional, Set

from ..core.arriving import Note, aside_name, finish_giving_up, write_note
from ..core.codec import PLAIN
from ..core.errors import FastcopyError, Superseded, classify
from ..core.files import Files
from ..core.hashing import read_exactly
from ..core.listing import FILE, RECEIPT
from ..core.manifest import chunk_count, chunk_size_for
from ..core.messages import CacheOptions
from ..core.move_messages import BEFORE, COPIED, GONE, RENAMED, SAME
from ..core.paths import has
from ..core.receipt import Receipt
from ..core.staging import store_chunk
from ..core.tree import discard_tree, remove_tree
from .arrival import Arrival, arrived, check_worth
from .departure import Departure, SourceFile
from .directory import VmDirectory
from .removal import remove_moved

TURN = 10.0  # seconds from a question to its answer: a front-end that has gone is noticed
_PAGE = 64  # chunks, 16 MiB: a turn ends between two pages


class Relocation:
    """From *source* to *target*, neither of which is guarded yet; *origin* says HOST:PATH of the source.

    *full* are the paths of files that may have no holes in the end.
    """

    def __init__(
        self,
        files: Files,
        source: VmDirectory,
        target: VmDirectory,
        driver: str,
        origin: str,
        full: Set[str],
        options: CacheOptions,
        alive: Callable[[], bool],
    ) -> None:
        self._files, self._source, self._target, self._driver = files, source, target, driver
        self._origin, self._full, self._options, self._alive = origin, full, options, alive
        self._name = str(source.vm)
        self._arrival: Optional[Arrival] = None
        self._steps = self._run()

    def turn(self) -> str:
        """Work on for `TURN` seconds; "" as long as it is not done, then how it was done."""
        end = time.monotonic() + TURN
        while True:
            try:
                next(self._steps)
            except StopIteration as done:
                how: str = done.value
                return how
            if not self._alive():
                raise Superseded(f"the front-end went away, so {self._source.path} stays")
            if time.monotonic() > end:
                return ""

    def _run(self) -> Generator[None, None, str]:
        files, source, target, name = self._files, self._source, self._target, self._name
        if alike(os.fstat(source.base_fd), os.fstat(target.base_fd)) or self._is_one():
            return SAME if has(source.base_fd, name) else GONE
        finish_giving_up(files, source.base_fd, name, source.path)
        if has(source.base_fd, name) is None:
            return self._finish() if arrived(target, self._origin) else GONE
        # Of two moves in opposite directions both take the same guard first.
        for place in sorted((source, target), key=lambda place: place.path):
            place.enter(place is target, self._driver, alive=self._alive)
        departure = Departure(files, source)
        check_worth(target, departure.entries)
        if self._rename():
            return RENAMED
        yield from self._copy(departure)
        return COPIED

    def _finish(self) -> str:
        """An earlier attempt moved it, and may have been cut off before what stood there was removed."""
        self._target.enter(create=False, driver="", alive=self._alive)
        remove_moved(self._files, self._target)
        return BEFORE

    def _is_one(self) -> bool:
        """Whether both names lead to one directory: a mount of it, perhaps."""
        one, other = has(self._source.base_fd, self._name), has(self._target.base_fd, self._name)
        return bool(one and other and alike(one, other))

    # --- on one file system ----------------------------------------------------------------------------------------

    def _rename(self) -> bool:
        """Give the directory its new name; False where it lies on another file system.

        The note is written first, so that it has arrived with the one rename that moves all.
        """
        files, source, target, name = self._files, self._source, self._target, self._name
        if os.fstat(source.base_fd).st_dev != os.fstat(target.base_fd).st_dev:
            return False
        target.hand_on_fence(source.fd)
        status = write_note(files, source.fd, Note(self._origin, source.fence[0], ""))
        files.sync_directory(source.fd)
        source.check_fence()
        target.check_fence()
        try:
            moved = self._move()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # What an earlier attempt left there; what it is a copy of is what we hold.
            remove_tree(files, target.base_fd, aside_name(name), target.path)
            files.rename(target.base_fd, name, aside_name(name))
            files.sync_directory(target.base_fd)
            moved = self._move()
        if not moved:
            return False
        files.sync_directory(target.base_fd)
        files.sync_directory(source.base_fd)
        receipt = Receipt(f"{target.path}/{RECEIPT}", "", status.st_size, status.st_dev, status.st_ino)
        discard_tree(files, target.base_fd, aside_name(name), receipt, source.fd)
        return True

    def _move(self) -> bool:
        """The one rename; False if the kernel cannot do it between these two places."""
        try:
            self._files.move(self._source.base_fd, self._name, self._target.base_fd, self._name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        return True

    # --- from one to another ---------------------------------------------------------------------------------------

    def _copy(self, departure: Departure) -> Iterator[None]:
        arrival = self._arrival = Arrival(
            self._files, self._target, departure.entries, self._origin, self._options, self._alive
        )
        arrival.begin()
        for number, entry in enumerate(departure.entries):
            if entry.kind == FILE:
                file = departure.open(number)
                try:
                    yield from self._copy_file(arrival, number, file)
                    departure.manifests[entry.path] = file.manifest()
                    arrival.commit(departure.manifests[entry.path])
                finally:
                    file.close()
        departure.depart(arrival.arrive())

    def _copy_file(self, arrival: Arrival, number: int, file: SourceFile) -> Iterator[None]:
        chunk = chunk_size_for(file.entry.size)
        full = file.entry.path in self._full
        making = arrival.write(number, chunk, full)
        if making.staging.fresh and not full and self._options.clone != "copy":
            making.staging.fresh = not self._files.clone(making.staging.fd, file.fd)
        count = chunk_count(file.entry.size, chunk)
        for first in range(0, max(count, 1), _PAGE):
            page = file.scan(first, min(_PAGE, count - first), chunk)
            for index in making.assembly.offer(first, page.digests, page.runs):
                data = read_exactly(file.fd, index * chunk, making.table.length(index))
                store_chunk(making.sink(self._files), index, len(data), PLAIN, data)
            yield

    def told(self, error: Exception) -> FastcopyError:
        """What the front-end is told of an error."""
        if self._arrival:
            return self._arrival.told(error)
        return classify(error, f"moving {self._source.path} to {self._target.path}")

    def end(self) -> None:
        """Let go of everything but the source's guard, which is whose gave it to us."""
        self._steps.close()
        if self._arrival:
            self._arrival.end()
        self._target.drop_empty()
        self._target.leave()


def alike(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether both are the same file or directory."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)

