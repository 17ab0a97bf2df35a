"""The drivers under test: one adapter each, the same work through the same entry.

An adapter says where a driver's images and disks lie, what is run for an action, and how to make the driver forget
what it knows. It never does a driver's work, and never knows better: stock scripts run as they are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import List, Mapping, Optional, Sequence

from bench import pipeline
from bench.comparison.values import Contestant
from bench.testbed import Lab, Node
from bench.testbed.node import UID

CACHE_SHARE = "80"  # percent of the host's disk; fastcopy's own default. Stock's, 10, is too little for our images.


@dataclass(frozen=True)
class Disk:
    """A disk: its place as oned names it."""

    host: str
    path: str
    vm: int


class Driver:
    """A driver with an entry point below `remotes/tm/<tm>`; stores are the ids of its two datastores in the lab."""

    stock = True  # needs OpenNebula's scripts
    on_host = True  # whether disks lie on the host, so that its file system matters
    remembers = False  # whether a host that has an image is another case than one that has not
    owner = UID  # whose file a disk must be

    def __init__(
        self, name: str, label: str, tm: str, stores: tuple[int, int], *, headline: bool = True, note: str = ""
    ) -> None:
        self.contestant = Contestant(name, label, headline, note)
        self.name, self.tm = name, tm
        self.image_store, self.system_store = stores

    def resident(self, command: str) -> bool:
        """Whether a process that runs all the time is this driver's, by its command line."""
        return False

    # -- where things lie ------------------------------------------------------------------------------------

    def attributes(self, lab: Lab) -> Mapping[str, str]:
        """Attributes of its image datastore."""
        return {}

    def set_up(self, lab: Lab) -> None:
        """Make its datastores."""
        lab.oned.add_datastore(
            self.image_store, f"images_{self.name}", tm_mad=self.tm, template=self.attributes(lab)
        )
        lab.oned.add_datastore(self.system_store, f"system_{self.name}", type="SYSTEM", tm_mad=self.tm)

    def prepare(self, lab: Lab, disk: Disk) -> None:
        """Do what is not a driver's business before a clone."""

    def file(self, lab: Lab, disk: Disk) -> tuple[Node, str]:
        """The node that holds a disk, and its path there."""
        return lab.hosts[disk.host], disk.path

    def persistent(self, lab: Lab, disk: Disk, image: str) -> tuple[Node, str, Optional[str]]:
        """Where `link` makes a disk, and the path that it is a symbolic link to; None: it is a file like any other."""
        return (*self.file(lab, disk), None)

    # -- what it runs ----------------------------------------------------------------------------------------

    def entry(self, lab: Lab, action: str) -> str:
        """The file of an action."""
        return f"{lab.one_location}/var/remotes/tm/{self.tm}/{action}"

    def clone(self, lab: Lab, image: str, disk: Disk) -> Sequence[pipeline.Command]:
        """What makes a disk of an image."""
        where = f"{disk.host}:{disk.path}"
        argv = (self.entry(lab, "clone"), f"fe:{image}", where, str(disk.vm), str(self.image_store))
        return [pipeline.Command(argv, "")]

    def link(self, lab: Lab, image: str, disk: Disk) -> Sequence[pipeline.Command]:
        """What makes a disk of a persistent image."""
        where = f"{disk.host}:{disk.path}"
        argv = (self.entry(lab, "ln"), f"fe:{image}", where, str(disk.vm), str(self.image_store))
        return [pipeline.Command(argv, "")]

    def write_back(self, lab: Lab, disk: Disk, image: str) -> Sequence[pipeline.Command]:
        """What makes an image of a disk."""
        where = f"{disk.host}:{disk.path}"
        argv = (self.entry(lab, "mvds"), where, image, str(disk.vm), str(self.image_store))
        return [pipeline.Command(argv, "")]

    # -- what it remembers -----------------------------------------------------------------------------------

    def forget(self, lab: Lab, hosts: Sequence[str], image: str) -> bool:
        """Make the driver forget an image, on both sides. Whether the image's file was touched for it."""
        return False


