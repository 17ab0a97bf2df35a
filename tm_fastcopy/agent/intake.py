"""Intake: makes a VM's disk out of what the front-end sends and what the host has.

Where the file system can share blocks, the image is staged in the cache, gets its name there, and the disk is a reflink
of it.  Elsewhere the disk itself is staged, lanes write every chunk to the cache's copy as well, and the copy gets its
name after the disk, while nobody waits.  Without a cache, or when something in it fails, the disk is staged alone.
An image that lies on this machine's own file system is cloned from where it is.

`CacheOptions` say how far the cache may be used.  Whatever kept a disk from it is told in `Published.how`.
"""

from __future__ import annotations

import os
import time
from typing import Callable, List, Optional, Tuple

from ..core.assembly import Assembly
from ..core.errors import (
    BadChunk,
    FastcopyError,
    LinkLost,
    NoSpace,
    ProtocolError,
    Refused,
    classify,
)
from ..core.files import Files, close, free_bytes, room
from ..core.manifest import Manifest, check_geometry
from ..core.messages import DEFAULT_OPTIONS, Begin, Begun, CacheOptions, Published
from ..core.receipt import Receipt
from ..core.staging import ChunkTable, Sink, Staging, copy_sparse, need_room, write_sparse
from .cache import ENTRY_MTIME, Cache, CacheSeeds
from .directory import VmDirectory
from .disk import Disk, Target
from .lease import EXPIRY, Lease
from .local import LocalImage
from .room import fit, make_room
from .scrub import verified


