"""Who still uses the driver: asked of oned.

A datastore does by its TM_MAD.  A VM does by the driver that its disks, or its record on its host, were created with:
changing the datastore does not change it.  Source: OpenNebula's XML-RPC API, `one.vmpool.infoextended`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from typing import Iterator, List, Optional, Set

from ..frontend.oned import Oned
from .onedconf import NAME

_PAGE = 500  # VMs in one answer, some 10 KB each
_ALL, _NOT_DONE = -2, -1  # of all users; in any state but DONE


@dataclass
class Usage:
    """Datastores and VMs that use the driver, as an administrator knows them; and image datastores that allow it."""

    datastores: List[str] = field(default_factory=list)
    vms: List[str] = field(default_factory=list)
    allowing: List[str] = field(default_factory=list)


def ask(oned: Oned) -> Usage:
    """Who uses the driver; `FastcopyError` if oned does not answer."""
    usage = Usage()
    for item in oned.ask("one.datastorepool.info").iterfind("DATASTORE"):
        if item.findtext("TM_MAD") == NAME:
            usage.datastores.append(_shown(item))
        elif NAME in _words(item.findtext("TEMPLATE/TM_MAD_SYSTEM")):
            usage.allowing.append(_shown(item))
    usage.vms = [_shown(item) for item in _vms(oned) if _uses(item)]
    return usage


def _vms(oned: Oned) -> Iterator[ElementTree.Element]:
    seen: Set[str] = set()
    while True:
        page = oned.ask("one.vmpool.infoextended", _ALL, len(seen), -_PAGE, _NOT_DONE).findall("VM")
        new = [item for item in page if item.findtext("ID") not in seen]
        seen |= {item.findtext("ID") or "" for item in new}
        yield from new
        if len(page) < _PAGE or not new:
            return


def _uses(vm: ElementTree.Element) -> bool:
    records = vm.findall("HISTORY_RECORDS/HISTORY")
    drivers = [vm.findtext("TEMPLATE/TM_MAD_SYSTEM"), *(record.findtext("TM_MAD") for record in records[-1:])]
    for disk in vm.iterfind("TEMPLATE/DISK"):
        drivers += [disk.findtext("TM_MAD"), disk.findtext("TM_MAD_SYSTEM")]
    return NAME in drivers


def _words(text: Optional[str]) -> List[str]:
    return [word.strip() for word in (text or "").split(",")]


def _shown(item: ElementTree.Element) -> str:
    return f"{item.findtext('ID')} ({item.findtext('NAME')})"
