"""Services: what the calls of one process share.

In a process of its own a call has them to itself.  In the daemon they are why it exists: agents that are there already,
one transfer for many callers, limits, and what oned said a moment ago.
"""

from __future__ import annotations

import asyncio
import time
from typing import Dict, List, Mapping, Optional, Tuple, TypeVar

from .asyncssh_link import AsyncsshDialer, WithFallback
from .bandwidth import Bandwidth
from .bundle import Bundles
from .caretaker import Caretaker
from .connections import Connections
from .flights import Flights
from .limits import Limits
from .link import Dialer
from .oned import Datastore, Oned
from .places import Places
from .process_link import SshDialer
from .turns import Turns

_REMEMBERED = 10.0  # seconds that datastores are believed; an administrator who changes one waits that long
_STATES = 8  # ssh agents that calls came with; one, but for restarts of the ssh agent

T = TypeVar("T")


class Services:
    """*keep*: the process lives on after a call, so connections are kept for the next."""

    def __init__(
        self,
        keep: bool = False,
        dialer: Optional[Dialer] = None,
        bundles: Optional[Bundles] = None,
        limits: Optional[Limits] = None,
    ) -> None:
        self._keep, self._dialer, self._bundles, self._limits = keep, dialer, bundles, limits or Limits()
        self._connections: Dict[Tuple[str, str], Connections] = {}
        self._closing: List[asyncio.Task[None]] = []
        self._datastores: Dict[str, Tuple[float, Dict[int, Datastore]]] = {}
        self.turns, self.flights, self.caretaker = Turns(), Flights(), Caretaker()
        self.bandwidth = Bandwidth()

    def connections(self, environ: Mapping[str, str], places: Places) -> Connections:
        """The connections that are made with the environment's ssh agent."""
        key = (environ.get("SSH_AUTH_SOCK", ""), str(places.wheels))
        if key not in self._connections:
            if self._bundles is None:
                self._bundles = Bundles(places.wheels)
            agent = {"SSH_AUTH_SOCK": key[0]} if key[0] else {}
            bulk = self._dialer or SshDialer(agent=agent)
            control: Dialer = bulk
            if self._keep and not self._dialer:
                control = WithFallback(AsyncsshDialer(agent=key[0], shared=True), bulk)
            idle = [key for key, connections in self._connections.items() if not connections.agents.taken]
            for old in idle[: len(self._connections) + 1 - _STATES]:
                self._closing.append(asyncio.ensure_future(self._connections.pop(old).close()))
            self._connections[key] = Connections(control, bulk, self._bundles, self._keep, self._limits)
        return self._connections[key]

    async def datastores(self, oned: Oned, wanted: int) -> Dict[int, Datastore]:
        """All datastores, as oned knows them or knew them a moment ago; *wanted* is one that must be among them."""
        said = self._datastores.get(oned.endpoint)
        known = said is not None and time.monotonic() - said[0] < _REMEMBERED and wanted in said[1]
        if not self._keep or said is None or not known:
            said = self._datastores[oned.endpoint] = time.monotonic(), await asyncio.to_thread(oned.datastores)
        return said[1]

    async def close(self) -> None:
        """End all connections."""
        closing = [*self._closing, *(connections.close() for connections in self._connections.values())]
        await asyncio.gather(*closing, return_exceptions=True)
