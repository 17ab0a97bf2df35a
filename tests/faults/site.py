"""Site: a front-end's and a host's directories, each on a file system that may be one of its own.

    <host>/ds/0               system datastore        <front>/images      image datastore
    <host>/ds/.fastcopy       the cache               <front>/one/var     the front-end's memory of manifests
    <host>/ds/3               another one, for moves  <front>/ds/2        another one, on another host
    <host>/before             copy of ds to begin each run with; <front>/before likewise
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Iterator, Optional

from tests.support import qcow2_header

from .arrows import cut_power

CHUNK = 64 * 1024
TAIL = 3 * 512  # the last chunk of every image is shorter than a chunk, and no multiple of a file system's block
_CLONE_NEWNS = 0x00020000

NO_LOG_FLUSH, LOG_FLUSH = 2, 1
"""How the power fails: nothing in memory reaches the disk any more; or the journal still does, but no data."""


def content(layout: str) -> bytes:
    """An image in one character a chunk: letters are data (equal letters equal chunks), "." a hole, "0" zeros written.

    Capitals do not compress, small letters do.  "Q" begins with the header of a qcow2 image.
    """
    pieces = []
    for char in layout:
        source = random.Random(char)
        if char in ".0":
            pieces.append(bytes(CHUNK))
        elif char == "Q":
            header = qcow2_header()
            pieces.append(header + source.randbytes(CHUNK - len(header)))
        elif char.isupper():
            pieces.append(source.randbytes(CHUNK))
        else:
            pieces.append(source.randbytes(1024) * (CHUNK // 1024))
    return b"".join(pieces) + random.Random("tail" + layout[-1]).randbytes(TAIL)


def write_image(path: Path, layout: str, mode: int = 0o660) -> None:
    """Write `content(layout)` to a new file, its holes as holes."""
    data = content(layout)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        for index, char in enumerate(layout):
            if char != ".":
                file.seek(index * CHUNK)
                file.write(data[index * CHUNK : (index + 1) * CHUNK])
        file.seek(len(layout) * CHUNK)
        file.write(data[len(layout) * CHUNK :])
    path.chmod(mode)


def sha(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha_of(path: Path) -> Optional[str]:
    """SHA-256 of a file; None if there is none."""
    try:
        return sha(path.read_bytes())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """Run in a mount namespace of our own.

    A namespace that another program makes while a volume is mounted (a lab does) holds a copy of the mount: after a
    power cut the file system could not be unmounted, and mounting it again would give the same one, still shut down.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before, place = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), os.getcwd()
    try:
        if libc.unshare(_CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=60)
        yield
    finally:
        if libc.setns(before, _CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(before)
        os.chdir(place)


class Volume:
    """A file system of its own in a file of *size* MiB, whose power can be cut."""

    SMALLEST = 304  # MiB; mkfs.xfs makes nothing smaller

    def __init__(self, directory: Path, name: str, fs: str, size: int = SMALLEST) -> None:
        self.image, self.mount = directory / f"{name}.img", directory / name
        self.mount.mkdir()
        with self.image.open("xb") as file:
            file.truncate(size << 20)
        make = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"]}[fs]
        subprocess.run([*make, str(self.image)], check=True, capture_output=True, timeout=60)
        self.attach()

    def attach(self) -> None:
        """Mount it, which replays the journal."""
        subprocess.run(["mount", "-o", "loop,noatime", self.image, self.mount], check=True, timeout=60)

    def detach(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", self.mount], check=True, timeout=60)

    def restart(self) -> None:
        """What a machine does after a power cut: mount again."""
        self.detach()
        self.attach()

    def remove(self) -> None:
        """Take it away, whatever state it is in."""
        with contextlib.suppress(OSError):  # EIO: it is shut down already
            cut_power(str(self.mount), NO_LOG_FLUSH)
        self.detach()
        self.image.unlink()
        self.mount.rmdir()


class Site:
    """The two machines' directories.  A volume is given where the machine's power is to be cut."""

    def __init__(
        self, host: Path, front: Path, host_volume: Optional[Volume] = None, front_volume: Optional[Volume] = None
    ) -> None:
        self.host, self.front = host, front
        self.volumes = {"host": host_volume, "front": front_volume}
        self.base, self.cache = host / "ds" / "0", host / "ds" / ".fastcopy" / "cache"
        self.images, self.one = front / "images", front / "one"
        self.near, self.other = host / "ds" / "3", front / "ds" / "2"
        self.image = self.images / "image"
        self.in_tree = False
        self.memory = self.one / "var" / "fastcopy" / "manifests"
        self.wipe()

    def wipe(self) -> None:
        """Empty both machines."""
        for top in (self.host, self.front):
            for name in ("ds", "images", "one", "before"):
                shutil.rmtree(top / name, ignore_errors=True)
        for path in (self.base, self.near, self.other, self.images, self.one / "var"):
            path.mkdir(parents=True)

    def restore_image(self, layout: str) -> None:
        """Write the image."""
        self._write(layout, 0o660)

    def _write(self, layout: str, mode: int) -> None:
        """Write the image, into a tree of its own if `in_tree` says so."""
        tree = self.images / "image.snap"
        shutil.rmtree(tree, ignore_errors=True)
        self.image.unlink(missing_ok=True)
        if self.in_tree:
            tree.mkdir()
            self.image.symlink_to("image.snap/0")
        write_image(tree / "0" if self.in_tree else self.image, layout, mode)

    def disk(self, vm: int) -> Path:
        """Disk 0 of a VM."""
        return self.base / str(vm) / "disk.0"

    def put_disk(self, vm: int, layout: str) -> None:
        """Give a VM a disk without the product."""
        (self.base / str(vm)).mkdir(exist_ok=True)
        write_image(self.disk(vm), layout)

    def put_tree(self, vm: int, layout: str, active: str = "0", beside: str = "") -> None:
        """Give a VM a qcow2 disk without the product; each character of *beside* is a number of another file."""
        disk = self.disk(vm)
        tree = disk.parent / "disk.0.snap"
        tree.mkdir(parents=True)
        write_image(tree / active, layout)
        for number in beside:
            write_image(tree / number, "Z")
        disk.symlink_to(f"disk.0.snap/{active}")

    def put_household(self, vm: int, layout: str) -> None:
        """Give a VM what a VM has: a raw disk, a chain of qcow2 files, and files beside them."""
        directory = self.base / str(vm)
        self.put_disk(vm, layout)
        (directory / "disk.1.snap").mkdir()
        write_image(directory / "disk.1.snap" / "0", "Q.b")
        write_image(directory / "disk.1.snap" / "1", "Qc")
        (directory / "disk.1").symlink_to("disk.1.snap/1")
        (directory / "tpm").mkdir(mode=0o700)
        (directory / "tpm" / "state").write_bytes(b"tpm")
        (directory / "vm.xml").write_bytes(b"<VM/>")
        (directory / "empty").write_bytes(b"")

    def put_members(self, link: Path, layouts: Dict[str, str], active: str) -> None:
        """Make a disk or an image a tree of these files ("": a link is not made, the disk lies beside them)."""
        tree = link.with_name(f"{link.name}.snap")
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        for number, layout in layouts.items():
            write_image(tree / number, layout)
        if active:
            link.unlink(missing_ok=True)
            link.symlink_to(f"{tree.name}/{active}")

    def put_overlays(self, vm: int, backing: Dict[str, str], active: str) -> None:
        """Give a VM a qcow2 disk with snapshots, made by qemu-img: what each file rests on ("": nothing)."""
        disk = self.disk(vm)
        tree = disk.parent / "disk.0.snap"
        tree.mkdir(parents=True)
        for number, (name, base) in enumerate(backing.items()):
            rests = ["-F", "qcow2", "-b", base] if base else []
            make = ["qemu-img", "create", "-q", "-f", "qcow2", *rests, name, *([] if base else ["2M"])]
            writes = ["-c", f"write -q -P {number + 1} {number * 128}k 192k", "-c", f"write -q -P {number + 9} 1M 64k"]
            for argv in (make, ["qemu-io", "-f", "qcow2", *writes, name]):
                subprocess.run(argv, cwd=tree, check=True, timeout=60)
        disk.symlink_to(f"disk.0.snap/{active}")

    def remember(self) -> None:
        """Keep the state as it is, to begin each run with.  The image stays where it is: its identity is its inode."""
        _copy(self.host / "ds", self.host / "before" / "ds")
        _copy(self.front / "ds", self.front / "before" / "ds")
        _copy(self.one, self.front / "before" / "one")
        _copy(self.images, self.front / "before" / "images")

    def restore(self, image: Optional[str], mode: int = 0o660) -> None:
        """Go back to what `remember` kept; *image* is the layout to write the image anew with, "" for no image.

        None leaves the image datastore alone: clone does not write there.
        """
        _copy(self.host / "before" / "ds", self.host / "ds")
        _copy(self.front / "before" / "ds", self.front / "ds")
        _copy(self.front / "before" / "one", self.one)
        if image is not None:
            _copy(self.front / "before" / "images", self.images)
            self.image.unlink(missing_ok=True)
            if image:
                self._write(image, mode)
        for machine, volume in self.volumes.items():
            if volume:
                subprocess.run(["sync", "-f", self.host if machine == "host" else self.front], check=True, timeout=60)

    def restart(self, machine: str) -> None:
        """Bring a machine back whose power was cut."""
        volume = self.volumes[machine]
        assert volume is not None
        volume.restart()


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", "--sparse=auto", source, target], check=True, timeout=60)


def tree(top: Path) -> list[str]:
    """All files below *top*, relative."""
    return sorted(
        os.path.relpath(os.path.join(where, name), top) for where, _, names in os.walk(top) for name in names
    )
