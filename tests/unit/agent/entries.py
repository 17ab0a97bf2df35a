"""Putting images into a cache without a transfer."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support import make_file, manifest_of
from tm_fastcopy.agent.cache import ENTRY_MTIME, Cache

KEY = "0123456789abcdef" * 2


def add(cache: Cache, letters: str, key: str = "", used: float = 0.0) -> str:
    """Add the image `content(letters)`, last used at *used*; return its manifest id."""
    manifest = manifest_of(letters)
    image = make_file(Path(cache.path) / f"{manifest.id}.img", letters)
    os.utime(image, (ENTRY_MTIME, ENTRY_MTIME))
    cache.add_manifest(manifest, key)
    if used:
        os.utime(Path(cache.path) / f"{manifest.id}.manifest", (used, used))
    return manifest.id
