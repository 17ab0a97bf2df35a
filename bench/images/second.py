"""The second version of the Debian image: the same disk after packages came and went.

The image is copied and mounted, and apt works inside it, so blocks change as they do in a real update:
data, inodes, bitmaps and directories, freed blocks that are trimmed. It is mounted in a mount namespace
of its own; this module is also the program that runs in there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List

from bench.images import debian, tools

REMOVED = ("cloud-init", "isc-dhcp-client", "man-db")
INSTALLED = ("git", "nginx-light", "python3-pip", "rsync", "tmux")

_PYTHONPATH = Path(__file__).resolve().parents[2]


def build(first: Path, image: Path, log: Path) -> None:
    """Write the second version of the image `first` to `image`. Takes about half a minute.

    Raises tools.Unable, in words for the administrator, where something is missing or a program fails.
    """
    require()
    mountpoint = image.with_name(".debian-v2.root")
    mountpoint.mkdir(exist_ok=True)
    try:
        copy = [tools.program("cp"), "--reflink=auto", "--sparse=auto", "--", str(first), str(image)]
        tools.run(copy, log)
        inside = [sys.executable, "-m", "bench.images.second", str(image), str(mountpoint), str(log)]
        tools.run(tools.contained(inside), log, {"PYTHONPATH": str(_PYTHONPATH)})
    finally:
        mountpoint.rmdir()  # never a tree: here, outside the namespace, nothing was mounted on it


def require() -> None:
    """Raises tools.Unable where this machine lacks what `build` needs."""
    for name in ("cp", "fstrim", "mount", "umount", "unshare"):
        tools.program(name)
    tools.require_root("debian-v2.raw")


def change(image: Path, root: Path, log: Path) -> None:
    """Mount, change and unmount the image. To be run in a mount namespace that ends with us."""
    options = "loop,noinit_itable,noatime"
    tools.run([tools.program("mount"), "-t", "ext4", "-o", options, str(image), str(root)], log)
    debian.prepare(root)
    debian.apt(root, log, "update")
    debian.apt(root, log, "purge", "--auto-remove", *REMOVED)
    debian.apt(root, log, "install", "--no-install-recommends", *INSTALLED)
    debian.tidy(root)
    tools.run([tools.program("fstrim"), str(root)], log)
    tools.run([tools.program("umount"), str(root)], log)


def main(arguments: List[str]) -> int:
    """`IMAGE MOUNTPOINT LOG`; what goes wrong is said on stderr, which is the log."""
    image, root, log = (Path(argument) for argument in arguments)
    try:
        change(image, root, log)
    except tools.Unable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
