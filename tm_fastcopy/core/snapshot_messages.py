"""Messages about the snapshots of a VM's disk, in a conversation that `Open` began.  core/wire.py carries them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ProtocolError
from .wire import Message

MAX_SNAPSHOT = 999_999_998  # the file of the next one has nine digits at most

# What libvirt calls a VM ("one-42", or a UUID) and a disk of it ("vda"): never what a program takes for an option.
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}|")
_TARGET = re.compile(r"[a-z][a-z0-9]{0,15}|")
FREEZES = ("none", "agent", "suspend")


def _check(id: int) -> None:
    if id > MAX_SNAPSHOT:
        raise ProtocolError(f"there is no snapshot {id}")


@dataclass(frozen=True)
class SnapCreate(Message):
    """Keep the disk as it is, as snapshot *id*.  *format* as oned says; *share*: blocks may be shared with the disk.

    Answer: Snapped.
    """

    id: int
    format: str
    share: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.id)


@dataclass(frozen=True)
class SnapCreateLive(Message):
    """As `SnapCreate`, of a VM that runs as *domain*, in which the disk is *target*.

    *container*: it is one of LXC.  *freeze* is how its file systems are brought to rest: "none", "agent", "suspend".
    """

    id: int
    format: str
    share: bool
    domain: str
    target: str
    container: bool
    freeze: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.id)
        if not (_DOMAIN.fullmatch(self.domain) and _TARGET.fullmatch(self.target) and self.freeze in FREEZES):
            raise ProtocolError(f"a running VM cannot be described so: {self!r:.300}")


@dataclass(frozen=True)
class SnapRevert(Message):
    """Make the disk what it was at snapshot *id*.  *share*: blocks may be shared; *sparse*: there may be holes.

    Answer: Snapped.
    """

    id: int
    format: str
    share: bool
    sparse: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.id)


@dataclass(frozen=True)
class SnapDelete(Message):
    """Remove snapshot *id*; what rests on it goes on without it.  Answer: Snapped, also if there is nothing.

    *domain* and *target* say where the disk is, if its VM runs ("" if not).
    """

    id: int
    format: str
    share: bool
    domain: str
    target: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.id)
        if not (_DOMAIN.fullmatch(self.domain) and _TARGET.fullmatch(self.target)):
            raise ProtocolError(f"a running VM cannot be described so: {self!r:.300}")


@dataclass(frozen=True)
class Snapped(Message):
    """It is done, durably; *how* says in a few words what that meant."""

    how: str
