"""A VM's directory as a VM leaves it: disks of all layouts, what the hypervisor keeps, and files that nobody knows."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bench.images.edge import MIB, random_data
from bench.testbed.node import UID
from tests.e2e import look
from tests.support import qcow2_header
from tm_fastcopy.core.listing import RECEIPT

LIVED = 1_650_000_000  # seconds since the epoch: when the VM last wrote


def furnish(directory: Path) -> None:
    """Fill a VM's directory; a `disk.0` that is there stays."""
    if not (directory / "disk.0").exists():
        random_data(directory / "disk.0", 5 * MIB + 777, seed=5)
    with (directory / "disk.0").open("r+b") as file:  # a hole in the middle
        file.seek(64 * MIB)
        file.write(b"the end")
    tree = directory / "disk.1.snap"
    tree.mkdir()
    for number in range(12):  # a chain: 1 is backed by 0, and so on
        backing = str(number - 1).encode() if number else b""
        header = qcow2_header(backing=backing)
        (tree / str(number)).write_bytes(header + os.urandom(70_000 + number))
    (tree / "disk.1.snap").symlink_to(".")  # as the drivers for shared storage make it
    (directory / "disk.1").symlink_to("disk.1.snap/11")
    (directory / "disk.2.snap").mkdir()
    (directory / "disk.2.snap" / "0").write_bytes(b"a raw disk's snapshot")
    (directory / "disk.2").write_bytes(b"")
    (directory / "tpm" / "deep" / "deeper").mkdir(parents=True)
    (directory / "tpm" / "deep" / "deeper" / "tpm2-00.permall").write_bytes(os.urandom(4000))
    (directory / "tpm" / "empty").mkdir()
    for name in ("checkpoint", "42_VARS.fd", "kernel", "initrd", "vm.xml", "ds.xml", ".hidden", "nobody knows"):
        (directory / name).write_bytes(name.encode() * 999)
    (directory / "checkpoint").chmod(0o600)
    (directory / "kernel").chmod(0o444)
    (directory / "tpm").chmod(0o700)
    (directory / "tpm" / "deep").chmod(0o550)
    for top, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = os.path.join(top, name)
            os.lchown(path, UID, UID)
            if not os.path.islink(path):
                os.utime(path, (LIVED, LIVED))


def survey(directory: Path) -> dict[str, tuple[object, ...]]:
    """All that must be the same elsewhere: kinds, permissions, owners, times, sizes, content, texts of links."""
    found: dict[str, tuple[object, ...]] = {".": (oct(stat.S_IMODE(directory.stat().st_mode)),)}
    for path in sorted(directory.rglob("*")):
        status, name = path.lstat(), str(path.relative_to(directory))
        if name == RECEIPT:
            continue
        common = (stat.S_IFMT(status.st_mode), oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid)
        if path.is_symlink():
            found[name] = (*common, os.readlink(path))
        elif path.is_dir():
            found[name] = common
        else:
            found[name] = (*common, int(status.st_mtime), status.st_size, look.sha256(path))
    return found
