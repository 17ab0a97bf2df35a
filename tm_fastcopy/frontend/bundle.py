"""The bundle: all that a host needs to run the agent, as one tar file that is named by its SHA-256.

It holds core, agent and three wheels (blake3, xxhash, zstandard) for the host's Python and architecture.  The
wheels come
from the wheels directory (the installer fills it); for the front-end's own Python and architecture, what is
installed here will do.  Equal input makes an equal file, so a host gets each bundle once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import platform
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from ..core.errors import FastcopyError
from ..core.ssh_words import bootstrap_words

WHEELS = ("blake3", "xxhash", "zstandard")
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class HostPython:
    """What a host's bootstrap says of itself: version ("3.11"), implementation and machine ("x86_64")."""

    version: str
    implementation: str
    machine: str

    @property
    def tag(self) -> str:
        """Name of its directory of wheels, such as cp311-x86_64."""
        return f"cp{self.version.replace('.', '')}-{self.machine}"

    @classmethod
    def here(cls) -> HostPython:
        """The Python that runs this."""
        return cls("{}.{}".format(*sys.version_info[:2]), sys.implementation.name, platform.machine())


@dataclass(frozen=True)
class Bundle:
    """A bundle's bytes and their SHA-256 in hexadecimal."""

    digest: str
    content: bytes


def build(host: HostPython, wheels: Path) -> Bundle:
    """The bundle for a host; `FastcopyError` if there are no wheels for it."""
    members = dict(_own_code())
    members.update(_wheels(host, wheels))
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(members[name]), 0o644
            archive.addfile(info, io.BytesIO(members[name]))
    content = raw.getvalue()
    return Bundle(hashlib.sha256(content).hexdigest(), content)


def _own_code() -> Iterator[Tuple[str, bytes]]:
    yield "tm_fastcopy/__init__.py", (_PACKAGE / "__init__.py").read_bytes()
    for part in ("core", "agent"):
        for path in sorted((_PACKAGE / part).glob("*.py")):
            yield f"tm_fastcopy/{part}/{path.name}", path.read_bytes()


def _wheels(host: HostPython, wheels: Path) -> Iterator[Tuple[str, bytes]]:
    if host.implementation != "cpython" or tuple(map(int, host.version.split("."))) < (3, 9):
        raise FastcopyError(
            f"its python3 is {host.implementation} {host.version}, and the agent needs CPython 3.9 or newer: "
            "install one as python3 there"
        )
    found = sorted((wheels / host.tag).glob("*.whl"))
    if {path.name.split("-")[0] for path in found} >= set(WHEELS):
        for path in found:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if not name.endswith("/"):
                        yield name, archive.read(name)
    elif host == HostPython.here():
        for name in WHEELS:
            yield from _installed(name)
    else:
        raise FastcopyError(
            f"there are no wheels for its Python {host.version} on {host.machine}: on the front-end, run "
            f"install/install.sh --renew --hosts {host.tag} (without a network: see install/wheels.sh --help)"
        )


def _installed(name: str) -> Iterator[Tuple[str, bytes]]:
    """Files of a package that is installed here.  Caches of bytecode are left out: they hold times and paths."""
    for entry in importlib.metadata.files(name) or []:
        top = entry.parts[0]
        if ".." in entry.parts or "__pycache__" in entry.parts or top.endswith(".dist-info"):
            continue
        yield str(entry), Path(str(entry.locate())).read_bytes()


class Bundles:
    """Bundles by host Python, each built once in a process."""

    def __init__(self, wheels: Path) -> None:
        self._wheels = wheels
        self._built: Dict[HostPython, Bundle] = {}

    def get(self, host: HostPython) -> Bundle:
        """The bundle for a host."""
        if host not in self._built:
            self._built[host] = build(host, self._wheels)
        return self._built[host]


def bootstrap_argv() -> List[str]:
    """The remote command, as words, that starts the bootstrap."""
    return bootstrap_words((_PACKAGE / "agent" / "bootstrap.py").read_text())
