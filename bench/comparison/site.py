"""A lab for the bench: every driver has an image datastore and a system datastore of its own.

The images that disks are compared with lie on the front-end, too, in a directory that only root can enter: no driver
can change what it is measured against.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Sequence

from bench import measure
from bench.comparison.drivers import Disk, Driver
from bench.images import catalogue, debian_like, edge
from bench.images.edge import BLOCK, MIB
from bench.images.extents import data_runs
from bench.images.mutate import mutate
from bench.jobs import settle
from bench.testbed import Lab, Node
from bench.testbed.node import UID

_CHANGED = 0.05  # of the data, by a guest before a write-back
_SEED = 4
_TRIM = 300.0  # seconds for fstrim
HOWS = ("contiguous", "scattered")

Write = Callable[[Path, Callable[[str], Path]], object]
"""Writes an image's file; the other argument gives the file of another image."""


@dataclass(frozen=True)
class Picture:
    """An image: what it is, and how its file is made."""

    meaning: str
    write: Write


def pictures(images: Path, real: bool) -> Dict[str, Picture]:
    """The images by name. *real*: a Debian from *images*; otherwise one that only looks like it, in seconds."""

    def like(size: int, seed: int) -> Write:
        return lambda path, _: debian_like.write(path, size * MIB, seed=seed)

    def taken(name: str) -> Write:
        return lambda path, _: copy(catalogue.path_of(name, images), path)

    def written(how: str) -> Write:
        return lambda path, made: _written(path, made("system"), how)

    if real:
        system = Picture("Debian 12, 4 GiB", taken("debian"))
        second = Picture("the same, updated", taken("debian-v2"))
    else:
        system = Picture("like a file system, 256 MiB", like(256, 1))
        second = Picture("the same, a tenth changed", _second_version)
    size = 256 if real else 64
    return {
        "system": system,
        "system-v2": second,
        "tiny": Picture("like a file system, 10 MB", like(10, 2)),
        "random": Picture(f"random bytes, {size} MiB", lambda path, _: edge.random_data(path, size * MIB)),
        "medium": Picture("like a file system, 64 MiB", like(64, 3)),
        "medium-2": Picture("another one", like(64, 4)),
        "medium-3": Picture("another one", like(64, 5)),
        **{f"like-{n}": Picture(f"like a file system, {n} MiB", like(n, n)) for n in (16, 64, 256)},
        **{f"system-{how}": Picture(f"`system` after a guest wrote, {how}", written(how)) for how in HOWS},
    }


