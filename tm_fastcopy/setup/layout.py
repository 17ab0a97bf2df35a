"""Layout: where the parts of the driver lie in an OpenNebula, and what they are called.

    lib/fastcopy/releases/<version>-<time>   a virtual environment with the driver, wheels for hosts, documents
    lib/fastcopy/current                     a link to one of them: replacing it is the upgrade
    lib/fastcopy/venv, wheels, ...           links through `current`: the names that everything else uses
    lib/fastcopy/installed.json              what was put where (`ledger.py`)
    remotes/tm/fastcopy                      entry points, brought to hosts by `onehost sync`
    etc/tm/fastcopy/fastcopy.yaml            the administrator's
"""

from __future__ import annotations

import grp
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional

from ..core.errors import Refused
from ..frontend.places import Places
from ..frontend.settings import FILE

LINKS = ("venv", "wheels", "install", "docs", "share", "bin")


@dataclass(frozen=True)
class Layout:
    """The places of one OpenNebula; *one* is None for one that packages have installed below `/`."""

    one: Optional[Path]

    @classmethod
    def of(cls, one_location: str) -> Layout:
        """The layout that belongs to a directory (empty: packages); `Refused` if no OpenNebula is there."""
        if not one_location:
            layout = cls(None)
        else:
            if not one_location.startswith("/") or any(character.isspace() for character in one_location):
                raise Refused(f"{one_location!r} must be an absolute path without blanks: OpenNebula needs that, too")
            layout = cls(Path(one_location))
        for path in (layout.oned_conf, layout.remotes / "tm"):
            if not path.exists():
                where = one_location or "/"
                raise Refused(f"there is no OpenNebula front-end in {where}: {path} is missing (see --one-location)")
        return layout

    @property
    def environ(self) -> Dict[str, str]:
        """What calls have in their environment here."""
        return {"ONE_LOCATION": str(self.one)} if self.one else {}

    @property
    def places(self) -> Places:
        """Where the driver looks."""
        return Places.of(self.environ)

    @property
    def library(self) -> Path:
        """All of ours that is code."""
        return self.places.wheels.parent

    @property
    def releases(self) -> Path:
        """One directory for each."""
        return self.library / "releases"

    @property
    def current(self) -> Path:
        """The link to the release that is used."""
        return self.library / "current"

    @property
    def remotes(self) -> Path:
        """What OpenNebula brings to hosts."""
        return self.places.remotes

    @property
    def configuration(self) -> Path:
        """The administrator's file."""
        return self.places.etc / FILE

    @property
    def _etc(self) -> Path:
        return self.one / "etc" if self.one else Path("/etc/one")

    @property
    def oned_conf(self) -> Path:
        """oned's configuration."""
        return self._etc / "oned.conf"

    @property
    def vmm_execrc(self) -> Path:
        """The configuration of the drivers that run VMs."""
        return self._etc / "vmm_exec" / "vmm_execrc"

    @property
    def command(self) -> Path:
        """The command for administrators."""
        return (self.one / "bin" if self.one else Path("/usr/bin")) / "fastcopy"

    @property
    def system_files(self) -> Dict[str, Path]:
        """Files of `share` and where the system looks for them.  A self-contained OpenNebula keeps to itself."""
        if self.one:
            return {}
        return {
            "fastcopyd.service": Path("/etc/systemd/system/fastcopyd.service"),
            "fastcopy.logrotate": Path("/etc/logrotate.d/fastcopy"),
        }

    def render(self, text: str, user: str) -> str:
        """A file of `install/`, which is written for packages, as it must be here."""
        group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
        text = text.replace("User=oneadmin\n", f"User={user}\n").replace("Group=oneadmin\n", f"Group={group}\n")
        if self.one:
            text = text.replace("/usr/lib/one/fastcopy", str(self.library))
            text = text.replace("/var/log/one/fastcopy.log", str(self.places.log))
            text = text.replace("[Service]\n", f"[Service]\nEnvironment=ONE_LOCATION={self.one}\n")
        return text
