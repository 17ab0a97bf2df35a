"""How fast a VM's disk is after a reflink, beside the same disk after a copy: random 4 KiB writes, fresh and later.

A reflink shares its blocks with the cached image.  The first write to a shared block allocates a new one, and leaves
the file in more pieces; a copy pays for all of that in advance.  fio writes to both as a guest with `cache=none` does
(O_DIRECT), at places that it chooses at random over the whole file; first for a few seconds on the fresh disk, then for
minutes, then measured again.  The disks lie on an XFS of a lab's host.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional

from bench.images import catalogue, tools
from bench.jobs import settle
from bench.measure import Table
from bench.testbed import Lab, LabConfig, LabError, Node
from tm_fastcopy.core.fiemap import usage

_WAYS = ("copy", "reflink")
_HOST = "host1"
_SLACK = 60.0  # seconds beyond its run time that fio gets for its start and its last flush


@dataclass(frozen=True)
class Speed:
    """What fio found: writes per second, and the time of a write in milliseconds, median and 99th percentile."""

    iops: float
    median: float
    slowest: float


def speed_of(document: Any) -> Speed:
    """Read fio's JSON. Raises ValueError if it is not one job's."""
    try:
        (job,) = document["jobs"]
        write = job["write"]
        percentiles = write["clat_ns"]["percentile"]
        return Speed(write["iops"], percentiles["50.000000"] / 1e6, percentiles["99.000000"] / 1e6)
    except (KeyError, TypeError) as error:
        raise ValueError(f"fio did not say what was expected: {error}") from error


def write_at_random(node: Node, disk: str, seconds: float, depth: int) -> Speed:
    """Let fio write to a disk for a while."""
    argv = [
        "fio", "--name=guest", f"--filename={disk}", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio",
        f"--iodepth={depth}", "--time_based", f"--runtime={seconds:g}", "--randrepeat=0", "--norandommap",
        "--refill_buffers", "--output-format=json",
    ]  # fmt: skip
    done = node.run(argv, user="root", timeout=seconds + _SLACK, check=True)
    return speed_of(json.loads(done.stdout))


def pieces(path: Path) -> int:
    """How many extents a file has."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return usage(file.fileno()).extents


def measure(lab: Lab, image: Path, minutes: float, seconds: float, depth: int) -> Table:
    """Both disks, one after the other."""
    node = lab.hosts[_HOST]
    table = Table(
        "disk", "when", "writes/s", "median ms", "99 % ms", "extents", text_columns=(0, 1),
        title=f"random 4 KiB writes, depth {depth}, {node.fs}",
    )  # fmt: skip
    entry = f"{lab.datastores}/cached"
    subprocess.run(["cp", "--sparse=always", image, node.path(entry)], check=True)
    settle([node.path(entry)])
    for way in _WAYS:
        disk = f"{lab.datastores}/disk-{way}"
        how = "never" if way == "copy" else "always"
        subprocess.run(["cp", f"--reflink={how}", "--sparse=auto", node.path(entry), node.path(disk)], check=True)
        settle([node.path(disk)])

        def row(when: str, way: str = way, disk: str = disk) -> None:
            before = pieces(node.path(disk))
            found = write_at_random(node, disk, seconds, depth)
            table.add(way, when, f"{found.iops:.0f}", f"{found.median:.2f}", f"{found.slowest:.2f}", before)

        row("fresh")
        write_at_random(node, disk, minutes * 60, depth)
        row(f"after {minutes:g} min of writes")
        node.path(disk).unlink()
    return table


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="bench/measure-guest-io", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of writing between the two measures (5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one measure (10)")
    parser.add_argument("--depth", type=int, default=16, help="writes that are on their way at once (16)")
    parser.add_argument("--image", default="debian", help="image that the disks are made of (debian)")
    parser.add_argument("--images", type=Path, default=catalogue.DIRECTORY, help="where the images are kept")
    parser.add_argument("--dir", type=Path, default=LabConfig().dir, help="where the lab is built")
    options = parser.parse_args(arguments)
    if shutil.which("fio") is None:
        print("measure-guest-io: fio is missing: install the Debian package fio", file=sys.stderr)
        return 1
    try:
        catalogue.make(options.image, options.images)
        image = catalogue.path_of(options.image, options.images)
        with Lab.up(LabConfig(hosts=1, dir=options.dir)) as lab:
            print(measure(lab, image, options.minutes, options.seconds, options.depth).render(), end="")
    except (LabError, tools.Unable, OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"measure-guest-io: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
