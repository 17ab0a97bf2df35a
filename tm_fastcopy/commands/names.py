"""Names: which image of oned's an image in a cache is, as far as the front-end remembers its digests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Iterable, Mapping, Set

from ..core.errors import FastcopyError
from ..core.identity import Identity
from ..core.manifest import DIGEST_SIZE, MAX_CHUNKS, Manifest
from ..frontend.oned import ImageRecord, Oned
from ..frontend.places import Places

_MAX = MAX_CHUNKS * DIGEST_SIZE + 4096


def names(environ: Mapping[str, str], sizes: Set[int]) -> Dict[str, str]:
    """Names by digest, for images that have one of these sizes.  None where oned is not there: they are a help only."""
    places = Places.of(environ)
    try:
        images = Oned.of(environ, places.auth).images()
    except FastcopyError:
        return {}
    return remembered(images, places.state / "manifests", sizes)


def remembered(images: Iterable[ImageRecord], directory: Path, sizes: Set[int]) -> Dict[str, str]:
    """The names of *images* as they are now, by the digests that lie in *directory*."""
    found: Dict[str, str] = {}
    for image in images:
        try:
            status = os.stat(image.source)
            if status.st_size not in sizes:
                continue
            with open(directory / Identity.of(status).key(""), "rb") as file:
                found[Manifest.decode(file.read(_MAX)).id] = f"{image.id} ({image.name})"
        except (OSError, ValueError, FastcopyError):
            continue  # not in a datastore of files, or never read
    return found
