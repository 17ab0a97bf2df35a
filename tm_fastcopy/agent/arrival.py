"""Arrival: a VM's directory in the making at the target of a move.

All of it is staged beside the place where it will be, one file after the other; what an earlier attempt left is
digested and kept where it matches.  Chunks that the host's cache has do not travel: mostly the VM's image is there.
The whole gets its name in one step (`core/arriving.py`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from ..core.arriving import Note, aside_name, publish_directory, read_note
from ..core.assembly import Assembly
from ..core.errors import BadChunk, FastcopyError, NoSpace, ProtocolError, Refused, Superseded, classify
from ..core.files import Files, close, free_bytes, lock, room
from ..core.listing import DIRECTORY, FILE, LINK, Entry, listing, open_place, tree_id
from ..core.manifest import MIB
from ..core.messages import CacheOptions
from ..core.paths import has, is_mount, list_names, open_directory
from ..core.publish import staging_name
from ..core.receipt import Receipt
from ..core.staging import ChunkTable, Sink, Staging, need_room
from ..core.tree import remove_tree
from .cache import Cache, CacheSeeds
from .directory import VmDirectory
from .room import make_room

_WORTH_SEEDS = MIB  # bytes of data in a file from which on the cache is looked through for it


class ArrivingFile:
    """One file in the making."""

    def __init__(self, staging: Staging, table: ChunkTable, assembly: Assembly, entry: Entry, full: bool) -> None:
        self.staging, self.table, self.assembly, self.entry, self.full = staging, table, assembly, entry, full

    def sink(self, files: Files) -> Sink:
        """Where chunks go."""
        return Sink(files, self.table, self.staging.fd, self.staging.fresh)

    def close(self) -> None:
        """Let go of it."""
        self.staging.close()
        self.table.close()


class Arrival:
    """The directory *entries*, which comes from *source*, in the place that *directory* guards."""

    def __init__(
        self,
        files: Files,
        directory: VmDirectory,
        entries: List[Entry],
        source: str,
        options: CacheOptions,
        alive: Callable[[], bool],
    ) -> None:
        self._files, self._directory, self._entries, self._source = files, directory, entries, source
        self._options, self._alive = options, alive
        self._name = str(directory.vm)
        self._manifests: Dict[str, str] = {}
        self._cache: Optional[Cache] = None
        self._seeds: Dict[int, CacheSeeds] = {}
        self._staged = -1
        self.file: Optional[ArrivingFile] = None
        self.reused = 0
        """Bytes of data that did not have to be sent."""

    # --- before the files ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the staging directory, with all directories in it, and find room."""
        if is_mount(self._directory.base_fd, self._directory.fd):
            raise Refused(f"{self._directory.path} is a mount point, and cannot be replaced: unmount it and repeat")
        check_worth(self._directory, self._entries)
        files, base = self._files, self._directory.base_fd
        remove_tree(files, base, aside_name(self._name), self._directory.path)
        name = staging_name(self._name)
        status = has(base, name)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            files.unlink(base, name)
        files.make_directory(base, name, 0o700)
        self._staged = open_directory(base, name, f"{self._directory.base}/{name}")
        if not lock(self._staged):
            raise FastcopyError(
                f"a move that was cut off still writes beside {self._directory.path}: repeat in a minute"
            )
        # A move that was cut off after the exchange left what had the VM's name here, and it will be written to.
        self._directory.check_unused(self._staged)
        files.chmod(self._staged, 0o700)
        self._prune(self._staged, "")
        for entry in self._entries:
            if entry.kind == DIRECTORY and entry.path:
                with self._place(entry.path) as (place, last):
                    files.make_directory(place, last, 0o700)
        if self._options.enable:
            self._cache, _ = Cache.open(files, base, self._directory.base)
        self._check_room()

    def _prune(self, place: int, prefix: str) -> None:
        """Remove what an earlier attempt, of another state of the directory, left."""
        wanted = {entry.path: entry.kind for entry in self._entries}
        for name in list_names(place):
            path = prefix + name
            status = has(place, name)
            if status is None:
                continue
            kind = DIRECTORY if stat.S_ISDIR(status.st_mode) else FILE if stat.S_ISREG(status.st_mode) else ""
            if wanted.get(path) != kind:
                remove_tree(self._files, place, name, f"{self._directory.path}/{path}")
            elif kind == DIRECTORY:
                below = open_directory(place, name, path)
                try:
                    self._files.chmod(below, 0o700)
                    self._prune(below, f"{path}/")
                finally:
                    os.close(below)

    @contextlib.contextmanager
    def _place(self, path: str) -> Iterator[Tuple[int, str]]:
        """The staged directory that *path* lies in, and its name there."""
        place, name = open_place(self._staged, path, self._directory.path)
        try:
            yield place, name
        finally:
            os.close(place)

    def _check_room(self) -> None:
        needed = 0
        for entry in self._entries:
            if entry.kind == FILE:
                with self._place(entry.path) as (place, name):
                    status = has(place, name)
                needed += max(0, entry.data - (status.st_blocks * 512 if status else 0))
        if self._cache:
            try:
                free = make_room(self._files, self._cache, needed)
            except OSError:
                free = room(self._files, self._staged, needed)
        else:
            free = room(self._files, self._staged, needed)
        need_room(self._directory.path, needed, max(0, free))

    # --- one file ------------------------------------------------------------------------------------------------

    def write(self, number: int, chunk: int, full: bool) -> ArrivingFile:
        """Stage file *number* of the listing."""
        if number >= len(self._entries) or self._entries[number].kind != FILE or self.file is not None:
            raise ProtocolError(f"entry {number} of the listing cannot be written now")
        entry = self._entries[number]
        table = ChunkTable.create(entry.size, chunk)
        staging: Optional[Staging] = None
        try:
            staging = self._stage(entry)
            share = self._options.clone != "copy" and not full
            seeds = self._seeds_of(chunk) if entry.data >= _WORTH_SEEDS else None
            assembly = Assembly(self._files, staging, table, seeds, check_seeds=True, share=share)
        except BaseException:
            table.close()
            if staging:
                staging.close()
            raise
        self.file = ArrivingFile(staging, table, assembly, entry, full)
        return self.file

    def _stage(self, entry: Entry) -> Staging:
        with self._place(entry.path) as (place, name):
            place = os.dup(place)  # the staging keeps it
        try:
            staging = Staging.open(self._files, place, name, entry.size)
            if staging is None:
                raise FastcopyError(
                    f"a move that was cut off still writes beside {self._directory.path}: repeat in a minute"
                )
            if staging.fresh and entry.size:
                self._begin_as_old(staging, entry)
            return staging
        finally:
            os.close(place)

    def _begin_as_old(self, staging: Staging, entry: Entry) -> None:
        """Begin with the file of that name in what will be replaced: after a move that was cut off late it is equal."""
        try:
            place, name = open_place(self._directory.fd, entry.path, self._directory.path)
        except (OSError, FastcopyError):
            return
        old: Optional[int] = None
        try:
            old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
            if stat.S_ISREG(os.fstat(old).st_mode) and self._files.clone(staging.fd, old):
                self._files.truncate(staging.fd, entry.size)
                staging.fresh = False
        except OSError:
            pass  # it is only a help
        finally:
            os.close(place)
            close(old)

    def _seeds_of(self, chunk: int) -> Optional[CacheSeeds]:
        if self._cache is None:
            return None
        if chunk not in self._seeds:
            self._seeds[chunk] = CacheSeeds(self._cache, chunk)
        return self._seeds[chunk]

    def writing(self) -> ArrivingFile:
        """The file in the making."""
        if self.file is None:
            raise ProtocolError("no file is being written")
        return self.file

    def commit(self, manifest_id: str) -> None:
        """All chunks of the file are there: check that, and make it durable."""
        file = self.writing()
        files, entry = self._files, file.entry
        manifest = file.assembly.finish()
        if manifest.id != manifest_id:
            raise BadChunk(f"what was received as {entry.path} is not what was announced")
        self.reused += file.assembly.reused
        if file.full:
            files.fill(file.staging.fd, entry.size)
        files.set_mtime(file.staging.fd, entry.mtime_ns // 1_000_000_000)
        files.chmod(file.staging.fd, entry.mode)
        files.sync(file.staging.fd)
        self._manifests[entry.path] = manifest.id
        self.close_file()

    def close_file(self) -> None:
        """Let go of the file in the making."""
        if self.file:
            self.file.close()
            self.file = None

    def told(self, error: Exception) -> FastcopyError:
        """What is said of an error in here; a half that cannot be completed only keeps a full file system full."""
        shown = f"{self._directory.path}/{self.file.entry.path}" if self.file else self._directory.path
        typed = classify(error, f"writing {shown}")
        if isinstance(typed, NoSpace) and self._staged >= 0:
            free = free_bytes(self._staged) // MIB
            self.close_file()
            self._make_room()
            if not isinstance(error, NoSpace):
                needed = sum(entry.data for entry in self._entries)
                typed = NoSpace(
                    f"{self._directory.path} needs {-(-needed // MIB)} MiB, and the file system is full "
                    f"({free} MiB free): make room there and repeat the action"
                )
        return typed

    def _make_room(self) -> None:
        with contextlib.suppress(OSError, FastcopyError):
            remove_tree(self._files, self._directory.base_fd, staging_name(self._name), self._directory.path)

    # --- after the files -----------------------------------------------------------------------------------------

    def arrive(self) -> Receipt:
        """Give the directory its name; the receipt is for all that is in it."""
        missing = [e.path for e in self._entries if e.kind == FILE and e.path not in self._manifests]
        if missing or self.file:
            raise ProtocolError(f"{len(missing)} files of {self._directory.path} have not arrived")
        self._finish_directories()
        self._directory.hand_on_fence(self._staged)
        note = Note(self._source, self._directory.fence[0], tree_id(self._entries, self._manifests))
        directory = self._directory
        return publish_directory(
            self._files, directory.base_fd, self._staged, self._name, directory.path, note, self._last_look
        )

    def _finish_directories(self) -> None:
        """Make the links; permissions and fsync of the directories, the deepest first."""
        for entry in self._entries:
            if entry.kind == LINK:
                with self._place(entry.path) as (place, name):
                    self._files.make_link(place, name, entry.text)
        directories = [entry for entry in self._entries if entry.kind == DIRECTORY]
        for entry in sorted(directories, key=lambda entry: entry.path.count("/"), reverse=True):
            if not entry.path:
                continue
            with self._place(entry.path) as (place, name):
                fd = open_directory(place, name, entry.path)
            try:
                self._files.chmod(fd, entry.mode)
                self._files.sync_directory(fd)
            finally:
                os.close(fd)
        self._files.chmod(self._staged, self._entries[0].mode)

    def _last_look(self) -> None:
        self._directory.check_fence()
        if not self._alive():
            raise Superseded(f"the front-end went away, so {self._directory.path} is not published")

    def end(self) -> None:
        """Let go of everything.  What is staged stays, for the next attempt, unless a lane has found no room."""
        full = self.file is not None and self.file.table.lacks_room
        self.close_file()
        if full:
            self._make_room()
        for seeds in self._seeds.values():
            seeds.close()
        close(self._cache.fd if self._cache else None)
        if self._staged >= 0:
            os.close(self._staged)
            self._staged = -1


def check_worth(directory: VmDirectory, entries: List[Entry]) -> None:
    """Raise `Refused` if a directory would replace one that is in use, or one without a single file one with files.

    No VM has such a one.  Something made it when the VM's own had left, and what would be replaced may be that.
    """
    directory.check_unused()
    if any(entry.kind == FILE for entry in entries):
        return
    if any(entry.kind == FILE for entry in listing(directory.fd, directory.path)):
        raise Refused(
            f"what shall be moved has no file in it, and {directory.path} has some, so that stays: find out where the "
            "VM's disks are, and remove the empty directory by hand"
        )


def arrived(directory: VmDirectory, source: str) -> bool:
    """Whether the directory is there, and came from *source* in the move with our history sequence."""
    try:
        fd = open_directory(directory.base_fd, str(directory.vm), directory.path)
    except Refused:
        raise
    except FastcopyError:
        return False
    try:
        note = read_note(fd)
    finally:
        os.close(fd)
    return note is not None and (note.source, note.seq) == (source, directory.fence[0])
