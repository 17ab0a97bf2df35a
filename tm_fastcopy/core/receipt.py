"""Receipts: the proof that a durable, verified copy has its final name.

Only `publish` issues one, after the directory is durable.  Whoever deletes something that has a copy must hand over the
copy's receipt, and the receipt is held against the file system as it is at that moment.

Format, version 1: a JSON object with the keys below, all of them always there.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields

from .errors import Refused
from .paths import has

VERSION = 1
MAX_ENCODED = 16 * 1024  # a path of PATH_MAX bytes, each perhaps written as \uXXXX in part, and a few numbers


@dataclass(frozen=True)
class Receipt:
    """Says: *path* holds the content *manifest* (its id), *size* bytes, as the file (*device*, *inode*), durably."""

    path: str
    manifest: str
    size: int
    device: int
    inode: int
    version: int = VERSION

    def encode(self) -> str:
        """The receipt as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> Receipt:
        """Read a receipt; `Refused` if it is none, or of a version that this program does not know."""
        try:
            if len(text) > MAX_ENCODED:
                raise ValueError("too long")
            values = json.loads(text)
            version = values["version"]
            if type(version) is int and version != VERSION:
                raise Refused(f"this receipt is of version {version}, and version {VERSION} is the newest known here")
            receipt = cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Refused("this is not a receipt") from error
        if any(type(getattr(receipt, f.name)).__name__ != f.type for f in fields(receipt)):
            raise Refused("this is not a receipt")
        return receipt

    def confirm(self, directory: int) -> None:
        """Raise `Refused` unless the file is still where the receipt says, in its open *directory*."""
        status = has(directory, os.path.basename(self.path))
        if status is None or (status.st_dev, status.st_ino) != (self.device, self.inode):
            raise Refused(f"{self.path} is no longer the file that its receipt speaks of, so nothing is deleted for it")
        if status.st_size < self.size:
            raise Refused(f"{self.path} is shorter than its receipt says, so nothing is deleted for it")
