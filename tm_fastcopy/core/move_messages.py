"""Messages of a conversation about moving a VM's directory.  core/wire.py carries them.

The source's agent and the target's are asked by the front-end, which carries what one answers to the other; between
them go `Scan`, `Offer`, `Wants`, `Get`, `Put` and `Commit` of core/messages.py, for one file after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

from . import listing
from .listing import Entry
from .wire import Message

RENAMED, COPIED = "renamed", "copied here"
SAME = "the same directory"  # under two names: nothing is moved
BEFORE = "moved before"  # by an earlier attempt of the same move
GONE = "gone"  # there is no directory to move


@dataclass(frozen=True)
class OpenMove(Message):
    """Begin a conversation about the directory of *vm* below the system datastore *base*; nothing is guarded yet.

    (*seq*, *action*) is the fence, *driver* what `.monitor` will name; *create*, where the VM will come, makes the
    datastore's directory if it is missing.  Answer: Opened.
    """

    base: str
    vm: int
    seq: int
    action: int
    driver: str
    create: bool


@dataclass(frozen=True)
class WriteToken(Message):
    """Put a token into the datastore, and into the VM's directory if there is one.  Answer: Token.
    """


@dataclass(frozen=True)
class Token(Message):
    """The token's name."""

    name: str


@dataclass(frozen=True)
class DropToken(Message):
    """Take the token away, which the end of the conversation does as well.  Answer: Done."""


@dataclass(frozen=True)
class FindToken(Message):
    """Look for the token *name*, which another agent has put into its datastore, *other* by its path.  Answer: Seen."""

    name: str
    other: str


@dataclass(frozen=True)
class Seen(Message):
    """*same*: the token lies in this conversation's datastore or VM directory, so both sides have the same one.
    *reached*: it is seen by the other's path, so this agent can reach both.  *present*: the VM has a directory here.
    """

    same: bool
    reached: bool
    present: bool


@dataclass(frozen=True)
class TakeGuard(Message):
    """Take the guard of the VM's directory, which is made if *create* says so.  Answer: Done; or Missing, if there is
    none.
    """

    create: bool


@dataclass(frozen=True)
class BeginLeaving(Message):
    """List the guarded directory, which will be read and then given up.  Answer: Listing."""


@dataclass(frozen=True)
class Listing(Message):
    """What lies in the VM's directory: see core/listing.py."""

    blob: bytes

    @classmethod
    def make(cls, entries: List[Entry]) -> Listing:
        """Pack it."""
        return cls(listing.encode(entries))

    @property
    def entries(self) -> List[Entry]:
        """The entries; `ProtocolError` if they are none."""
        return listing.decode(self.blob)


@dataclass(frozen=True)
class BeginArriving(Message):
    """Stage what this listing names beside the guarded directory.  *source* says where it comes from.  Answer: Done."""

    source: str
    blob: bytes

    @property
    def entries(self) -> List[Entry]:
        """The entries; `ProtocolError` if they are none."""
        return listing.decode(self.blob)


@dataclass(frozen=True)
class HasArrived(Message):
    """Whether the directory here is the one that came from *source* in this same move.  Answer: Done; or Missing."""

    source: str


@dataclass(frozen=True)
class ReadFile(Message):
    """Open file *number* of the listing for reading; `Scan`, `Get` and `CloseSource` are about it.  Answer: Source."""

    number: int


@dataclass(frozen=True)
class WriteFile(Message):
    """Stage file *number* of the listing in chunks of *chunk* bytes; `Offer`, `Put` and `Commit` are about it.

    *full*: it may have no holes in the end.  Answer: Done.
    """

    number: int
    chunk: int
    full: bool


@dataclass(frozen=True)
class Arrive(Message):
    """All files are there: make everything durable and give the directory its name.  Answer: Published."""


@dataclass(frozen=True)
class Depart(Message):
    """Remove the directory, on the strength of *receipt* (JSON) for the copy at the target.  Answer: Done."""

    receipt: str


@dataclass(frozen=True)
class Relocate(Message):
    """Move the directory to the datastore *target*, which this agent can reach; *source* says where it comes from.

    *full* names (one a line) the files that may have no holes in the end.  Answer: Relocated, after some seconds;
    asked again until it is done.
    """

    target: str
    source: str
    full: str


@dataclass(frozen=True)
class Relocated(Message):
    """*how* is "" as long as it is not done; then one of `RENAMED`, `COPIED`, `SAME`, `BEFORE` and `GONE`."""

    how: str


@dataclass(frozen=True)
class LookAt(Message):
    """See what there is of the VM in the datastore *base*, by its path on this machine.  Answer: Looked."""

    base: str


@dataclass(frozen=True)
class Looked(Message):
    """*same*: it is the directory that this conversation is about.  *names*: what lies in it, one a line."""

    same: bool
    names: str


@dataclass(frozen=True)
class Clear(Message):
    """Remove the VM's directory, under its guard.  *prepare*: a VM will come there by itself.  Answer: Done."""

    prepare: bool


@dataclass(frozen=True)
class Forward(Message):
    """Second message of a lane that is to send its chunks to another host itself: dial the lane there of the agent that
    has this *socket* and *token*, and was started from this *bundle* (its digest and size).  Answer: Done, or Failure.
    """

    host: str
    bundle: str
    size: int
    socket: str
    token: str


@dataclass(frozen=True)
class Carry(Message):
    """As Get, but the chunk goes to where `Forward` said.  Answer: what is answered to the Put there."""

    index: int
    chunk: int
    length: int
    packed: bool
