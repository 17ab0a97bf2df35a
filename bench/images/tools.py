"""The programs an image is built with, and which Debian package each comes from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Sequence

PACKAGES = {
    "cp": "coreutils",
    "debootstrap": "debootstrap",
    "fstrim": "util-linux",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "umount": "mount",
    "unshare": "util-linux",
}

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_LAST_LINES = 15  # of a failed program's output: dpkg says why in the last few


class Unable(Exception):
    """An image cannot be built here; the text is one sentence that says what to do about it."""


def program(name: str) -> str:
    """The absolute path of a program in `PACKAGES`. Raises Unable where it is not installed."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise Unable(f"the program {name} is missing: install the Debian package {PACKAGES[name]}")
    return found


def require_root(what: str) -> None:
    """Raises Unable where we are not root."""
    if os.geteuid() != 0:
        raise Unable(f"{what} is built with chroot and mount, which need root: run make-images as root")


def environment() -> Dict[str, str]:
    """What a program gets from our environment: little, so that every machine builds the same."""
    fixed = {"PATH": _PATH, "LC_ALL": "C", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
    return {**fixed, **{name: os.environ[name] for name in _PROXIES if name in os.environ}}


def run(argv: Sequence[str], log: Path, extra: Dict[str, str] | None = None) -> None:
    """Run a program with its output appended to `log`. Raises Unable, with the log's end, when it fails."""
    with log.open("ab") as output:
        output.write(f"+ {' '.join(argv)}\n".encode())
        output.flush()
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment(), **(extra or {})},
            close_fds=False,  # the only inheritable one is the directory's lock, which is meant to be
            check=False,
        )
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
        raise Unable(f"{Path(argv[0]).name} failed with exit code {done.returncode}; the end of {log}:\n{end}")


def contained(argv: Sequence[str], root: Path | None = None) -> list[str]:
    """`argv` in mount and process namespaces of its own, with a /proc; below `root` if that is given.

    Whatever is mounted there, and every daemon that a package starts, goes when the program ends or is
    killed, so a build that fails leaves nothing to clean up but files.
    """
    prefix = [program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if root is not None:
        prefix += [f"--root={root}", "--wd=/"]
    return [*prefix, "--", *argv]
