"""Files: every operation that changes a file system goes through this one class.

It is thin on purpose: a method is one system call, or the nearest the machine has.  That all changes pass through here
makes the write order of the driver something that can be listed, and tests can wrap it to fail at any step.

Names are always relative to an open directory and links are never followed.  Sources: fallocate(2), ioctl_ficlone(2),
rename(2), copy_file_range(2), sync_file_range(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from typing import Optional

from .extents import extents

_libc = ctypes.CDLL(None, use_errno=True)
_off = ctypes.c_int64

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
RENAME_EXCHANGE = 2
SYNC_FILE_RANGE_WRITE = 2
_F_OFD_GETLK = 36
FICLONE = 0x40049409
FICLONERANGE = 0x4020940D

# What a file system, or a pair of files, answers when it cannot share: not an error, only a slower way.
_CANNOT_SHARE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_NOT_KNOWN = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_COPY_BUFFER = 1024 * 1024


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Files:
    """The file system as it is."""

    def create(self, directory: int, name: str, mode: int = 0o600) -> int:
        """Create *name*, which must not exist, and return its descriptor, open for reading and writing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, mode, dir_fd=directory)

    def create_unnamed(self, directory: int) -> int:
        """Create a file without a name on the file system of *directory*: it is gone when its descriptor is closed."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in (*_NOT_KNOWN, errno.EISDIR):
                raise
        name = f".{os.getpid()}.{time.monotonic_ns()}.fastcopy.part"
        fd = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        os.unlink(name, dir_fd=directory)
        return fd

    def make_directory(self, directory: int, name: str, mode: int) -> bool:
        """Create the directory *name*; False if something of that name is there already."""
        try:
            os.mkdir(name, mode, dir_fd=directory)
        except FileExistsError:
            return False
        return True

    def make_link(self, directory: int, name: str, target: str) -> None:
        """Make the symbolic link *name*, which must not exist, with the text *target*."""
        os.symlink(target, name, dir_fd=directory)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of *data* at *offset*."""
        done = os.pwrite(fd, data, offset)
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)

    def truncate(self, fd: int, size: int) -> None:
        """Set the file's size in bytes."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve room for a run, contiguous if there is such; the size stays.  Does nothing where it is not known."""
        try:
            _check(_libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, _off(offset), _off(length)))
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise

    def fill(self, fd: int, size: int) -> None:
        """Allocate every hole below *size*, so that later writes cannot meet a full file system.

        Hole by hole: XFS and btrfs reserve room for all that they are asked for, also where the file has its blocks.
        """
        for extent in extents(fd, size):
            if not extent.data:
                os.posix_fallocate(fd, extent.offset, extent.length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Make a run a hole; where the file system cannot, make it zero."""
        flags = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        try:
            _check(_libc.fallocate(fd, flags, _off(offset), _off(length)))
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
            while length > 0:
                piece = min(length, _COPY_BUFFER)
                self.write(fd, bytes(piece), offset)
                offset, length = offset + piece, length - piece

    def clone(self, target: int, source: int) -> bool:
        """Make *target* share all blocks of *source* (reflink); False where that cannot be had."""
        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError as error:
            if error.errno in _CANNOT_SHARE:
                return False
            raise
        return True

    def clone_range(self, target: int, source: int, source_offset: int, length: int, target_offset: int) -> bool:
        """Share a run of blocks; False where that cannot be had, also because the run is not aligned."""
        try:
            fcntl.ioctl(target, FICLONERANGE, struct.pack("qQQQ", source, source_offset, length, target_offset))
        except OSError as error:
            if error.errno in _CANNOT_SHARE:
                return False
            raise
        return True

    def copy_range(
        self, target: int, source: int, source_offset: int, length: int, target_offset: int, share: bool = True
    ) -> None:
        """Copy a run.  *share* lets the kernel share blocks instead (copy_file_range does, where it can)."""
        while length > 0:
            done = self._copy_some(target, source, source_offset, length, target_offset, share)
            if done == 0:
                raise OSError(errno.EIO, "the source of a copy ended early")
            source_offset, target_offset, length = source_offset + done, target_offset + done, length - done

    def _copy_some(self, target: int, source: int, at: int, length: int, to: int, share: bool) -> int:
        if share:
            try:
                return os.copy_file_range(source, target, length, at, to)
            except OSError as error:
                if error.errno not in _CANNOT_SHARE:
                    raise
        data = os.pread(source, min(length, _COPY_BUFFER), at)
        self.write(target, data, to)
        return len(data)

    def start_writeback(self, fd: int) -> None:
        """Ask the kernel to begin writing the file to the disk, so that the fsync to come is short.  A hint only."""
        _libc.sync_file_range(fd, _off(0), _off(0), SYNC_FILE_RANGE_WRITE)

    def chmod(self, fd: int, mode: int) -> None:
        """Set the permission bits of an open file."""
        os.fchmod(fd, mode)

    def set_mtime(self, fd: int, seconds: int) -> None:
        """Set the time of last modification (seconds since the epoch)."""
        os.utime(fd, (seconds, seconds))

    def sync(self, fd: int) -> None:
        """Return when the file's content and size are durable."""
        os.fsync(fd)

    def sync_directory(self, directory: int) -> None:
        """Return when the names in a directory are durable."""
        os.fsync(directory)

    def sync_file_system(self, fd: int) -> None:
        """Have the file system of *fd* write out all that it holds in memory: a matter of seconds.  A help only.

        btrfs counts what was deleted as free only when its transaction is committed, half a minute later or now.
        """
        _libc.syncfs(fd)

    def rename(self, directory: int, old: str, new: str) -> None:
        """Give *old* the name *new*, in one step; what had that name before is gone."""
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def move(self, directory: int, name: str, target: int, new: str) -> None:
        """Give the file *name* the name *new* in another directory of the same file system, in one step."""
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=target)

    def exchange(self, directory: int, one: str, other: str) -> bool:
        """Swap two names in one step; False where the file system or the C library cannot."""
        try:
            _check(_libc.renameat2(directory, os.fsencode(one), directory, os.fsencode(other), RENAME_EXCHANGE))
        except AttributeError:
            return False
        except OSError as error:
            if error.errno in _NOT_KNOWN:
                return False
            raise
        return True

    def unlink(self, directory: int, name: str) -> None:
        """Remove a name; it is no error if it is not there."""
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass

    def remove_directory(self, directory: int, name: str) -> None:
        """Remove an empty directory; it is no error if it is not there."""
        try:
            os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            pass


