"""Messages of a conversation that brings a disk to the front-end, beyond reading it.  core/wire.py carries them."""

from __future__ import annotations

from dataclasses import dataclass

from .chain import is_number
from .errors import ProtocolError
from .wire import Message


@dataclass(frozen=True)
class Keep(Message):
    """What was read of the disk, the content *manifest*, may stay on the host as an image of the cache, as far as the
    options that came before allow.  It is seen to when the conversation is over.  Answer: Done, whatever comes of it.
    """

    manifest: str


@dataclass(frozen=True)
class OpenExtract(Message):
    """Open the disk of this conversation, of this *format*, or its *snapshot* (a number; "": the disk as it is), for
    reading as one file that needs no other.  Answer: Source.
    """

    format: str
    snapshot: str

    def __post_init__(self) -> None:
        if self.snapshot and not is_number(self.snapshot):
            raise ProtocolError(f"{self.snapshot!r:.40} is not the number of a snapshot")


@dataclass(frozen=True)
class OpenLive(Message):
    """Open the disk of this conversation, of this *format*, for reading as it was at one moment of its running guest.

    The guest is *domain* to the hypervisor at *uri*, and the disk its *target*.  virsh may take *patience* seconds for
    a step.  Answer: Source.
    """

    format: str
    uri: str
    domain: str
    target: str
    patience: int
