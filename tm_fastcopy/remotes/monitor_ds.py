#!/usr/bin/env -S python3 -I -S
"""monitor_ds: what the disks of the VMs in a system datastore hold, for oned.

    monitor_ds DATASTORE

Run on the host by OpenNebula's probe, which finds the driver's name in the datastore's `.monitor`.  Prints for every VM
that has a disk here

    VM = [ ID = 7, MONITOR = "<base64>" ]

with a line `DISK_SIZE = [ ID=0, SIZE=120 ]` for each disk and `SNAPSHOT_SIZE = [ ID=1, DISK_ID=0, SIZE=3 ]` for each
numbered file of its tree.  Sizes are MiB that the file system has allocated, rounded up; a block that files share
counts in each of them.

One file, standard library only: a host has nothing else when the probe runs.  Whatever cannot be read, or is no disk,
is passed over, because one odd directory must not keep all other VMs of the host from being monitored.
"""

from __future__ import annotations

import os
import stat
import sys
from binascii import b2a_base64
from itertools import islice
from typing import Iterator

_MOST_VMS = 100_000  # a host runs some hundreds; a directory without end must not keep the probe for ever
_MOST_FILES = 10_000  # in one directory of a VM; a disk and its tree are two, and a tree has a file for each snapshot
_MIB = 1 << 20


def main(argv: list[str]) -> int:
    """Print all VMs; the exit code."""
    if len(argv) != 1:
        print("monitor_ds needs one argument: the path of a system datastore", file=sys.stderr)
        return 1
    try:
        vms = [entry for entry in islice(os.scandir(argv[0]), _MOST_VMS) if is_number(entry.name)]
    except OSError as error:
        print(f"the datastore {argv[0]} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    lines = (vm_line(entry.name, disk_lines(entry.path)) for entry in vms if is_directory(entry))
    sys.stdout.write("".join(lines))
    return 0


def vm_line(vm: str, lines: list[str]) -> str:
    """What is printed for a VM: nothing if it has no disk."""
    if not lines:
        return ""
    encoded = b2a_base64("\n".join(lines).encode("ascii"), newline=False).decode("ascii")
    return f'VM = [ ID = {vm}, MONITOR = "{encoded}" ]\n'


def disk_lines(directory: str) -> list[str]:
    """The lines of all disks of a VM, by their number."""
    found = sorted((int(entry.name[5:]), entry) for entry in entries(directory) if is_disk(entry.name))
    lines = []
    for disk, entry in found:
        size = allocated(entry.path)
        if size is None:
            continue
        lines.append(f"DISK_SIZE = [ ID={disk}, SIZE={size} ]")
        # Through no link: the stock drivers for shared storage put one into the tree that leads to the tree.
        numbers = [(int(file.name), file.path) for file in entries(f"{entry.path}.snap") if is_number(file.name)]
        for number, path in sorted(numbers):
            size = allocated(path)
            if size is not None:
                lines.append(f"SNAPSHOT_SIZE = [ ID={number}, DISK_ID={disk}, SIZE={size} ]")
    return lines


def entries(directory: str) -> Iterator[os.DirEntry[str]]:
    """What is in a directory; nothing if it cannot be read, is none, or is a link."""
    if os.path.islink(directory):
        return
    try:
        with os.scandir(directory) as found:
            yield from islice(found, _MOST_FILES)
    except OSError:
        return


def allocated(path: str) -> int | None:
    """MiB that a regular file holds, or the one that a link leads to; None if it is neither."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return -(-status.st_blocks * 512 // _MIB) if stat.S_ISREG(status.st_mode) else None


def is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, and no link to one."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def is_number(name: str) -> bool:
    """Whether it is a number as OpenNebula writes them, of any length."""
    return name.isascii() and name.isdigit() and (name == "0" or name[0] != "0")


def is_disk(name: str) -> bool:
    """Whether it is `disk.<number>`: no staging file, tree or backup."""
    return name.startswith("disk.") and is_number(name[5:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
