"""Messages about a disk that consists of several files: itself, and its snapshots.  core/wire.py carries them.

Each file travels by the messages that a disk of one file has (`core/messages.py`); these say which one it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence

from .chain import MAX_FILES, is_current, is_number
from .errors import ProtocolError
from .wire import Message


def check_member(name: str) -> None:
    """Raise `ProtocolError` if no file of a tree is called so."""
    if not (is_number(name) or is_current(name)):
        raise ProtocolError(f"no file of a disk's tree is called {name!r:.60}")


def pack_names(names: Sequence[str]) -> bytes:
    """Names as a blob."""
    return "\n".join(names).encode()


def _names(blob: bytes) -> List[str]:
    try:
        names = bytes(blob).decode("ascii").split("\n") if blob else []
    except UnicodeDecodeError as error:
        raise ProtocolError("a list of files has names that none has") from error
    if len(names) > MAX_FILES or len(set(names)) != len(names):
        raise ProtocolError(f"a list of {len(names)} files is no tree")
    for name in names:
        check_member(name)
    return names


@dataclass(frozen=True)
class ListTree(Message):
    """Which files does the disk consist of?  *format* as oned says.  Answer: TreeListed."""

    format: str


@dataclass(frozen=True)
class TreeListed(Message):
    """*blob* names the files in the disk's tree, of which *active* is the disk ("": it lies beside them)."""

    active: str
    blob: bytes

    @property
    def names(self) -> List[str]:
        """The files, as they must be carried: what others rest on need not come first."""
        return _names(self.blob)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.active and self.active not in self.names:
            raise ProtocolError("the active file of a tree is not among its files")


@dataclass(frozen=True)
class OpenMember(Message):
    """Open a file of the tree for reading, as `OpenSource` opens a disk.  Answer: Source."""

    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_member(self.name)


@dataclass(frozen=True)
class BeginTree(Message):
    """A disk of this *format* that consists of several files is to be made; *blob* names those in its tree.

    Answer: Done.
    """

    format: str
    blob: bytes

    @property
    def names(self) -> List[str]:
        """The files."""
        return _names(self.blob)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names  # noqa: B018 (it raises)


@dataclass(frozen=True)
class Member(Message):
    """The transfer that follows makes this file of the tree; "" is the disk itself.  Answer: Done."""

    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name:
            check_member(self.name)


@dataclass(frozen=True)
class PublishTree(Message):
    """All files are there: check them, and give the tree its name, with *active* as the disk ("": none of them).

    *virtual* is how many bytes its guest must see (0: as many as it has), *reserve* whether what is added is reserved.
    Answer: Published.
    """

    active: str
    virtual: int
    reserve: bool