class Fastcopy(Driver):
    """This project's driver."""

    stock, remembers = False, True

    def resident(self, command: str) -> bool:
        """The daemon, and the agents that stay on hosts."""
        return "tm_fastcopy" in command or "-c import base64" in command

    def forget(self, lab: Lab, hosts: Sequence[str], image: str) -> bool:
        """The front-end knows an image by its times; hosts have theirs in the cache."""
        os.utime(lab.fe.path(image))
        for host in hosts:
            cache = lab.hosts[host].path(f"{lab.datastores}/.fastcopy/cache")
            for entry in cache.iterdir() if cache.exists() else ():
                with contextlib.suppress(FileNotFoundError):  # its own upkeep may be faster
                    entry.unlink()
        return True


class Pipeline(Driver):
    """What the stock `ssh` driver makes two machines do, restated (bench/pipeline.py)."""

    stock = False

    def clone(self, lab: Lab, image: str, disk: Disk) -> Sequence[pipeline.Command]:
        """See Driver."""
        return pipeline.clone_commands(Path(image), "fe", disk.host, PurePosixPath(disk.path), None, True)

    def link(self, lab: Lab, image: str, disk: Disk) -> Sequence[pipeline.Command]:
        """The stock `ssh` driver does the same for persistent images."""
        return self.clone(lab, image, disk)

    def write_back(self, lab: Lab, disk: Disk, image: str) -> Sequence[pipeline.Command]:
        """See Driver."""
        return pipeline.mvds_commands(PurePosixPath(disk.path), disk.host, Path(image))


class LocalCache(Driver):
    """Stock `local` with its cache, which lies on the disk of the datastores."""

    remembers = True

    def _cache(self, lab: Lab) -> str:
        return f"{lab.datastores}/stock-cache"

    def attributes(self, lab: Lab) -> Mapping[str, str]:
        """The cache is on, and large enough."""
        return {"CACHE_ENABLE": "YES", "CACHE_PATH": self._cache(lab), "CACHE_MAX_SIZE": CACHE_SHARE}

    def forget(self, lab: Lab, hosts: Sequence[str], image: str) -> bool:
        """Empty the caches."""
        for host in hosts:
            cache = lab.hosts[host].path(self._cache(lab))
            if cache.exists():
                shutil.rmtree(cache)
        return False


class Nfs(Driver):
    """Stock `shared`: both datastores lie on the front-end, and hosts reach them by NFS (bench/comparison/nfs.py)."""

    on_host = False

    def __init__(self, name: str, stores: tuple[int, int], kernel: bool) -> None:
        label = "stock shared, kernel NFS mount" if kernel else "stock shared, user-space NFS client"
        note = (
            ""
            if kernel
            else "this kernel has no NFS client: the script's `cp` is libnfs' nfs-cp, against nfs-ganesha; kept out of "
            "the comparison"
        )
        Driver.__init__(self, name, label, "shared", stores, headline=kernel, note=note)
        self.kernel = kernel

    def resident(self, command: str) -> bool:
        """The server."""
        return command.startswith("ganesha.nfsd")

    def file(self, lab: Lab, disk: Disk) -> tuple[Node, str]:
        """Disks lie on the server."""
        return lab.fe, disk.path

    def persistent(self, lab: Lab, disk: Disk, image: str) -> tuple[Node, str, Optional[str]]:
        """A link to the image, made on the host: only where that has a mount is it on the server, too."""
        return lab.fe if self.kernel else lab.hosts[disk.host], disk.path, image

    def prepare(self, lab: Lab, disk: Disk) -> None:
        """The user-space client cannot make directories."""
        if not self.kernel:
            directory = lab.fe.path(disk.path).parent
            directory.mkdir(exist_ok=True)
            shutil.chown(directory, 9869, 9869)


FASTCOPY, PIPELINE = "fastcopy", "ssh-pipeline"


def all_drivers(kernel_nfs: bool) -> List[Driver]:
    """Every driver that the bench knows."""
    return [
        Fastcopy(FASTCOPY, "fastcopy", "fastcopy", (200, 201)),
        Driver("ssh", "stock ssh", "ssh", (210, 211)),
        Driver("local", "stock local", "local", (220, 221)),
        LocalCache("local-cache", "stock local, cache on", "local", (230, 231)),
        Nfs("shared", (240, 241), kernel_nfs),
        Pipeline(
            PIPELINE, "stock ssh, restated", "ssh", (250, 251),
            note="the ssh calls and the tar of the stock ssh driver, without its Ruby programs and calls to oned, "
            "which flatters it",
        ),
    ]  # fmt: skip
