"""Messages of a conversation in which a host is looked at and nothing is changed.  core/wire.py carries them."""

from __future__ import annotations

from dataclasses import dataclass

from .wire import Message


@dataclass(frozen=True)
class Examine(Message):
    """What is on the host?  *remotes* is the directory of OpenNebula's scripts there.  Answer: Examined."""

    remotes: str


@dataclass(frozen=True)
class Examined(Message):
    """Versions of python3 and qemu-img ("": none), the user that the agent runs as, the user that libvirt's guests run
    as ("": no libvirt, "?": it does not say), and the fingerprint of the driver's files in the remotes ("": they are
    not there).
    """

    python: str
    qemu_img: str
    user: str
    guests: str
    remotes: str


@dataclass(frozen=True)
class ReadClock(Message):
    """What time is it there?  Answer: ClockRead."""


@dataclass(frozen=True)
class ClockRead(Message):
    """The host's clock, in microseconds since the epoch."""

    clock: int


@dataclass(frozen=True)
class ExamineDatastore(Message):
    """What is the system datastore *base* on this host?  Answer: DatastoreExamined."""

    base: str


@dataclass(frozen=True)
class DatastoreExamined(Message):
    """The kind of its file system, whether files in it can be written and cloned, the bytes that it has, and has free
    for us; and whether it is *present*: if not, all that is true of the directory in which it will be made.
    """

    fs: str
    writable: bool
    reflink: bool
    total: int
    free: int
    present: bool


@dataclass(frozen=True)
class Reach(Message):
    """Can the host *host* be logged into from this one, without a password?  Answer: Reached."""

    host: str


@dataclass(frozen=True)
class Reached(Message):
    """Why it cannot ("": it can)."""

    problem: str


@dataclass(frozen=True)
class FindDisk(Message):
    """What is at the disk *name* of VM *vm* in the system datastore *base*?  Answer: DiskFound."""

    base: str
    vm: int
    name: str


@dataclass(frozen=True)
class DiskFound(Message):
    """"file", "link", "directory", "other", or "" for nothing; and its bytes."""

    kind: str
    size: int
