"""Paths: what may be touched, and how it is opened.

A datastore's own directory may be a link or a mount; the administrator chose it, so it is resolved once and
trusted.  What
lies below was written by virtual machines' actions, and no link there is followed: every component is opened by itself
with O_NOFOLLOW, so that nothing planted between a check and its use can lead outside.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Iterable, List, Optional

from .errors import Refused, classify

_NAME = re.compile(r"disk\.[0-9]{1,9}|kernel|initrd")
_VM = re.compile(r"[0-9]{1,9}")
MAX_PATH = 4096  # PATH_MAX of Linux


@dataclass(frozen=True)
class DiskPath:
    """`<base>/<vm>/<name>`: a file of a VM in a system datastore."""

    base: str
    vm: int
    name: str

    def __str__(self) -> str:
        return f"{self.base}/{self.vm}/{self.name}"


def disk_path(path: str, base: str) -> DiskPath:
    """Read *path* as a file of a VM in the system datastore *base*; `Refused` if it is anything else."""
    clean = _checked(path)
    prefix = base.rstrip("/") + "/"
    vm, _, name = clean[len(prefix) :].partition("/")
    if not clean.startswith(prefix) or not _VM.fullmatch(vm) or not _NAME.fullmatch(name):
        raise Refused(
            f"{path} is not a VM's disk in the datastore {base}: expected {prefix}<VM id>/disk.<N>, kernel or initrd"
        )
    return DiskPath(base.rstrip("/"), int(vm), name)


def vm_path(path: str, base: str) -> DiskPath:
    """Read *path* as the directory of a VM in the system datastore *base*: its name is "".  `Refused` otherwise."""
    clean = _checked(path).rstrip("/")
    prefix = base.rstrip("/") + "/"
    if not clean.startswith(prefix) or not _VM.fullmatch(clean[len(prefix) :]):
        raise Refused(f"{path} is not a VM's directory in the datastore {base}: expected {prefix}<VM id>")
    return DiskPath(base.rstrip("/"), int(clean[len(prefix) :]), "")


def disk_name(name: str) -> str:
    """Return *name* if a VM directory may hold a disk or boot file of that name; `Refused` otherwise."""
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is not the name of a disk")
    return name


def relative_to_any(path: str, bases: Iterable[str]) -> tuple[str, str]:
    """Return (base, rest) for the datastore that *path* lies in; `Refused` if it lies in none."""
    clean = _checked(path)
    for base in sorted(bases, key=len, reverse=True):
        prefix = base.rstrip("/") + "/"
        if clean.startswith(prefix) and len(clean) > len(prefix):
            return base, clean[len(prefix) :]
    raise Refused(f"{path} does not lie in any datastore that oned knows")


def _checked(path: str) -> str:
    if not path.startswith("/") or "\0" in path or "\n" in path or len(path) > MAX_PATH:
        raise Refused(f"{path!r} is not an absolute path")
    clean = re.sub(r"/+", "/", path)
    if any(part in (".", "..") for part in clean.split("/")):
        raise Refused(f"{path} has '.' or '..' in it; give the plain path")
    return clean


def open_base(base: str) -> int:
    """Open a datastore's directory, links in its own path followed; the descriptor is the caller's to close."""
    try:
        return os.open(_checked(base), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise classify(error, f"opening the datastore {base}") from error


def open_directory(parent: int, name: str, shown: str) -> int:
    """Open the directory *name* below the open directory *parent*, no link followed.  *shown* is its name in errors."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except NotADirectoryError as error:
        # O_DIRECTORY | O_NOFOLLOW on a link says ENOTDIR on some kernels and ELOOP on others.
        raise Refused(f"{shown} is not a directory, or is a symbolic link, which is not followed") from error
    except OSError as error:
        raise classify(error, f"opening {shown}") from error


def list_names(directory: int) -> List[str]:
    """What is in an open directory now; nothing if it was removed.

    Read by a descriptor of its own: on btrfs (Linux 6.5 and newer) one that was open before shows nothing that has come
    since it was opened, or last read.
    """
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def open_below(base: str, rest: str, flags: int, mode: int = 0) -> tuple[int, int, str]:
    """Open the file *rest* below the datastore *base*; return (its directory's fd, its fd, its name).

    No link below the base is followed.  The caller closes both.  OSError of the last component is passed on, because
    only the caller knows what a missing file means.
    """
    directory, name = open_parent(base, rest)
    try:
        return directory, os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory), name
    except BaseException:
        os.close(directory)
        raise


def open_parent(base: str, rest: str) -> tuple[int, str]:
    """Open the directory that the file *rest* below *base* lies in; return its descriptor and the file's name."""
    *parents, name = rest.split("/")
    directory = open_base(base)
    shown = base
    for part in parents:
        shown = f"{shown}/{part}"
        try:
            below = open_directory(directory, part, shown)
        finally:
            os.close(directory)
        directory = below
    return directory, name


def has(directory: int, name: str) -> Optional[os.stat_result]:
    """lstat of *name* in an open directory, or None."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_named(directory: int, name: str, fd: int) -> bool:
    """Whether the open file *fd* has the name *name* in an open directory (now; only a lock makes it stay so)."""
    named, opened = has(directory, name), os.fstat(fd)
    return named is not None and (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def is_mount(parent: int, fd: int) -> bool:
    """Whether the open directory *fd*, in the open directory *parent*, is a mount point.

    A bind mount on the same file system has the same device: only the kernel's number of the mount tells it.
    """
    return os.fstat(fd).st_dev != os.fstat(parent).st_dev or _mount(fd) != _mount(parent)


def _mount(fd: int) -> str:
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return next((line for line in file if line.startswith("mnt_id:")), "")
    except OSError:
        return ""
