"""Volatile disks: made on the host out of nothing, with a file system or swap in them if that is wanted.

A qcow2 disk is a flat file here, as the stock drivers leave it: OpenNebula takes no snapshots of such disks, so they
need no tree.  mkfs writes raw files only, so a qcow2 disk with a file system is converted from a raw one that has no
name, and is gone whatever happens.
"""

from __future__ import annotations

import os
from typing import Callable

from ..core.errors import FastcopyError
from ..core.files import Files
from ..core.messages import Published
from ..core.staging import Staging
from ..core.volatile_messages import SWAP, MakeDisk
from . import qemu_img
from .directory import VmDirectory
from .disk import QCOW2, Disk, Target, check_format
from .program import Task, by_fd, run

Claim = Callable[[int], None]
"""Finds room for so many bytes; `NoSpace` if there is none."""

_MIB = 1024 * 1024
# What a file system writes when it is made: XFS a log of 64 MiB and more, ext4 a journal that grows to 1 GiB with the
# size.  Measured from 10 MiB to 1 TiB, it stays below this.
_FS_FIRST, _FS_SHARE, _FS_MOST = 64 * _MIB, 200, 1024 * _MIB

# mkfs asks before it writes into a file, unless it is forced.
_FORCE = {"ext2": ["-F"], "ext3": ["-F"], "ext4": ["-F"], "xfs": ["-f"], "btrfs": ["-f"]}
_PACKAGES = {"ext2": "e2fsprogs", "ext3": "e2fsprogs", "ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}


class Volatile:
    """One disk in the making, in the VM directory whose guard is held.  *claim* is asked first."""

    def __init__(
        self, files: Files, directory: VmDirectory, wanted: MakeDisk, claim: Claim, alive: Callable[[], bool]
    ) -> None:
        check_format(wanted.format)
        self._files, self._directory, self._wanted, self._claim, self._alive = files, directory, wanted, claim, alive

    def make(self) -> Published:
        """Make the disk and publish it, in place of whatever has its name: that is an earlier attempt."""
        wanted, files = self._wanted, self._files
        self._claim(self._needed())
        target = Target(wanted.size, wanted.mode, wanted.sparse)  # one file, whatever is in it
        disk = Disk(files, self._directory, target, self._alive)
        staging = disk.stage_anew()
        try:
            if wanted.format == QCOW2:
                self._write_qcow2(staging)
                target.size = os.fstat(staging.fd).st_size
            else:
                self._write_raw(staging.fd)
            receipt = disk.publish(staging, "")
        except BaseException:
            files.unlink(staging.directory, staging.name)
            raise
        finally:
            staging.close()
            disk.close()
        return Published(receipt.encode(), "made")

    def _needed(self) -> int:
        """Bytes that will be written or allocated at once."""
        wanted = self._wanted
        fs = min(wanted.size, _FS_FIRST + min(wanted.size // _FS_SHARE, _FS_MOST)) if wanted.fs not in ("", SWAP) else 0
        scratch = fs if wanted.format == QCOW2 else 0
        return scratch + (fs if wanted.sparse else wanted.size)

    def _write_raw(self, fd: int) -> None:
        wanted = self._wanted
        self._files.truncate(fd, wanted.size)
        if wanted.fs == SWAP:
            self._run(["mkswap", "-L", SWAP, by_fd(fd)], fd, "util-linux")
        elif wanted.fs:
            argv = [f"mkfs.{wanted.fs}", *_FORCE.get(wanted.fs, []), *wanted.words, by_fd(fd)]
            self._run(argv, fd, _PACKAGES.get(wanted.fs, f"what has mkfs.{wanted.fs}"))

    def _write_qcow2(self, staging: Staging) -> None:
        wanted, shown = self._wanted, self._directory.disk
        if not wanted.fs:
            qemu_img.create(staging.fd, wanted.size, not wanted.sparse, shown, self._alive)
            return
        scratch = self._files.create_unnamed(staging.directory)
        try:
            self._write_raw(scratch)
            qemu_img.convert(scratch, staging.fd, not wanted.sparse, shown, self._alive)
        finally:
            os.close(scratch)

    def _run(self, argv: list[str], fd: int, package: str) -> None:
        shown = self._directory.disk
        problem = run(argv, [fd], Task(f"make {shown}", shown, package, self._alive))
        if problem:
            raise FastcopyError(f"{argv[0]} cannot make a file system in {shown}: {problem}")
