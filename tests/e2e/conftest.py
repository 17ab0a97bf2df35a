"""One lab for all end-to-end tests of the driver: an XFS front-end and a host on XFS, on btrfs and on ext4."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.images import debian_like, edge
from bench.images.edge import MIB
from bench.images.mutate import mutate
from bench.testbed import Lab, LabConfig
from bench.testbed.node import UID
from tests.e2e.cloud import HOSTS, Cloud, give, settle

CHECKOUT = os.environ.get("FASTCOPY_OPENNEBULA")

GALLERY = {
    "like": lambda path: debian_like.write(path, 32 * MIB),
    "empty": edge.empty,
    "one_byte": edge.one_byte,
    "odd": edge.odd,
    "zeros": lambda path: edge.zeros(path, 16 * MIB),
    "hole": edge.hole,
    "random": lambda path: edge.random_data(path, 24 * MIB),
    "islands": lambda path: edge.islands(path, 256 * MIB),
}


def lab_directory() -> Path:
    """A fresh directory that oneadmin can enter; pytest's own is closed to it."""
    return Path(tempfile.mkdtemp(prefix="fastcopy-e2e-", dir="/tmp"))


@contextlib.contextmanager
def lab_of_three() -> Iterator[Lab]:
    """A lab with a host on each file system, and images to clone."""
    config = LabConfig(
        hosts=len(HOSTS),
        fs=tuple(HOSTS),
        dir=lab_directory(),
        disk_size="1G",
        opennebula=Path(CHECKOUT) if CHECKOUT else None,
    )
    with Lab.up(config) as lab:
        hang_gallery(lab)
        first = Cloud(lab)
        for host in lab.hosts:  # the agent's code is on every host from here on: it is not what tests count
            image = first.image(lambda path: path.write_bytes(b"x"))
            first.clone(image, first.vm(image, host)).succeeded()
        yield lab
    assert not config.dir.exists()


@pytest.fixture(scope="session")
def three_hosts() -> Iterator[Lab]:
    with lab_of_three() as lab:
        yield lab


def hang_gallery(lab: Lab) -> None:
    """Write the images that tests share; when this returns they are old enough to be remembered."""
    directory = lab.fe.path(lab.datastores / "1/gallery")
    directory.mkdir()
    shutil.chown(directory, UID, UID)
    for name, write in GALLERY.items():
        write(directory / name)
    shutil.copyfile(directory / "like", directory / "second")
    mutate(directory / "second", 7, scattered=8)  # few enough that sending all would be noticed
    for path in directory.iterdir():
        give(path, 0o640)
    settle()


@pytest.fixture
def cloud(three_hosts: Lab) -> Iterator[Cloud]:
    """The cloud without any disk, image or cached image. A call that oned's stand-in does not know is a failure."""
    cloud = Cloud(three_hosts)
    for host in three_hosts.hosts:
        cloud.wait_for_quiet(host)
    cloud.clear()
    three_hosts.oned.forget_calls()
    yield cloud
    assert three_hosts.oned.unknown_calls == []


@pytest.fixture
def own_process(cloud: Cloud) -> None:
    """Every action runs in a process of its own, which logs in anew and can be killed."""
    cloud.environment["FASTCOPY_DAEMON"] = "no"
