"""How long a clone takes: warm, cold, and the fixed cost of a small one, beside what stock does, in one run.

    warm    an image that the host has, again and again, at the entry point, with the daemon running
    fixed   a small image that the host does not have
    cold    images that neither the front-end has digested nor the host has
    extents how many pieces an image has in the host's cache after a parallel transfer, and what its reflink costs

Beside it runs `ssh-pipeline` (bench/pipeline.py: the stock `ssh` driver without its Ruby programs and calls to oned,
which flatters it), and with --opennebula the real stock `ssh/clone`.  Drivers take turns, round by round; figures are
medians with the least and the most.  The image lies in the front-end's page cache for all of them.  Every disk is
compared with its image.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from bench.images import catalogue, edge, tools
from bench.jobs import FASTCOPY, PIPELINE, STOCK, SYSTEM, Jobs, WrongContent, settle
from bench.measure import Table
from bench.testbed import Lab, LabConfig, LabError
from tm_fastcopy.core.fiemap import usage
from tm_fastcopy.core.files import FICLONE

_MIB = 1024 * 1024
_HOSTS = {"host1": "xfs", "host2": "ext4"}
_SECTIONS = ("warm", "fixed", "cold", "extents")


@dataclass(frozen=True)
class Picture:
    """An image in the lab: its number and path in the datastore, and how to make its file."""

    name: str
    write: Callable[[Path], None]
    format: str = "raw"


class Clones:
    """The measures in one lab."""

    def __init__(self, jobs: Jobs, stock: bool, scratch: Path) -> None:
        self.jobs, self._scratch = jobs, scratch
        self.drivers = [FASTCOPY, PIPELINE, *([STOCK] if stock else [])]
        self._images: Dict[str, tuple[int, str]] = {}

    def image(self, picture: Picture) -> tuple[int, str]:
        """Number and path of an image, made when it is first asked for."""
        if picture.name not in self._images:
            source = self._scratch / f"measure-{picture.name}"
            picture.write(source)
            number = len(self._images) + 1
            path = self.jobs.add_image(number, picture.name, source, format=picture.format)
            source.unlink()
            settle([self.jobs.lab.fe.path(path)])
            self._images[picture.name] = number, path
        return self._images[picture.name]

    def clone(self, driver: str, host: str, picture: Picture) -> float:
        """Seconds of one clone; the disk is removed again."""
        number, path = self.image(picture)
        run, vm = self.jobs.clone(driver, host, number, path, quickly=True)
        shutil.rmtree(self.jobs.lab.hosts[host].path(self.jobs.disk(vm, SYSTEM[driver])).parent)
        return run.seconds

    def forget(self, host: str, picture: Picture) -> None:
        """Make the image new to the front-end, and the host's cache empty."""
        lab, (_, path) = self.jobs.lab, self.image(picture)
        os.utime(lab.fe.path(path))
        cache = lab.hosts[host].path(f"{lab.datastores}/.fastcopy/cache")
        for entry in cache.iterdir() if cache.exists() else ():
            entry.unlink()
        settle([lab.fe.path(path)])

    def rounds(self, count: int, host: str, picture: Picture, cold: bool) -> Dict[str, List[float]]:
        """Seconds by driver, of *count* rounds in which the drivers take turns, after one that does not count."""
        found: Dict[str, List[float]] = {driver: [] for driver in self.drivers}
        for turn in range(count + 1):
            for driver in self.drivers:
                if cold and driver == FASTCOPY:
                    self.forget(host, picture)
                seconds = self.clone(driver, host, picture)
                if turn:
                    found[driver].append(seconds)
        return found

    def rounds_of(self, driver: str, count: int, host: str, picture: Picture) -> List[float]:
        """Seconds of *count* clones by one driver, after one that does not count."""
        return [self.clone(driver, host, picture) for _ in range(count + 1)][1:]


def bare_python(lab: Lab, count: int) -> List[float]:
    """Seconds that an interpreter takes that does nothing, started in the same way."""
    found = []
    python = lab.one_location / "lib/fastcopy/venv/bin/python3"
    for _ in range(count):
        started = time.monotonic()
        lab.fe.run([python, "-I", "-S", "-c", "pass"], check=True)
        found.append(time.monotonic() - started)
    return found


