"""oned's API, as far as the actions need it: over XML-RPC, without starting a Ruby process.

Source: OpenNebula's documentation of its XML-RPC API, `one.vm.info` and `one.datastorepool.info`.
"""

from __future__ import annotations

import http.client
import os
import re
import xml.etree.ElementTree as ElementTree
import xmlrpc.client
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Mapping, Optional
from xml.parsers.expat import ExpatError

from ..core.errors import FastcopyError, Refused

_TIMEOUT = 30.0  # seconds; oned answers within milliseconds, and within seconds under load
_MAX_AUTH = 4096
_MAX_ATTRIBUTE = 4097  # characters; a path may have 4095, and what is longer than any value should be seen to be so
_MAX_NAME = 256  # characters of a VM's name on its host, which is "one-<id>" or a UUID, and of a driver's
_ATTRIBUTE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")  # no name that a driver looks for is longer


@dataclass(frozen=True)
class Disk:
    """A disk of a VM; sizes in MiB, None where oned gives none; *fs* is the file system of a volatile one, or "".

    *source* is the path of its image, and *target* the name that the hypervisor has for it; "" if there is none.
    """

    id: int
    size: Optional[int]
    original_size: Optional[int]
    format: str
    sparse: bool
    fs: str = ""
    source: str = ""
    target: str = ""


class NoAnswer(FastcopyError):
    """Nobody answers where oned should be: it is down, or out of reach."""


FORMATS = ("raw", "qcow2")


def check_format(disk: Disk) -> str:
    """The disk's format, if it is one that this driver handles; `Refused` otherwise.  Content is never
    probed for it.
    """
    if disk.format not in FORMATS:
        raise Refused(f"disk {disk.id} has the format {disk.format!r}; this driver handles raw and qcow2")
    return disk.format


@dataclass(frozen=True)
class Vm:
    """A VM; *seq* is the number of its last history record, *lcm_state* oned's number of what is done with it.

    *deploy_id* is its name on the host, *hypervisor* the driver (VM_MAD) that runs it there; "" where oned has none.
    *store* is the system datastore of the last record, *before* that of the one before, if there are two.
    *freeze* is how its file systems are brought to rest for a backup ("NONE", "AGENT", "SUSPEND").
    """

    id: int
    seq: int
    disks: Mapping[int, Disk]
    lcm_state: int = 0
    deploy_id: str = ""
    hypervisor: str = ""
    before: Optional[int] = None
    freeze: str = "NONE"
    store: Optional[int] = None


@dataclass(frozen=True)
class Datastore:
    """A datastore: where it lies, on the front-end and (a system datastore) on hosts.

    *attributes* is its template: names in capitals, the first value of each, cut to `_MAX_ATTRIBUTE` characters.  A
    vector attribute is there without text.  *clusters* are those whose hosts may use it.
    """

    id: int
    base_path: str
    system: bool
    attributes: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    tm_mad: str = ""
    clusters: FrozenSet[int] = frozenset()


OFFLINE = 8
"""The state of a host that an administrator has set offline: oned does nothing there."""


@dataclass(frozen=True)
class HostRecord:
    """A host as oned has it; *state* as in OpenNebula's Host class, *driver* is the one that runs its VMs."""

    id: int
    name: str
    state: int
    cluster: int
    driver: str


@dataclass(frozen=True)
class ImageRecord:
    """An image as oned has it; *source* is its file, for datastores of files."""

    id: int
    name: str
    source: str


