"""A real Debian 12 root file system as a raw image: what a cloud's users start most.

The tree is made by debootstrap and apt in a directory, and put into ext4 by `mkfs.ext4 -d`, with fixed
UUIDs, so nothing is ever mounted for it. The archive decides what is in it: two builds a month apart differ.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import List

from bench.images import mirror, tools
from bench.images.edge import GIB

SIZE = 4 * GIB
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What a cloud image has, and enough of it to come to some 0.8 GB.
PACKAGES = (
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "curl",
    "dbus",
    "ifupdown",
    "iproute2",
    "isc-dhcp-client",
    "less",
    "locales",
    "man-db",
    "openssh-server",
    "perl",
    "python3",
    "sudo",
    "systemd-sysv",
    "vim-tiny",
)
KERNELS = {"x86_64": "linux-image-amd64", "aarch64": "linux-image-arm64"}

_FILE_SYSTEM_ID = "5fa57c09-0000-4000-8000-000000000012"
_HASH_SEED = "5fa57c09-0000-4000-8000-00000000005e"

_APT = ("apt-get", "-q", "-y", "-o", "Dpkg::Options::=--force-unsafe-io", "-o", "Dpkg::Use-Pty=0")

_NO_SERVICES = "#!/bin/sh\nexit 101\n"  # what invoke-rc.d takes for "not allowed to start"

# Left by a build, or different in each: a template has none of it.
_RUBBISH = (
    "etc/ssh/ssh_host_*",
    "tmp/*",
    "usr/sbin/policy-rc.d",
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/cache/debconf/*-old",
    "var/lib/apt/lists/*_*",
    "var/log/*.log",
    "var/log/apt/*",
)
_EMPTIED = ("etc/machine-id", "etc/resolv.conf")


def build(image: Path, log: Path) -> None:
    """Write the image. Takes one to two minutes, and 1 GB of room beside the image.

    Raises tools.Unable, in words for the administrator, where something is missing or a program fails.
    """
    require()
    tree = image.with_name(".debian.tree")
    _remove(tree)
    try:
        source = mirror.debian_mirror()
        bootstrap = [tools.program("debootstrap"), "--variant=minbase", f"--keyring={KEYRING}"]
        tools.run(tools.contained([*bootstrap, SUITE, str(tree), source]), log)
        prepare(tree)
        apt(tree, log, "update")
        kernel = [KERNELS[platform.machine()]] if platform.machine() in KERNELS else []
        apt(tree, log, "install", "--no-install-recommends", *PACKAGES, *kernel)
        tidy(tree)
        _make_file_system(image, tree, log)
    finally:
        _remove(tree)


def require() -> None:
    """Raises tools.Unable where this machine lacks what `build` needs."""
    for name in ("debootstrap", "mkfs.ext4", "unshare"):
        tools.program(name)
    if not KEYRING.exists():
        raise tools.Unable(f"{KEYRING} is missing: install the Debian package debian-archive-keyring")
    tools.require_root("debian.raw")


def prepare(root: Path) -> None:
    """Make a tree ready for `apt`: it finds name servers, and no package starts a service."""
    resolver = Path("/etc/resolv.conf")
    target = root / "etc/resolv.conf"
    target.unlink(missing_ok=True)  # it may be a link that leads nowhere in the tree, or out of it
    target.write_text(resolver.read_text() if resolver.exists() else "")
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text(_NO_SERVICES)
    policy.chmod(0o755)


def apt(root: Path, log: Path, *arguments: str) -> None:
    """Run apt-get inside the tree. Raises tools.Unable when it fails."""
    tools.run(tools.contained([*_APT, *arguments], root), log)


def tidy(root: Path) -> None:
    """Take out what `apt` and `prepare` left behind."""
    for pattern in _RUBBISH:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in _EMPTIED:
        (root / name).write_bytes(b"")


def file_system_options() -> List[str]:
    """Options of mkfs.ext4 that leave nothing to chance, and nothing for the first mount to initialise.

    The journal alone is not initialised: a new file is all zeros anyway, and what mkfs would preallocate
    for it is a hole or 64 MiB of data for `SEEK_DATA`, depending on whether it has been read lately.
    """
    extended = f"hash_seed={_HASH_SEED},lazy_itable_init=0,lazy_journal_init=1"
    return ["-q", "-F", "-L", "root", "-U", _FILE_SYSTEM_ID, "-E", extended]


def _make_file_system(image: Path, tree: Path, log: Path) -> None:
    with image.open("wb") as file:
        file.truncate(SIZE)
    tools.run([tools.program("mkfs.ext4"), *file_system_options(), "-d", str(tree), str(image)], log)


def _remove(tree: Path) -> None:
    """Nothing can be mounted in the tree, as its mounts were made in namespaces that have ended."""
    if tree.exists():
        shutil.rmtree(tree)
