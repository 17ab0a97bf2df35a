"""The images by name: what each is for, and how it is made, once, in a directory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, Sequence, Tuple

from bench.images import debian, debian_like, edge, second
from bench.images.edge import GIB, MIB
from bench.images.staged import lock, staged

DIRECTORY = Path("/var/cache/fastcopy-images")


@dataclass(frozen=True)
class Recipe:
    """How one image is made: `write(image, directory)`, after the images in `needs`."""

    meaning: str
    write: Callable[[Path, Path], object]
    needs: Tuple[str, ...] = ()


def _log(name: str, directory: Path) -> Path:
    """A fresh log beside the image; it stays there, for whoever wants to know what is in the image."""
    log = directory / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


RECIPES: Dict[str, Recipe] = {
    "debian": Recipe(
        "Debian 12, ext4 in 4 GiB",
        lambda image, directory: debian.build(image, _log("debian", directory)),
    ),
    "debian-v2": Recipe(
        "the same after packages came and went",
        lambda image, directory: second.build(path_of("debian", directory), image, _log("debian-v2", directory)),
        needs=("debian",),
    ),
    "debian-like": Recipe("synthetic, like a file system", lambda image, _: debian_like.write(image)),
    "small": Recipe("the same, 10 MB", lambda image, _: debian_like.write(image, 10 * MIB, seed=2)),
    "empty": Recipe("no bytes", lambda image, _: edge.empty(image)),
    "one-byte": Recipe("one byte", lambda image, _: edge.one_byte(image)),
    "odd": Recipe("no multiple of block or chunk", lambda image, _: edge.odd(image)),
    "zeros": Recipe("written zeros", lambda image, _: edge.zeros(image)),
    "hole": Recipe("no data", lambda image, _: edge.hole(image)),
    "random": Recipe("incompressible", lambda image, _: edge.random_data(image)),
    "islands": Recipe("10,000 blocks of data in 4 GiB", lambda image, _: edge.islands(image)),
    "islands-20g": Recipe("10,000 blocks of data in 20 GiB", lambda image, _: edge.islands(image, 20 * GIB)),
}


def path_of(name: str, directory: Path = DIRECTORY) -> Path:
    """Where the image `name` lies once it is made. Raises KeyError for a name that is not in RECIPES."""
    if name not in RECIPES:
        raise KeyError(name)
    return directory / f"{name}.raw"


def with_needs(names: Sequence[str]) -> Iterator[str]:
    """The names, each after what it needs, none twice."""
    done = set()
    for name in names:
        for wanted in (*RECIPES[name].needs, name):
            if wanted not in done:
                done.add(wanted)
                yield wanted


def make(name: str, directory: Path = DIRECTORY, *, again: bool = False) -> float:
    """Make one image unless it is there (or `again`); give the seconds that it took, 0.0 for nothing.

    The directory is created. Only one image is made in a directory at a time: a second caller waits, and
    then finds the image. Raises tools.Unable where this machine cannot make it, OSError where the
    directory cannot take it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = path_of(name, directory)
    started = time.monotonic()
    with lock(directory):
        if final.exists() and not again:
            return 0.0
        with staged(final) as image:
            RECIPES[name].write(image, directory)
    return time.monotonic() - started