def free_bytes(fd: int) -> int:
    """Bytes that an unprivileged user can still write on the file system that *fd* lies on."""
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize


def room(files: Files, fd: int, needed: int) -> int:
    """As `free_bytes`; if that is less than *needed*, asked again when the file system has settled."""
    free = free_bytes(fd)
    if free < needed:
        files.sync_file_system(fd)
        free = free_bytes(fd)
    return free


def can_share(files: Files, directory: int, name: str) -> bool:
    """Whether the file system of *directory* can share blocks between files.  Tries it, with scratch files *name*.*."""
    opened = []
    try:
        for suffix in (".a", ".b"):
            files.unlink(directory, name + suffix)
            opened.append(files.create(directory, name + suffix))
        files.write(opened[0], bytes(4096), 0)
        return files.clone(opened[1], opened[0])
    except OSError:
        return False
    finally:
        for fd, suffix in zip(opened, (".a", ".b")):
            os.close(fd)
            files.unlink(directory, name + suffix)


def lock(fd: int, wait: bool = False) -> bool:
    """Take the exclusive flock of an open file; False if another holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def is_in_use(fd: int) -> bool:
    """Whether somebody else holds a record lock on an open file: QEMU does on every image that it has open.

    False where the file system knows no locks.  Sources: fcntl(2), QEMU's "Image locking".
    """
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        found: bytes = fcntl.fcntl(fd, _F_OFD_GETLK, wanted)
    except OSError:
        return False
    return bool(struct.unpack_from("h", found)[0] != fcntl.F_UNLCK)


def close(fd: Optional[int]) -> None:
    """Close a descriptor that may be None."""
    if fd is not None:
        os.close(fd)