class Intake:
    """One disk in the making, for the VM directory whose guard is held."""

    def __init__(
        self,
        files: Files,
        directory: VmDirectory,
        cache: Optional[Cache],
        alive: Callable[[], bool],
        member: Optional[Tuple[int, str]] = None,
    ) -> None:
        self._files, self._directory, self._cache, self._alive = files, directory, cache, alive
        self._member = member
        self.table: Optional[ChunkTable] = None
        self.staging: Optional[Staging] = None
        self.tee: Optional[Staging] = None
        self._assembly: Optional[Assembly] = None
        self._seeds: Optional[CacheSeeds] = None
        self._lease: Optional[Lease] = None
        self._in_cache = False
        self._key = ""
        self._options = DEFAULT_OPTIONS
        self._notes: List[str] = []
        self._target = Target(0, 0, True)
        self._disk: Optional[Disk] = None
        self._needed = 0
        self._committing = False

    def use(self, options: CacheOptions) -> None:
        """Go by these options from now on."""
        if self.staging:
            raise ProtocolError("options of the cache come before a transfer begins")
        self._options = options
        if not options.enable and self._cache:
            close(self._cache.fd)
            self._cache = None
            self._notes.append("switched off")

    def notes(self) -> List[str]:
        """Why the cache was not used, or what was wrong in it: a few words each."""
        return [*self._notes, *(self._cache.notes if self._cache else [])]

    def _shares(self, target: Target) -> bool:
        """Whether the disk may share blocks with what it is made of; `Refused` if it has to and must not."""
        if self._options.clone == "reflink" and not target.sparse:
            raise Refused("FASTCOPY_CLONE=reflink and SPARSE=NO cannot both be had: change one of them")
        return target.sparse and self._options.clone != "copy"

    def _no_reflink(self) -> Refused:
        why = ", ".join(self.notes()) or "its file system cannot share these blocks"
        return Refused(
            f"{self._directory.disk} cannot be a reflink, which FASTCOPY_CLONE=reflink demands ({why}): "
            "make that possible, or set it to auto"
        )

    # --- from the cache ------------------------------------------------------------------------------------------

    def from_entry(self, manifest_id: str, target: Target) -> Optional[Published]:
        """Make and publish the disk from the cache; None if the image is not there."""
        found = self._cache.open_image(manifest_id) if self._cache else None
        if found is None or self._cache is None:
            return None
        image, manifest = found
        how = "cache"
        try:
            if self._options.verify == "always" and self._shares(target):  # a copy verifies what it reads anyway
                self._verify(image, manifest)
                how = "cache, verified"
            return self._disk_from(image, manifest_id, target, how, lambda disk: self._copy(image, manifest, disk))
        except BadChunk as error:
            self._cache.quarantine(manifest_id, str(error))
            return None
        except NoSpace:
            # There is room for a copy only without it: it goes, and the disk is fetched past the cache.
            if not self._cache.pinned(manifest_id):
                self._cache.remove(manifest_id)
            self._cache.note("no room for the disk beside the image in it")
            return None
        finally:
            os.close(image)

    def from_image(self, image: LocalImage, target: Target) -> Optional[Published]:
        """Make and publish the disk from the image itself; None if that lies on another file system."""
        if os.fstat(image.fd).st_dev != os.fstat(self._directory.fd).st_dev:
            return None

        def copy(staging: Staging) -> None:
            copy_sparse(self._files, staging.fd, image.fd, 0, image.size, 0, fresh=True, share=False)

        return self._disk_from(image.fd, image.manifest, target, "image on this machine", copy, image.check)

    def _disk_from(
        self,
        image: int,
        manifest_id: str,
        target: Target,
        how: str,
        copy: Callable[[Staging], None],
        check: Callable[[], None] = lambda: None,
    ) -> Published:
        """Make and publish the disk from an open file: a reflink, or else what *copy* writes.  *check* comes after."""
        may_share = self._shares(target)
        disk = self._disk = Disk(self._files, self._directory, target, self._alive, self._member)
        staging = disk.stage_anew()
        try:
            status = os.fstat(image)
            target.size = max(target.size, status.st_size)
            shared = may_share and self._files.clone(staging.fd, image)
            if not shared:
                if self._options.clone == "reflink":
                    raise self._no_reflink()
                needed = status.st_blocks * 512 if target.sparse else target.size
                need_room(self._directory.disk, needed, self._room(needed, keep=manifest_id))
                self._files.truncate(staging.fd, status.st_size)
                copy(staging)
            check()
            receipt = disk.publish(staging, manifest_id)
        except BaseException:
            self._files.unlink(staging.directory, staging.name)
            disk.clear()
            raise
        finally:
            staging.close()
            disk.close()
        return Published(receipt.encode(), how + (", reflink" if shared else ", copied"))

    def _verify(self, image: int, manifest: Manifest) -> None:
        """Read an image; `BadChunk` if it is not what its manifest says."""
        for _ in verified(image, manifest):
            pass

    def _copy(self, image: int, manifest: Manifest, staging: Staging) -> None:
        """Copy an image, its holes as holes; `BadChunk` if it is not what its manifest says.  All is read, so all is
        verified."""
        for offset, data in verified(image, manifest):
            write_sparse(self._files, staging.fd, offset, data, fresh=True)

    # --- over lanes ----------------------------------------------------------------------------------------------

    def begin(self, request: Begin) -> Begun:
        """Choose where to stage, and say whether to go on."""
        check_geometry(request.size, request.chunk)
        self._target = Target(
            max(request.size, request.final), request.mode, request.sparse, request.format, request.virtual
        )
        self._key = request.key
        self._needed = request.data if request.sparse else self._target.size
        share = self._shares(self._target)
        if self._may_cache(request, share):
            assert self._cache is not None
            found = self._cache.ready(self._key)
            if found:
                return Begun("ready", found)
            if not self._stage_in_cache(request.size):
                return Begun("wait", "")
            publishing = self._cache.publishing(self._key, time.time())
            found = self._cache.ready(self._key)
            if found or publishing:
                self._leave_cache()  # what we wait for has its name since our look, or is just getting it
                return Begun("ready" if found else "wait", found)
            self._fit(request, share)
        if self._options.clone == "reflink" and not self._in_cache:
            raise self._no_reflink()
        self._check_room()
        if self.staging is None:
            self._disk = Disk(self._files, self._directory, self._target, self._alive, self._member)
            self.staging = self._disk.stage(request.size)
        self.table = ChunkTable.create(request.size, request.chunk)
        self._open_seeds(request.chunk)
        # What is taken from the cache is read and verified, because it goes into a new image under a digest of its own.
        share = self._in_cache or share
        self._assembly = Assembly(
            self._files, self.staging, self.table, self._seeds, check_seeds=True, tee=self.tee, share=share
        )
        return Begun("lead", "")

    def _may_cache(self, request: Begin, share: bool) -> bool:
        """Whether the image can go into the cache; if not, why is noted."""
        if self._cache is None:
            return False
        if not self._key:
            if not self._cache.notes:
                self._cache.note("the image was written too recently to be kept")
            return False
        # A disk that may not share blocks needs room beside the image.
        if not share and request.data + self._needed > free_bytes(self._directory.fd):
            self._cache.note("no room for the disk and the image")
            return False
        return True

    def _fit(self, request: Begin, share: bool) -> None:
        """Go past the cache after all if the image does not fit its limits."""
        assert self._cache is not None
        staged = self.staging or self.tee
        if staged is None:
            return
        try:
            missing = max(0, request.data - os.fstat(staged.fd).st_blocks * 512)
            second = missing if self.tee else 0 if share else self._needed
            reason = fit(self._files, self._cache, self._options, missing, missing + second)
        except OSError as error:
            reason = f"its limits cannot be kept ({error.strerror})"
        if reason:
            self._cache.note(reason)
            self._leave_cache()

    def _open_seeds(self, chunk: int) -> None:
        try:
            self._seeds = CacheSeeds(self._cache, chunk) if self._cache else None
        except OSError as error:
            self._notes.append(f"it cannot be read ({error.strerror})")

    def _stage_in_cache(self, size: int) -> bool:
        """Try to be the one that fetches this image.  False if another does, and is alive.

        Everything else that can go wrong means that the disk is staged past the cache.
        """
        assert self._cache is not None
        name = self._cache.staging_for(self._key)
        try:
            staged = Staging.open(self._files, self._cache.fd, name, size)
            if staged is None:
                beat = os.stat(name, dir_fd=self._cache.fd, follow_symlinks=False).st_mtime
                if time.time() - beat <= EXPIRY or int(beat) == ENTRY_MTIME:  # that one is just being published
                    return False
                self._cache.note("another transfer holds the image and does not go on")
                return True
        except FileNotFoundError:
            return False  # it was published just now: ask again
        except (OSError, Refused) as error:
            self._cache.note(f"it cannot be written ({getattr(error, 'strerror', None) or error})")
            return True
        if self._cache.reflink:
            self._in_cache, self.staging = True, staged
            return True
        # A tee must be complete in itself: it is never resumed, because only the disk's chunks are accounted for.
        try:
            if not staged.fresh:
                self._files.truncate(staged.fd, 0)
                self._files.truncate(staged.fd, size)
                staged.fresh = True
            self.tee = staged
        except OSError as error:
            self._cache.note(f"it cannot be written ({error.strerror})")
            staged.close()
        return True

    def _leave_cache(self) -> None:
        """Give up the staging file in the cache that has just been taken."""
        assert self._cache is not None
        staged = self.tee or self.staging
        if staged:
            if staged.fresh:  # what was begun by another is for whoever fetches the image again
                self._files.unlink(self._cache.fd, staged.name)
            staged.close()
        self.staging = self.tee = None
        self._in_cache = False

    def _room(self, needed: int, keep: str = "") -> int:
        if self._cache:
            try:
                return make_room(self._files, self._cache, needed, keep)
            except OSError as error:
                self._cache.note(f"no room can be made in it ({error.strerror})")
        return room(self._files, self._directory.fd, needed)

    def _check_room(self) -> None:
        """Find room for the disk, and for the cache's copy if it is a second one; lease it."""
        missing = max(0, self._needed - (os.fstat(self.staging.fd).st_blocks * 512 if self.staging else 0))
        free = self._room(missing * (2 if self.tee else 1))
        if self.tee and self._cache and free < 2 * missing:
            self._cache.note("no room for the image beside the disk")
            self._drop_tee()
        need_room(self._directory.disk, missing, max(free, 0) if self._cache else free)
        if self._cache:
            try:
                self._lease = Lease(self._files, self._cache, missing * (2 if self.tee else 1))
            except OSError as error:
                self._cache.note(f"it cannot be written ({error.strerror})")

    def _drop_tee(self) -> None:
        if self.tee and self._cache:
            self._files.unlink(self._cache.fd, self.tee.name)
            self.tee.close()
            self.tee = None

    def heartbeat(self) -> None:
        """Renew what would expire.  Called whenever the front-end is heard."""
        if self._committing:
            return  # the files may be somebody's disk by now, and an image of the cache keeps the time it was given
        try:
            if self._lease and self.staging:
                self._lease.renew(self._needed - os.fstat(self.staging.fd).st_blocks * 512)
            for held in (self.staging, self.tee):
                if held:
                    os.utime(held.fd)
        except OSError:
            pass  # an expired lease costs others a warning, not us the transfer

    def offer(self, first: int, digests: bytes, runs: List[Tuple[int, int]]) -> bytes:
        """Take in a page of the manifest; one byte a chunk says what must come over a lane."""
        assert self._assembly is not None
        wanted = bytearray(len(digests) // 32)
        try:
            missing = self._assembly.offer(first, digests, runs)
        except OSError as error:
            raise self._told(error) from error
        for index in missing:
            wanted[index - first] = 1
        return bytes(wanted)

    def sink(self) -> Sink:
        """Where chunks go that come with the conversation itself."""
        assert self.table is not None and self.staging is not None
        return Sink(self._files, self.table, self.staging.fd, self.staging.fresh, self.tee.fd if self.tee else None)

    def _told(self, error: OSError) -> FastcopyError:
        typed = classify(error, f"writing {self._directory.disk}")
        if isinstance(typed, NoSpace):
            free = free_bytes(self._directory.fd) // 2**20
            return NoSpace(
                f"{self._directory.disk} needs {-(-self._needed // 2**20)} MiB, and the file system is full "
                f"({free} MiB free): make room there and repeat the action"
            )
        return typed

    def commit(self, manifest_id: str) -> Published:
        """Check that all is there, make it durable and give it its name (the cache's first, where it is shared)."""
        assert self._assembly is not None and self.staging is not None
        self._committing = True
        try:
            manifest = self._assembly.finish()
            if manifest.id != manifest_id:
                raise BadChunk("what was received is not what was announced")
            if self._in_cache:
                published = self._commit_shared(manifest)
            else:
                # The staging file cannot be told from the disk any more once it has the disk's size.
                if self.tee and self._cache and not self._tee_complete():
                    self._cache.note("the image could not be written to it")
                receipt = self._publish_staged(self.staging, manifest.id)
                published = Published(receipt.encode(), "lanes" + (", tee" if self.tee else ", past the cache"))
        except OSError as error:
            raise self._told(error) from error
        return published

    def _commit_shared(self, manifest: Manifest) -> Published:
        assert self.staging is not None and self._cache is not None
        if not self._alive():
            raise LinkLost("the front-end went away")
        how = "lanes"
        try:
            self._cache.enter(self.staging, manifest, self._key)
        except (OSError, FastcopyError) as error:
            how = f"lanes, not kept in the cache ({getattr(error, 'strerror', None) or error})"
        staged = self.staging.fd
        return self._disk_from(staged, manifest.id, self._target, how, lambda disk: self._copy(staged, manifest, disk))

    def _publish_staged(self, staging: Staging, manifest_id: str) -> Receipt:
        assert self._disk is not None
        try:
            return self._disk.publish(staging, manifest_id)
        except Refused:
            self._drop_staging(staging)  # it is whole, and repeating the action would not make it a disk
            raise

    def _drop_staging(self, staging: Staging) -> None:
        self._files.unlink(staging.directory, staging.name)
        if self._disk:
            self._disk.clear()

    def _tee_complete(self) -> bool:
        return self.table is not None and self.table.tee_complete and not self.table.missing()

    def finish_tee(self) -> None:
        """Give the cache's copy its name.  The disk has been published, and nobody waits: any failure is swallowed."""
        if self.tee is None or self.table is None or self._cache is None:
            return
        try:
            if self._tee_complete():
                manifest = Manifest(self.table.size, self.table.chunk_size, self.table.digests())
                self._cache.enter(self.tee, manifest, self._key)
            else:
                self._files.unlink(self._cache.fd, self.tee.name)
        except (OSError, FastcopyError):
            pass
        self.tee.close()
        self.tee = None

    def no_room(self) -> None:
        """Remove what was staged: the file system is full, and a half that cannot be completed only keeps it so."""
        if self.staging:
            self._drop_staging(self.staging)
        self._drop_tee()

    @property
    def lacks_room(self) -> bool:
        """Whether a lane has found the file system full, of which only the front-end was told."""
        return self.table is not None and self.table.lacks_room

    def abandon(self) -> None:
        """Let go of everything; what is staged stays, for the next action to resume."""
        if self._lease:
            self._lease.release()
        if self._seeds:
            self._seeds.close()
        for held in (self.staging, self.tee):
            if held:
                held.close()
        if self._disk:
            self._disk.close()
        if self.table:
            self.table.close()
        close(self._cache.fd if self._cache else None)
