"""Containers: what a live snapshot of a container's disk needs of LXC, whose programs oneadmin may run through sudo.

A container can stand still, and no more.  The methods are those of `Hypervisor`.
"""

from __future__ import annotations

import re
from typing import List

from ..core.errors import ProtocolError
from .hypervisor import NotDone, Undoing, ask

SUDO = "sudo"
URI = "lxc"
"""What stands in a mark for LXC, where libvirt's address is otherwise."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_RUNNING, _FROZEN = "RUNNING", "FROZEN"
_STATES = {_RUNNING, _FROZEN, "STOPPED", "STARTING", "STOPPING", "ABORTING", "FREEZING", "THAWED"}


class Lxc:
    """LXC on this host; a step takes *patience* seconds at most."""

    uri = URI

    def __init__(self, patience: float) -> None:
        self.patience = patience

    def is_running(self, domain: str) -> bool:
        """Whether the container can write to its disks now; `NotDone` if that cannot be found out."""
        state = self._run(_state(domain))
        if state not in _STATES:
            raise NotDone(f"lxc-info says that {domain} is {state!r:.60}, which this driver does not know")
        return state not in (_FROZEN, "STOPPED")

    def is_paused(self, domain: str) -> bool:
        """Whether the container would go on if it was thawed."""
        return self._run(_state(domain)) == _FROZEN

    def suspend(self, domain: str) -> None:
        """Stop the container's processes."""
        self._run(_by_name("lxc-freeze", domain))

    def resume(self, domain: str) -> None:
        """Let them go on."""
        self._run(_by_name("lxc-unfreeze", domain))

    def freeze(self, domain: str) -> None:
        """There is no agent in a container."""
        raise NotDone(f"the container {domain} has no guest agent")

    def thaw(self, domain: str) -> None:
        """There is nothing to undo."""

    def undoing(self, domain: str) -> Undoing:
        """How somebody else undoes a step."""
        return Undoing(_by_name("lxc-unfreeze", domain), [], _state(domain), _FROZEN)

    def _run(self, argv: List[str]) -> str:
        return ask(argv, " ".join(argv[2:]), "OpenNebula's LXC driver needs it, too", self.patience)


def _by_name(program: str, domain: str) -> List[str]:
    if not _NAME.fullmatch(domain):
        raise ProtocolError(f"{domain!r:.100} is no name of a container")
    return [SUDO, "-n", program, "-n", domain]


def _state(domain: str) -> List[str]:
    return [*_by_name("lxc-info", domain), "-s", "-H"]
