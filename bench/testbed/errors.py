"""What can go wrong in the lab, as sentences for the person at the terminal."""

from __future__ import annotations

import os
import shutil

# Program -> Debian package that ships it.
PACKAGES = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "tc": "iproute2",
    "ss": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
    "losetup": "mount",
    "mount": "mount",
    "umount": "mount",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "ruby": "ruby",
}

# Root's programs are not on everybody's PATH.
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LabError(Exception):
    """The lab cannot do what was asked; the text is one sentence that says why."""


def program(name: str) -> str:
    """Absolute path of a system program. Raises LabError naming the Debian package that has it."""
    found = shutil.which(name, path=SEARCH)
    if found is None:
        package = PACKAGES.get(name, name)
        raise LabError(f"The program {name} is missing: install the Debian package {package}.")
    return found


def need_root() -> None:
    """Raises LabError unless this process runs as root."""
    if os.geteuid() != 0:
        raise LabError("The lab makes namespaces, mounts and loop devices, so it must be run as root.")
