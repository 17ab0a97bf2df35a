"""File system images: each node's datastores directory is a file system of its own on a loop device."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.testbed.errors import LabError, program

if TYPE_CHECKING:
    from bench.testbed.node import Node

IMAGE = "datastores.img"
MIB = 1 << 20
SMALLEST = 320 * MIB  # mkfs.xfs refuses less than 300 MB
SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, which is also EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2  # its strictest flag: nothing that is in memory reaches the disk any more

MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
}


def size_in_bytes(text: str) -> int:
    """`20G`, `512M` as bytes. LabError when it is not a size or too small for every file system we make."""
    match = re.fullmatch(r"(\d+)([MGT])", text.upper())
    if match is None:
        raise LabError(f"A disk size looks like 20G or 512M, not {text}.")
    size = int(match[1]) * MIB << 10 * "MGT".index(match[2])
    if size < SMALLEST:
        raise LabError(f"A disk of {text} is too small: the smallest is {SMALLEST // MIB}M.")
    return size


def create(image: Path, fs: str, size: int) -> None:
    """Make a sparse file of `size` bytes with file system `fs` in it."""
    if fs not in MAKE:
        raise LabError(f"The lab knows the file systems {', '.join(MAKE)}, not {fs}.")
    with image.open("xb") as file:
        file.truncate(size)
    name, *options = MAKE[fs]
    done = subprocess.run(
        [program(name), *options, str(image)], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise LabError(f"{name} failed: {done.stderr.strip()}")


def mount(node: Node, image: Path, where: Path) -> None:
    """Mount an image in a node; the loop device vanishes with the mount.

    The device goes past the page cache where the file system below can: cached twice, 800 MiB took 3.6 s to become
    durable here instead of 0.6, and a bench would measure that.
    """
    losetup = program("losetup")
    attach = [losetup, "--find", "--show", "--direct-io=on", str(image)]
    done = subprocess.run(attach, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        attach.remove("--direct-io=on")
        done = subprocess.run(attach, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise LabError(f"losetup failed: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        node.run([program("mount"), "-o", "noatime", device, where], user="root", check=True)
    finally:
        # Detaching a device that is in use only marks it, and it goes with the last mount.
        subprocess.run([losetup, "--detach", device], capture_output=True, timeout=60, check=False)


def can_lose_power(fs: str) -> None:
    """LabError if a power cut cannot be played on `fs`."""
    if fs == "btrfs":
        raise LabError("btrfs has no ioctl to shut it down, so the lab cannot cut the power of a btrfs host.")


def lose_power(directory: Path) -> None:
    """Shut down the file system of `directory` at once, without writing out anything."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


def abandon(directory: Path, fs: str) -> None:
    """Spare the write-out of a file system that is about to be deleted, where that is possible."""
    if fs != "btrfs":
        with contextlib.suppress(OSError):
            lose_power(directory)


def loops(directory: Path) -> list[str]:
    """Loop devices whose backing file lies, or lay, below `directory`."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if entry.read_text().startswith(f"{directory}/"):
                found.append(f"/dev/{entry.parts[3]}")
    return found
