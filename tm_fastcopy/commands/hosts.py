"""Hosts: how a command reaches them, and which system datastores it means there."""

from __future__ import annotations

import contextlib
from typing import AsyncIterator, Dict, List, Mapping

from ..core.errors import Refused
from ..frontend.arguments import Endpoint
from ..frontend.connections import Connections
from ..frontend.host import DRIVER
from ..frontend.oned import Datastore, Oned
from ..frontend.places import Places
from ..frontend.services import Services


@contextlib.asynccontextmanager
async def connected(environ: Mapping[str, str]) -> AsyncIterator[Connections]:
    """Connections of a process of its own: the daemon's are for actions."""
    services = Services()
    try:
        yield services.connections(environ, Places.of(environ))
    finally:
        await services.close()


def ours(stores: Dict[int, Datastore]) -> List[Datastore]:
    """The system datastores of this driver."""
    return [store for store in stores.values() if store.system and store.tm_mad == DRIVER]


def host_and_bases(text: str, environ: Mapping[str, str]) -> tuple[str, List[str]]:
    """Read `HOST`, `HOST:ID` or `HOST:/PATH`: the host, and the system datastores that are meant.  Only the last form
    can do without oned.
    """
    if ":/" in text:
        endpoint = Endpoint.parse(text)
        return endpoint.host, [endpoint.path.rstrip("/")]
    host, _, wanted = text.partition(":")
    host = Endpoint.parse(f"{host}:/").host
    stores = Oned.of(environ, Places.of(environ).auth).datastores()
    if not wanted:
        found = ours(stores)
        if not found:
            raise Refused(f"no system datastore has TM_MAD = {DRIVER}: name one, as in {host}:100 or {host}:/its/path")
        return host, [store.base_path for store in found]
    if not wanted.isdecimal() or int(wanted) not in stores or not stores[int(wanted)].system:
        raise Refused(f"{wanted!r} is not the number of a system datastore that oned knows, nor an absolute path")
    return host, [stores[int(wanted)].base_path]
