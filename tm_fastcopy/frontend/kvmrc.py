"""kvmrc: what OpenNebula's configuration of KVM says about virsh, as far as a live disk needs it.

The file is a shell script that the stock drivers source.  It is not run here: what counts are its plain assignments,
`[export ]NAME=VALUE`, the last of each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import Refused

_MAX_FILE = 64 * 1024  # the one that OpenNebula ships has 4 KiB
_ASSIGNMENT = re.compile(r"""\s*(?:export\s+)?(LIBVIRT_URI|VIRSH_TIMEOUT)=(["']?)([^"'#\s]*)\2\s*(?:#.*)?""")
_URI = re.compile(r"[a-z][a-z0-9+]*:[!-~]{1,500}")  # libvirt's; nothing that virsh could take for an option
_LONGEST = 3600  # seconds


@dataclass(frozen=True)
class Kvmrc:
    """Where virsh connects to, and how many seconds it may take for a step."""

    uri: str = "qemu:///system"
    patience: int = 60

    @classmethod
    def read(cls, path: Path) -> Kvmrc:
        """Read the file; its defaults if there is none.  `Refused` if what it says cannot be used."""
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(_MAX_FILE)
        except OSError:
            return cls()
        found = {match[1]: match[3] for match in map(_ASSIGNMENT.fullmatch, text.splitlines()) if match}
        uri = found.get("LIBVIRT_URI") or cls.uri
        patience = found.get("VIRSH_TIMEOUT") or str(cls.patience)
        if not _URI.fullmatch(uri):
            raise Refused(f"LIBVIRT_URI in {path} is {uri!r:.200}, which is no address of libvirt: correct it")
        if not patience.isdecimal() or not 1 <= int(patience) <= _LONGEST:
            raise Refused(f"VIRSH_TIMEOUT in {path} is {patience!r:.50}: write seconds, from 1 to {_LONGEST}")
        return cls(uri, int(patience))
