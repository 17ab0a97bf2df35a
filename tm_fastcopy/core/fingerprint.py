"""Fingerprint: whether two machines have the same small files in a directory.

`onehost sync` copies what links lead to, so contents are compared and not links; compiled files do not count.
"""

from __future__ import annotations

import hashlib
import os
from typing import List

MAX_FILES = 500  # the driver's directory has two dozen
MAX_FILE = 1024 * 1024  # bytes; its files have a few KB


def fingerprint(directory: str) -> str:
    """SHA-256 over names and contents of a directory's files; "" if there is no such directory, or it is another."""
    names: List[str] = []
    try:
        with os.scandir(directory) as found:
            for entry in found:
                names += [entry.name] if entry.is_file() else []
                if len(names) > MAX_FILES:
                    return ""
        whole = hashlib.sha256()
        for name in sorted(names):
            with open(os.path.join(directory, name), "rb") as file:
                content = file.read(MAX_FILE + 1)
            if len(content) > MAX_FILE:
                return ""
            whole.update(b"%s\0%d\0" % (os.fsencode(name), len(content)))
            whole.update(content)
    except OSError:
        return ""
    return whole.hexdigest()