def copy(source: Path, target: Path) -> None:
    """Copy a file, holes and shared blocks as they can be."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)


def _second_version(path: Path, made: Callable[[str], Path]) -> None:
    copy(made("system"), path)
    mutate(path, _SEED, contiguous=20 * MIB, scattered=500, zeroed=2 * MIB, punched=2 * MIB)


def _written(path: Path, original: Path, how: str) -> None:
    copy(original, path)
    change(path, how, data_bytes(original))


def change(path: Path, how: str, data: int) -> None:
    """What a guest does to a disk whose image has *data* bytes of data; the same for every disk of the same size."""
    count = int(data * _CHANGED) // BLOCK
    contiguous, scattered = (count * BLOCK, 0) if how == "contiguous" else (0, count)
    mutate(path, _SEED, contiguous=contiguous, scattered=scattered, zeroed=0, punched=0)


def data_bytes(path: Path) -> int:
    """Bytes of a file that are no hole."""
    with path.open("rb") as file:
        return sum(length for _, length in data_runs(file.fileno(), os.fstat(file.fileno()).st_size))


class Site:
    """Images and virtual machines in a running lab."""

    def __init__(self, lab: Lab, known: Dict[str, Picture]) -> None:
        self.lab, self._known = lab, known
        self._own = lab.fe.path(lab.datastores / ".bench")
        self._own.mkdir(mode=0o700)
        self._numbers: Dict[tuple[str, str], int] = {}
        self._data: Dict[str, int] = {}
        self._next = 1000

    def hosts(self, fs: str) -> List[str]:
        """Names of the hosts with this file system."""
        return [name for name, node in self.lab.hosts.items() if node.fs == fs]

    # -- images ----------------------------------------------------------------------------------------------

    def original(self, picture: str) -> Path:
        """The file that disks of an image are compared with; made when it is first asked for."""
        path = self._own / picture
        if not path.exists():
            self._known[picture].write(path, self.original)
        return path

    def data(self, picture: str) -> int:
        """Bytes of data in an image."""
        if picture not in self._data:
            self._data[picture] = data_bytes(self.original(picture))
        return self._data[picture]

    def changed(self, old: str, new: str) -> int:
        """Bytes of the 4 KiB blocks that differ between two images."""
        return measure.changed_blocks(self.original(old), self.original(new))

    def image(self, driver: Driver, picture: str, persistent: bool = False) -> tuple[int, str]:
        """Number and path of a driver's own copy of an image; made when it is first asked for."""
        key = driver.name, f"{picture}-persistent" if persistent else picture
        path = f"{self.lab.datastores}/{driver.image_store}/{key[1]}"
        if key not in self._numbers:
            self._numbers[key] = number = len(self._numbers) + 1
            self.restore(picture, path)
            size = -(-self.original(picture).stat().st_size // MIB)
            self.lab.oned.add_image(number, driver.image_store, path, size, persistent=persistent)
        return self._numbers[key], path

    def restore(self, picture: str, path: str) -> None:
        """Make a datastore's file what its original is, and let it rest."""
        file = self.lab.fe.path(path)
        file.unlink(missing_ok=True)
        copy(self.original(picture), file)
        shutil.chown(file, UID, UID)
        file.chmod(0o640)
        settle([file])

    # -- virtual machines ------------------------------------------------------------------------------------

    def new_vm(self, driver: Driver, host: str, images: Sequence[int]) -> List[Disk]:
        """A VM with a disk of each image, known to oned; its disks, not made yet."""
        self._next += 1
        number, store = self._next, driver.system_store
        self.lab.oned.add_vm(number, host=host, ds_id=store, disks=[{"IMAGE_ID": image} for image in images])
        disks = [
            Disk(host, f"{self.lab.datastores}/{store}/{number}/disk.{index}", number) for index in range(len(images))
        ]
        driver.prepare(self.lab, disks[0])
        return disks

    def remove_vm(self, driver: Driver, disks: Sequence[Disk]) -> None:
        """Remove what a VM has left, wherever it is: its blocks, too, though an NFS server keeps files open.

        Not those of a file that has another name elsewhere: a driver that cheats must not take others' images along.
        """
        nodes: List[Node] = [self.lab.hosts[disks[0].host], self.lab.fe]
        for node in nodes:
            directory = node.path(disks[0].path).parent
            if directory.is_symlink():
                directory.unlink()
            elif directory.exists():
                for path in directory.rglob("*"):
                    found = path.lstat()
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                        os.truncate(path, 0)
                shutil.rmtree(directory)
        self.lab.oned.remove_vm(disks[0].vm)

    def trim(self) -> None:
        """Give back what removed disks took: the nodes' file systems are sparse files, which never shrink."""
        for node in [self.lab.fe, *self.lab.hosts.values()]:
            node.run(["fstrim", self.lab.datastores], user="root", timeout=_TRIM)

    # -- page caches -----------------------------------------------------------------------------------------

    def drop_caches(self) -> None:
        """Write out and drop the cached pages of every file in the datastores of every node.

        Not those of the machine: a front-end that works has its programs in memory, and to drop Ruby as well would
        punish whoever starts more of it.
        """
        for node in [self.lab.fe, *self.lab.hosts.values()]:
            root = node.path(self.lab.datastores)
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _sync(fd)
            finally:
                os.close(fd)
            for base, _, names in os.walk(root):
                for name in names:
                    drop(Path(base, name))


def drop(path: Path) -> None:
    """Drop the clean pages of a file from the page cache."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # a link, a socket, or gone
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass
    finally:
        os.close(fd)


def _sync(fd: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")