class Oned:
    """A connection to oned with the credentials of the user that runs the driver."""

    def __init__(self, endpoint: str, credentials: str) -> None:
        self._endpoint, self._credentials = endpoint, credentials

    @property
    def endpoint(self) -> str:
        """Where it is asked."""
        return self._endpoint

    @classmethod
    def of(cls, environ: Mapping[str, str], auth: Path) -> Oned:
        """oned as the environment of the call names it; `FastcopyError` if the credentials cannot be read."""
        endpoint = environ.get("ONE_XMLRPC", "http://localhost:2633/RPC2")
        if not endpoint.startswith(("http://", "https://")):
            raise Refused(f"ONE_XMLRPC is {endpoint!r}, which is no http address")
        try:
            with auth.open() as file:
                return cls(endpoint, file.read(_MAX_AUTH).strip())
        except OSError as error:
            raise FastcopyError(f"the credentials for oned cannot be read: {auth}: {error.strerror}") from error

    def vm(self, vm_id: int) -> Vm:
        """The VM; `FastcopyError` if there is none, or oned does not answer."""
        root = self.ask("one.vm.info", vm_id, False)
        records = {_int(item.findtext("SEQ")) or 0: item for item in root.iterfind("HISTORY_RECORDS/HISTORY")}
        seq = max(records, default=0)
        before = sorted(records)[-2] if len(records) > 1 else None
        disks = (_disk(item) for item in root.iterfind("TEMPLATE/DISK"))
        return Vm(
            vm_id,
            seq,
            {disk.id: disk for disk in disks},
            _int(root.findtext("LCM_STATE")) or 0,
            (root.findtext("DEPLOY_ID") or "")[:_MAX_NAME],
            (records[seq].findtext("VM_MAD") or "")[:_MAX_NAME] if records else "",
            None if before is None else _int(records[before].findtext("DS_ID")) or 0,
            (root.findtext("BACKUPS/BACKUP_CONFIG/FS_FREEZE") or "NONE").upper()[:_MAX_NAME],
            _int(records[seq].findtext("DS_ID")) if records else None,
        )

    def datastores(self) -> Dict[int, Datastore]:
        """All datastores by id."""
        found: Dict[int, Datastore] = {}
        for item in self.ask("one.datastorepool.info").iterfind("DATASTORE"):
            store = Datastore(
                _int(item.findtext("ID")) or 0,
                os.path.normpath(item.findtext("BASE_PATH") or "/nonexistent"),
                item.findtext("TYPE") == "1",
                _attributes(item.find("TEMPLATE")),
                item.findtext("NAME") or "",
                item.findtext("TM_MAD") or "",
                frozenset(_int(cluster.text) or 0 for cluster in item.iterfind("CLUSTERS/ID")),
            )
            found[store.id] = store
        return found

    def hosts(self) -> List[HostRecord]:
        """All hosts."""
        return [
            HostRecord(
                _int(item.findtext("ID")) or 0,
                item.findtext("NAME") or "",
                _int(item.findtext("STATE")) or 0,
                _int(item.findtext("CLUSTER_ID")) or 0,
                item.findtext("VM_MAD") or "",
            )
            for item in self.ask("one.hostpool.info").iterfind("HOST")
        ]

    def images(self) -> List[ImageRecord]:
        """All images of all users."""
        found = self.ask("one.imagepool.info", -2, -1, -1).iterfind("IMAGE")
        return [
            ImageRecord(_int(item.findtext("ID")) or 0, item.findtext("NAME") or "", item.findtext("SOURCE") or "")
            for item in found
        ]

    def ask(self, method: str, *arguments: Any) -> ElementTree.Element:
        """The document that oned answers a method with; `FastcopyError` if it does not, or refuses."""
        # Made anew for every call: a ServerProxy must not be shared by threads.
        transport = _SafeTransport() if self._endpoint.startswith("https") else _Transport()
        proxy = xmlrpc.client.ServerProxy(self._endpoint, transport=transport, allow_none=True)
        try:
            with proxy:
                answer = getattr(proxy, method)(self._credentials, *arguments)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NoAnswer(
                f"oned does not answer at {self._endpoint} ({reason}): is it running, and is ONE_XMLRPC right?"
            ) from error
        except xmlrpc.client.Error as error:
            raise FastcopyError(f"oned refuses {method}: {error}") from error
        except (ExpatError, ValueError, TypeError) as error:  # what the parser of XML-RPC meets in a web page
            raise FastcopyError(f"what answers at {self._endpoint} to {method} is not oned; see ONE_XMLRPC") from error
        return _document(method, answer)


def _document(method: str, answer: Any) -> ElementTree.Element:
    """The XML of an answer, which is a list: whether it went well, then the document or a text."""
    if not isinstance(answer, list) or len(answer) < 2 or not isinstance(answer[1], str):
        raise FastcopyError(f"oned answers {method} with something that is no answer")
    if not answer[0]:
        raise FastcopyError(f"oned refuses {method}: {answer[1]}")
    try:
        return ElementTree.fromstring(answer[1])
    except ElementTree.ParseError as error:
        raise FastcopyError(f"oned answers {method} with something that is not XML") from error


class _Transport(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = _TIMEOUT
        return connection


class _SafeTransport(xmlrpc.client.SafeTransport):
    def make_connection(self, host: Any) -> http.client.HTTPSConnection:
        connection = super().make_connection(host)
        connection.timeout = _TIMEOUT
        return connection


def _disk(item: ElementTree.Element) -> Disk:
    return Disk(
        _int(item.findtext("DISK_ID")) or 0,
        _int(item.findtext("SIZE")),
        _int(item.findtext("ORIGINAL_SIZE")),
        (item.findtext("FORMAT") or item.findtext("DRIVER") or "raw").lower(),
        (item.findtext("SPARSE") or "YES").upper() != "NO",
        item.findtext("FS") or "",
        (item.findtext("SOURCE") or "")[:_MAX_ATTRIBUTE],
        (item.findtext("TARGET") or "")[:_MAX_NAME],
    )


def _attributes(template: Optional[ElementTree.Element]) -> Dict[str, str]:
    found: Dict[str, str] = {}
    for item in template if template is not None else ():
        name = item.tag.upper()
        if _ATTRIBUTE.fullmatch(name):
            found.setdefault(name, "" if len(item) else (item.text or "")[:_MAX_ATTRIBUTE])
    return found


def _int(text: Optional[str]) -> Optional[int]:
    return int(text) if text and text.isdecimal() else None
