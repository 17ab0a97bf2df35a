"""backup: hands prebackup, prebackup_live, postbackup and postbackup_live to OpenNebula's own scripts.

    python3 -I -S backup.py ACTION ARGUMENT...      the VM's XML is on standard input

Disks lie as those of the stock `local` driver do, so its scripts fit.  But they go by a driver's *name* to tell whether
a disk is local, and take any other than `local` and `ssh` for shared storage.  So they are given the VM's XML with the
name of the driver that they belong to.  That XML goes into the backup as well; a restore drops the attribute.

This process becomes the script: a backup is cancelled by a search for its process.
"""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree

_DRIVERS = ("local", "ssh")  # whose scripts know disks as ours, the best one first: OpenNebula before 7 has no `local`
# Images of shared and qcow2 datastores come to our system datastores as local disks too, by their `*.fastcopy` actions.
_OURS = ("fastcopy", "shared", "qcow2")
_MAX_XML = 64 << 20  # bytes; oned keeps a VM in a column of its database that holds 16 MiB


def main(action: str, argv: list[str]) -> str:
    """Become the stock script; the one sentence that says why that cannot be."""
    above = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    driver = next((name for name in _DRIVERS if os.access(os.path.join(above, name, action), os.X_OK)), None)
    if driver is None:
        return (
            f"{action} is made by OpenNebula's own script, and there is none in {above}/{_DRIVERS[0]} or "
            f"{above}/{_DRIVERS[1]}: install OpenNebula's remotes again, or a version that has backups"
        )
    content = sys.stdin.buffer.read(_MAX_XML + 1)
    if len(content) > _MAX_XML:
        return f"{action} was given more than {_MAX_XML} bytes for the XML of one VM"
    try:
        content = renamed(content, driver)
    except ElementTree.ParseError as error:
        return f"{action} needs the XML of the VM on its standard input, and what is there is none: {error}"
    with open(os.memfd_create("vm.xml"), "w+b") as file:
        file.write(content)
        file.seek(0)
        os.dup2(file.fileno(), 0)
    script = os.path.join(above, driver, action)
    os.execv(script, [script, *argv])  # noqa: S606


def renamed(content: bytes, driver: str) -> bytes:
    """The VM's XML with *driver* in place of the name of ours, in its disks."""
    root = ElementTree.fromstring(content)
    for item in root.iterfind("TEMPLATE/DISK/TM_MAD"):
        if (item.text or "").strip().lower() in _OURS:
            item.text = driver
    written: bytes = ElementTree.tostring(root, encoding="utf-8")
    return written


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2:]), file=sys.stderr)
    sys.exit(1)