def milliseconds(seconds: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{1e3 * statistics.median(seconds):.1f} ({1e3 * min(seconds):.1f}-{1e3 * max(seconds):.1f})"


def in_seconds(seconds: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def times(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """How many times faster ours is, by medians."""
    return f"{statistics.median(theirs) / statistics.median(ours):.1f}"


def small(path: Path) -> None:
    """10 MB that do not compress."""
    edge.random_data(path, 10 * 1000 * 1000)


def large(path: Path) -> None:
    """40 GiB with 400 pieces of data, 200 MiB in all."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), 40 * 1024 * _MIB)
        for place in range(400):
            file.seek(place * 100 * _MIB)
            file.write(os.urandom(_MIB // 2))


def pictures(images: Path) -> Dict[str, Picture]:
    """The images by name."""

    def copy(path: Path) -> None:
        subprocess.run(["cp", "--sparse=always", catalogue.path_of("debian", images), path], check=True)

    def convert(path: Path) -> None:
        source = catalogue.path_of("debian", images)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, path], check=True)

    made = [
        Picture("10MB", small),
        Picture("debian-4GiB", copy),
        Picture("debian.qcow2", convert, "qcow2"),
        Picture("40GiB", large),
        Picture("random-256MiB", lambda path: edge.random_data(path, 256 * _MIB)),
    ]
    return {picture.name: picture for picture in made}


def warm(clones: Clones, known: Dict[str, Picture], count: int) -> Table:
    """Clones of images that the host has."""
    lab = clones.jobs.lab
    drivers = [driver for driver in clones.drivers if driver != FASTCOPY]
    table = Table(
        "host", "image", "fastcopy ms", "bare python ms", "above it", *(f"{driver} ms" for driver in drivers),
        title="warm: median (least-most)", text_columns=(0, 1),
    )  # fmt: skip
    for host, fs in _HOSTS.items():
        for name in ("10MB", "debian-4GiB", "40GiB"):
            ours = clones.rounds_of(FASTCOPY, count, host, known[name])
            bare = bare_python(lab, count)
            theirs = [milliseconds(clones.rounds_of(driver, 3, host, known[name])) for driver in drivers]
            above = 1e3 * (statistics.median(ours) - statistics.median(bare))
            table.add(f"{host} {fs}", name, milliseconds(ours), milliseconds(bare), f"{above:.1f}", *theirs)
    return table


def cold(clones: Clones, known: Dict[str, Picture], names: Sequence[str], count: int, title: str) -> Table:
    """Clones of images that are new."""
    others = [driver for driver in clones.drivers if driver != FASTCOPY]
    heads = [head for driver in others for head in (f"{driver} s", "times")]
    table = Table("host", "image", "fastcopy s", *heads, title=f"{title}: median (least-most)", text_columns=(0, 1))
    for host, fs in _HOSTS.items():
        for name in names:
            found = clones.rounds(count, host, known[name], cold=True)
            cells = [cell for d in others for cell in (in_seconds(found[d]), times(found[d], found[FASTCOPY]))]
            table.add(f"{host} {fs}", name, in_seconds(found[FASTCOPY]), *cells)
    return table


def extents(clones: Clones, known: Dict[str, Picture]) -> Table:
    """Pieces of images in the cache, and what a reflink of them costs."""
    table = Table(
        "host", "image", "extents in the image", "in the cache", "reflink ms", "with fsync ms", text_columns=(0, 1)
    )
    lab = clones.jobs.lab
    for name in ("10MB", "debian-4GiB", "40GiB", "random-256MiB"):
        clones.forget("host1", known[name])
        clones.clone(FASTCOPY, "host1", known[name])
        cache = lab.hosts["host1"].path(f"{lab.datastores}/.fastcopy/cache")
        (entry,) = cache.glob("*.img")
        with lab.fe.path(clones.image(known[name])[1]).open("rb") as image:
            before = usage(image.fileno()).extents
        with entry.open("rb") as file:
            found = usage(file.fileno()).extents
            shared, durable = zip(*(_reflink(file.fileno(), cache / "measured") for _ in range(20)))
        table.add("host1 xfs", name, before, found, milliseconds(shared), milliseconds(durable))
    return table


def _reflink(source: int, target: Path) -> tuple[float, float]:
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        started = time.monotonic()
        fcntl.ioctl(fd, FICLONE, source)
        shared = time.monotonic() - started
        os.fsync(fd)
        return shared, time.monotonic() - started
    finally:
        os.close(fd)
        target.unlink()


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure and print; 0 if every disk was right."""
    options = _parse(arguments)
    try:
        catalogue.make("debian", options.images)
        config = LabConfig(hosts=len(_HOSTS), fs=tuple(_HOSTS.values()), dir=options.dir, opennebula=options.opennebula)
        with Lab.up(config) as lab:
            _measure(Clones(Jobs(lab), options.opennebula is not None, options.images), options)
    except (LabError, WrongContent, tools.Unable, OSError, subprocess.SubprocessError) as error:
        print(f"measure-clones: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(clones: Clones, options: argparse.Namespace) -> None:
    known = pictures(options.images)
    if "warm" in options.sections:
        print(warm(clones, known, options.rounds).render(), flush=True)
    if "fixed" in options.sections:
        print(cold(clones, known, ["10MB"], 5, "fixed cost, link as fast as the machine").render(), flush=True)
    if "cold" in options.sections:
        for rate in options.rate:
            for host in _HOSTS:
                clones.jobs.lab.rate(host, None if rate == "none" else rate)
            names = ["debian-4GiB", "debian.qcow2", "random-256MiB", "10MB"]
            print(cold(clones, known, names, 3, f"cold, link {rate}").render(), flush=True)
        for host in _HOSTS:
            clones.jobs.lab.rate(host, None)
    if "extents" in options.sections:
        print(extents(clones, known).render(), flush=True)


def _parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/measure-clones", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"what to measure: {', '.join(_SECTIONS)} (all)")
    parser.add_argument("--rounds", type=int, default=20, help="warm clones of each image (20)")
    parser.add_argument("--rate", nargs="+", default=["none", "1gbit"], help="links for cold clones (none 1gbit)")
    parser.add_argument("--opennebula", type=Path, help="a checkout of OpenNebula, to run its ssh driver as well")
    parser.add_argument("--images", type=Path, default=catalogue.DIRECTORY, help="where the images are kept")
    parser.add_argument("--dir", type=Path, default=LabConfig().dir, help="where the lab is built")
    options = parser.parse_args(arguments)
    options.sections = options.sections or list(_SECTIONS)
    unknown = sorted(set(options.sections) - set(_SECTIONS))
    if unknown:
        parser.error(f"there is nothing to measure called {', '.join(unknown)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
