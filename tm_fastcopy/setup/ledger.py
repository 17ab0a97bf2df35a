"""Ledger: what an installation has put where, so that it can be taken away again.

It is written before anything is done: what it names and is not there was never put there, or is gone already.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from ..core.errors import FastcopyError

LEDGER = "installed.json"
FORMAT = 1
MAX_FILE = 4 * 1024 * 1024  # bytes; it has some KB
_NO_ATTRIBUTE = (errno.EPERM, errno.ENOTSUP, errno.ENODATA, errno.EINVAL)
"""What may be said where attributes are not ours to give, or the file system has none: as in `shutil.copystat`."""


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@dataclass
class Ledger:
    """*files*: digests of all that we ever put there; *links*: their targets; *directories* that we made.

    *edits*: by file, as `Edit.record` has them, in their order.  *backups*: by file, the copies that were made before,
    and their digests.  *image_tm*: image drivers that were given our actions.
    """

    version: str = ""
    user: str = ""
    files: Dict[str, List[str]] = field(default_factory=dict)
    links: Dict[str, str] = field(default_factory=dict)
    directories: List[str] = field(default_factory=list)
    edits: Dict[str, List[Dict[str, str]]] = field(default_factory=dict)
    backups: Dict[str, Dict[str, str]] = field(default_factory=dict)
    image_tm: List[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Optional[Ledger]:
        """The ledger at *path*, None if there is none; `FastcopyError` if it cannot be used."""
        try:
            with path.open("rb") as file:
                found: Any = json.loads(file.read(MAX_FILE))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise FastcopyError(f"{path} says what was installed, and cannot be read: {error}") from error
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT or set(found) - set(asdict(cls())):
            raise FastcopyError(f"{path} was written by another version: use the scripts of that one")
        return cls(**found)

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"
        replace(path, text.encode(), 0o644)

    def add_file(self, path: Path, content: bytes) -> None:
        """A file of this content is ours."""
        known = self.files.setdefault(str(path), [])
        if digest(content) not in known:
            known.append(digest(content))

    def is_known(self, path: Path) -> bool:
        """Whether we ever put a file or a link at *path*."""
        return str(path) in self.files or str(path) in self.links

    def is_ours(self, path: Path) -> bool:
        """Whether the file or link is as we put it there; a link is not followed."""
        if path.is_symlink():
            return os.readlink(path) == self.links.get(str(path))
        return path.is_file() and digest(path.read_bytes()) in self.files.get(str(path), [])


def create(path: Path, content: bytes, mode: int, like: Optional[Path] = None) -> None:
    """Write a file that is not there yet; `FileExistsError` if anything is, also a link that leads nowhere.

    Owner (and, if it is there, mode, ACL and label) as of *like*: by default the directory, for the owner alone.  Until
    it is whole, nobody else can read it: it may hold a password.  Its name is not durable before `settle`.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            _alike(fd, like or path.parent, None if like else mode)
            os.fsync(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _alike(fd: int, like: Path, mode: Optional[int]) -> None:
    """Give an open file the owner of *like*, and *mode*, or (None) also its mode and attributes.  By descriptors: a
    name may lead elsewhere by now."""
    source = os.open(like, os.O_RDONLY)
    try:
        model = os.fstat(source)
        if os.geteuid() == 0:
            os.fchown(fd, model.st_uid, model.st_gid)
        if mode is None:
            _attributes(source, fd)
        os.fchmod(fd, stat.S_IMODE(model.st_mode) if mode is None else mode)
    finally:
        os.close(source)


def _attributes(source: int, target: int) -> None:
    """Copy ACL, label and the like, as far as they can be had and given."""
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno not in _NO_ATTRIBUTE:
            raise
        return
    for name in names:
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise


def replace(path: Path, content: bytes, mode: int, like: Optional[Path] = None) -> None:
    """Write a file under its name in one step and durably; *mode* and *like* as in `create`."""
    staged = path.with_name(f".{path.name}.fastcopy-new")
    staged.unlink(missing_ok=True)
    create(staged, content, mode, like)
    os.replace(staged, path)
    settle(path.parent)


def link(path: Path, target: str) -> None:
    """Make *path* a link to *target*, in one step, also where another one is."""
    staged = path.with_name(f".{path.name}.fastcopy-new")
    staged.unlink(missing_ok=True)
    os.symlink(target, staged)
    own(staged, path.parent)
    os.replace(staged, path)
    settle(path.parent)


def own(path: Path, like: Path) -> None:
    """Give *path* the owner of *like*, where we may."""
    if os.geteuid() == 0:
        model = os.stat(like)
        os.lchown(path, model.st_uid, model.st_gid)


def settle(directory: Path) -> None:
    """Make what was renamed in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
