"""A VM's directory on this host: opened without following links, guarded by a lock and a fence.

The guard is an flock on the directory itself: it needs no file, and ends with the process.  The fence (the VM's history
sequence, a number that grows with every action) is kept for each disk in an extended attribute of the directory, and is
looked at again right before a disk is published: an older action that still runs somewhere finds itself superseded.
Where the file system has no user attributes, the lock alone stands guard.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from typing import Callable, List, Optional, Tuple

from ..core.errors import FastcopyError, Refused, Superseded, classify
from ..core.files import Files, is_in_use, lock
from ..core.paths import disk_name, has, is_named, list_names, open_base, open_directory
from ..core.publish import staging_name

GUARD_WAIT = 60.0  # seconds; twice what an agent whose front-end vanished needs to notice and go
_ATTRIBUTE = "user.fastcopy.fence."
_ALL = "all"  # the fence of an action on the whole directory
# The fence of a directory that was removed lies on the datastore's, so that an older action does not make it anew.
_GONE = "user.fastcopy.gone."
_MOST_GONE = 32  # of them at once: ext4 keeps all attributes of a file in 4 KiB
# On a read-only file system (what is left of a broken disk, perhaps) nothing is published: a disk can still be read.
_NO_ATTRIBUTES = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ENODATA, errno.EROFS}
_MONITOR = ".monitor"

_SKEW = 10_000_000  # microseconds by which clocks of front-ends and hosts may differ
_BRIEFLY = 2.0  # seconds

Fence = Tuple[int, int]
"""History sequence of the VM, and the time at which the action began, in microseconds since the epoch."""


def _lock_briefly(fd: int) -> None:
    """Take a lock that is held for two system calls at a time, or go on without it.

    A user of the host who may read the datastore's directory can hold it for ever.  It only keeps two actions that
    begin in the same microsecond apart, so it is not worth waiting for.
    """
    deadline = time.monotonic() + _BRIEFLY
    while not lock(fd) and time.monotonic() < deadline:
        time.sleep(0.01)


def open_datastore(base: str) -> int:
    """Open the directory of a system datastore; `Refused` if *base* cannot be one."""
    if not re.fullmatch(r"/.*/[0-9]{1,9}/?", base):
        raise Refused(f"{base} is not the directory of a datastore, which ends in the datastore's id")
    return open_base(base)


def make_datastore(files: Files, base: str) -> None:
    """Make the directory of a system datastore, if it is missing: oned makes it on no host, and stock drivers do.

    Also the one that all datastores lie in, if that is not in `/`, but nothing above it: a path that is wrong is not
    made true.
    """
    parts = base.rstrip("/").rsplit("/", 2)
    if len(parts) < 3:
        return
    for depth in (1, 2) if parts[0] else (2,):
        above, name = "/".join(parts[:depth]), parts[depth]
        try:
            parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # whoever opens it says what is missing
        try:
            if has(parent, name) is None and files.make_directory(parent, name, 0o755):
                files.sync_directory(parent)
        except OSError as error:
            raise classify(error, f"making the datastore's directory {above}/{name}") from error
        finally:
            os.close(parent)


def datastore_or_above(base: str) -> Tuple[int, bool]:
    """Open the directory of a system datastore, or the one in which `make_datastore` would make it; and which it is."""
    try:
        return open_datastore(base), True
    except Refused:
        raise
    except FastcopyError:
        path = base.rstrip("/")
        for above in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
            if os.path.lexists(path) or above == "/":
                break
            if os.path.isdir(above):
                return open_base(above), False
            path = above
        raise


class VmDirectory:
    """The directory of VM *vm* in the system datastore *base*, guarded for the disk *name* from `enter` to `leave`.

    The name "" stands for the whole directory.  *create* makes the datastore's, if it is missing; the VM's own is made
    when it is entered.
    """

    def __init__(self, files: Files, base: str, vm: int, name: str, fence: Fence, create: bool = False) -> None:
        self.files, self.vm, self.name, self.fence = files, vm, name and disk_name(name), fence
        self.base = base
        if create:
            make_datastore(files, base)
        self.base_fd = open_datastore(base)
        self.fd = -1
        self.path = f"{base}/{vm}"

    @property
    def disk(self) -> str:
        """Full path of the disk."""
        return f"{self.path}/{self.name}"

    def enter(
        self, create: bool, driver: str, wait: float = GUARD_WAIT, alive: Callable[[], bool] = lambda: True
    ) -> None:
        """Open (or create) the directory and take its guard; `FastcopyError` if another action keeps it.

        Waiting ends also when *alive* says that nobody waits for the answer any more.
        """
        if create:
            self._create(driver)
        deadline = time.monotonic() + wait
        self._open()
        self._claim()
        while not lock(self.fd) or not self._named():
            if not alive():
                raise Superseded(f"the front-end went away while {self.path} was waited for")
            if time.monotonic() > deadline:
                raise FastcopyError(
                    f"another action has been at work in {self.path} for {wait:.0f} s: repeat this one when it is done"
                )
            time.sleep(0.05)
            if not self._named():
                self.check_fence()  # who removed it may be newer than we are
                if create:
                    self._create(driver)
                self._open()
                self._claim()
        self.check_fence()

    def enter_if_there(self, alive: Callable[[], bool]) -> bool:
        """Take the guard of a directory that is there; False if there is none, or not any more."""
        if has(self.base_fd, str(self.vm)) is None:
            return False
        try:
            self.enter(create=False, driver="", alive=alive)
        except FastcopyError:
            if has(self.base_fd, str(self.vm)) is None:
                return False  # a removal was faster
            raise
        return True

    def _named(self) -> bool:
        """Whether what is open is still the VM's directory: it may have been removed, or moved, while we waited."""
        return is_named(self.base_fd, str(self.vm), self.fd)

    def _open(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.fd = open_directory(self.base_fd, str(self.vm), self.path)

    def check_gone(self) -> None:
        """Raise `Superseded` if a newer action has removed the directory, as far as that is remembered."""
        self._check_fence(self.base_fd, _GONE + str(self.vm))

    def _create(self, driver: str) -> None:
        self.check_gone()
        try:
            if self.files.make_directory(self.base_fd, str(self.vm), 0o755):
                self.files.sync_directory(self.base_fd)
        except OSError as error:
            raise classify(error, f"creating {self.path}") from error
        self.name_driver(driver)

    def name_driver(self, driver: str) -> None:
        """Write `.monitor`, for a directory that somebody else will make."""
        try:
            self._monitor(driver)
        except OSError as error:
            raise classify(error, f"writing {self.base}/{_MONITOR}") from error

    def _monitor(self, driver: str) -> None:
        """Let the host's probes know which driver's `monitor_ds` to run here."""
        wanted = driver.encode() + b"\n"
        try:
            fd = os.open(_MONITOR, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.base_fd)
            try:
                if os.read(fd, 256) == wanted:
                    return
            finally:
                os.close(fd)
        except FileNotFoundError:
            pass
        # Always the same staging name, so that none is left for ever; so one at a time.
        guard = open_base(self.base)
        try:
            _lock_briefly(guard)
            self._write_monitor(wanted)
        finally:
            os.close(guard)

    def _write_monitor(self, wanted: bytes) -> None:
        staging = staging_name(_MONITOR)
        self.files.unlink(self.base_fd, staging)
        fd = self.files.create(self.base_fd, staging, 0o644)
        try:
            self.files.write(fd, wanted, 0)
            self.files.sync(fd)
            self.files.rename(self.base_fd, staging, _MONITOR)
        finally:
            os.close(fd)
            self.files.unlink(self.base_fd, staging)

    def _claim(self) -> None:
        """Write our fence down, before the lock is waited for: whoever holds it must not publish any more.

        The claims of two actions are kept apart by a lock on the datastore's directory, held for two system calls
        (and, once in a datastore's life, while `.monitor` is written).
        """
        fd = open_base(self.base)
        try:
            _lock_briefly(fd)
            self.check_fence()
            try:
                os.setxattr(self.fd, _ATTRIBUTE + (self.name or _ALL), b"%d %d" % self.fence)
            except OSError as error:
                if error.errno not in _NO_ATTRIBUTES:
                    raise classify(error, f"marking {self.path}") from error
        finally:
            os.close(fd)

    def check_fence(self) -> None:
        """Raise `Superseded` if a newer action has claimed this disk, or the whole directory; and for the whole
        directory, if one has claimed anything in it."""
        for attribute in {_ATTRIBUTE + self.name, _ATTRIBUTE + _ALL} if self.name else self._fences():
            self._check_fence(self.fd, attribute)

    def _fences(self) -> List[str]:
        try:
            return [name for name in os.listxattr(self.fd) if name.startswith(_ATTRIBUTE)]
        except OSError:
            return []

    def _check_fence(self, fd: int, attribute: str) -> None:
        try:
            raw = os.getxattr(fd, attribute)
            seq, action = (int(word) for word in raw.split())
        except (OSError, ValueError):
            return
        if seq == self.fence[0] and action > time.time_ns() // 1000 + _SKEW:
            return  # from a clock that was wrong: believed, it would keep every action out until the time it names
        if (seq, action) > self.fence:
            raise Superseded(f"a newer action has taken over {self.disk}; this one stops and changes nothing more")

    def check_unused(self, fd: Optional[int] = None) -> None:
        """Raise `Refused` if a disk in the directory is in use: then a VM runs here, whatever oned believes.

        *fd*: in this open directory instead, which had the VM's name.
        """
        place = self.fd if fd is None else fd
        disks = sorted(name for name in list_names(place) if name.startswith("disk."))
        for name in disks:
            self._check_unused(place, name)
            try:
                tree = open_directory(place, name, f"{self.path}/{name}")
            except FastcopyError:
                continue  # it is a file, or a link into a tree
            try:
                for member in list_names(tree):
                    self._check_unused(tree, member)
            finally:
                os.close(tree)

    def _check_unused(self, place: int, name: str) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
        except OSError:
            return  # a link, or nothing that we may read
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode) and is_in_use(fd):
                raise Refused(
                    f"a process on this host uses {name} in {self.path}, so a VM runs here, whose disks stay: find out "
                    "where the VM runs before you repeat or recover this"
                )
        finally:
            os.close(fd)

    def hand_on_fence(self, fd: int) -> None:
        """Give another directory, which is about to take this one's place, the fences of this one."""
        for name in self._fences():
            try:
                os.setxattr(fd, name, os.getxattr(self.fd, name))
            except OSError:
                pass  # where there are no attributes, the lock alone stands guard

    def publishable(self, alive: Callable[[], bool]) -> None:
        """Raise unless this action may still give the disk its name: not superseded, and its front-end is there."""
        self.check_fence()
        if not alive():
            raise Superseded(f"the front-end went away, so {self.disk} is not published")
        status = has(self.fd, self.name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise Refused(f"{self.disk} is a directory; remove it and repeat the action")

    def mark_gone(self) -> None:
        """Leave the fence behind: the directory is about to be removed.  A help only."""
        try:
            found = sorted(
                (os.getxattr(self.base_fd, name).split()[-1:], name)
                for name in os.listxattr(self.base_fd)
                if name.startswith(_GONE)
            )
            for _, name in found[: max(0, len(found) - _MOST_GONE + 1)]:
                os.removexattr(self.base_fd, name)
            os.setxattr(self.base_fd, _GONE + str(self.vm), b"%d %d" % self.fence)
        except OSError:
            pass

    def drop_empty(self) -> None:
        """Remove the directory if we hold it and nothing is in it: then it was only made to be guarded."""
        try:
            if self.fd >= 0 and self._named() and not list_names(self.fd):
                self.files.remove_directory(self.base_fd, str(self.vm))
        except OSError:
            pass

    def leave(self) -> None:
        """Release the guard."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        os.close(self.base_fd)
