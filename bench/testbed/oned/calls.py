"""Which API calls the stand-in answers, and how: arrays of success, value and error code, as oned's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.testbed.oned import documents

VERSION = "7.4.0"
NO_EXISTS = 0x0400
INTERNAL = 0x2000

CHANGES = ("one.vm.allocate", "one.vm.deploy", "one.vm.recover")  # answered by `life`, which may change the state

State = Mapping[str, Any]
Document = Callable[[State, State], str]

OBJECTS: dict[str, tuple[str, str, Document]] = {
    "one.vm.info": ("vms", "virtual machine", documents.vm),
    "one.image.info": ("images", "image", documents.image),
    "one.datastore.info": ("datastores", "datastore", documents.datastore),
    "one.host.info": ("hosts", "host", documents.host),
}

POOLS: dict[str, tuple[str, str, Document]] = {
    "one.vmpool.info": ("vms", "VM_POOL", documents.vm_short),
    "one.vmpool.infoextended": ("vms", "VM_POOL", documents.vm),
    "one.imagepool.info": ("images", "IMAGE_POOL", documents.image),
    "one.datastorepool.info": ("datastores", "DATASTORE_POOL", documents.datastore),
    "one.hostpool.info": ("hosts", "HOST_POOL", documents.host),
}


def known(method: str) -> bool:
    """Whether the stand-in has an answer for this call."""
    return method in OBJECTS or method in POOLS or method == "one.system.version" or method in CHANGES


def answer(state: State, method: str, parameters: Sequence[Any]) -> list[Any]:
    """The reply to a call; `parameters` begin with the authentication string, of which any will do."""
    if not parameters or not isinstance(parameters[0], str):
        return failure(method, "needs the authentication string first", INTERNAL)
    if method == "one.system.version":
        return [True, VERSION, 0]
    if method in OBJECTS:
        pool, name, document = OBJECTS[method]
        number = parameters[1] if len(parameters) > 1 else None
        item = state[pool].get(str(number))
        if not isinstance(number, int) or item is None:
            return failure(method, f"Error getting {name} [{number}].", NO_EXISTS, number)
        return [True, document(state, item), 0]
    if method in POOLS:
        pool, name, document = POOLS[method]
        items = sorted(state[pool].values(), key=lambda item: int(item["ID"]))
        return [True, documents.plain(name, "".join(document(state, item) for item in items)), 0]
    return failure(method, "The stand-in for oned does not know this call.", INTERNAL)


def failure(method: str, text: str, code: int, number: Any = -1) -> list[Any]:
    """A failed call: also names the object and the (unused) replication index."""
    return [False, f"[{method}] {text}", code, number if isinstance(number, int) else -1, -1]
