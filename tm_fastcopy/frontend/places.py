"""Places: where OpenNebula and this driver keep their files on the front-end.

`ONE_LOCATION` set means a self-contained OpenNebula; unset means the packages' places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping


@dataclass(frozen=True)
class Places:
    """`state` and `log` are ours to write; `wheels` is for agents on other Python versions; `auth` is oned's.

    `etc` holds what the administrator configures.
    """

    state: Path
    wheels: Path
    auth: Path
    etc: Path
    log: Path

    @property
    def installed(self) -> Path:
        """The virtual environment by the name that everybody uses: a link, which an upgrade replaces."""
        return self.wheels.parent / "venv"

    @property
    def datastore_conf(self) -> Path:
        """OpenNebula's configuration of its datastore drivers."""
        return self.state.parent / "remotes" / "etc" / "datastore" / "datastore.conf"

    @property
    def remotes(self) -> Path:
        """OpenNebula's drivers."""
        return self.state.parent / "remotes"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Places:
        """The places that belong to the environment of a call."""
        one = environ.get("ONE_LOCATION", "")
        var, lib = (Path(one, "var"), Path(one, "lib")) if one else (Path("/var/lib/one"), Path("/usr/lib/one"))
        etc, logs = (Path(one, "etc"), var) if one else (Path("/etc/one"), Path("/var/log/one"))
        auth = Path(environ.get("ONE_AUTH") or Path(environ.get("HOME", "/var/lib/one"), ".one", "one_auth"))
        return cls(var / "fastcopy", lib / "fastcopy" / "wheels", auth, etc / "tm" / "fastcopy", logs / "fastcopy.log")
