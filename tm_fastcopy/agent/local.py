"""Local images: an image that lies on this very machine, opened by the path that the front-end names.

That front-end and host are one machine is proved, not guessed from names: the boot id is the same, and the path leads
to a file with the identity (device, inode, size, times) of the one that the front-end has open.
"""

from __future__ import annotations

import os
import stat
from typing import Optional

from ..core.errors import FastcopyError, SourceChanged
from ..core.identity import Identity, boot_id
from ..core.messages import CloneLocal
from ..core.paths import open_below, relative_to_any


class LocalImage:
    """An open image of this machine; *manifest* is its manifest's id, or "" if nobody has digested it."""

    def __init__(self, path: str, fd: int, identity: Identity, manifest: str) -> None:
        self.path, self.fd, self.manifest = path, fd, manifest
        self._identity = identity

    @classmethod
    def open(cls, message: CloneLocal) -> Optional[LocalImage]:
        """Open the file that the front-end means; None if it is not, or not for us, on this machine."""
        boot = boot_id()
        if not boot or boot != message.boot:
            return None
        wanted = Identity(message.device, message.inode, message.length, message.mtime_ns, message.ctime_ns)
        try:
            place = relative_to_any(f"{message.base}/{message.rest}", [message.base])  # no ".."
            directory, fd, _ = open_below(*place, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, FastcopyError):
            return None
        os.close(directory)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or Identity.of(status) != wanted:
            os.close(fd)
            return None
        return cls(f"{message.base}/{message.rest}", fd, wanted, message.manifest)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._identity.size

    def check(self) -> None:
        """Raise `SourceChanged` if the image was written since the front-end opened it."""
        if Identity.of(os.fstat(self.fd)) != self._identity:
            raise SourceChanged(f"{self.path} was written while it was cloned; repeat when nobody writes to it")

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)
