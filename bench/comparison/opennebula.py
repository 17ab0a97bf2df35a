"""Finds the stock scripts: a checkout that is named, or an OpenNebula that is installed; says what is missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import List, Optional

from bench.testbed import Lab, LabError

MARK = "src/tm_mad/one_tm.rb"
INSTALLED = "usr/lib/one/mads/one_tm.rb"
LIBRARIES = ("load_opennebula_paths", "opennebula", "rexml/document", "nokogiri", "CommandManager", "DriverLogger")
_HINT = "install the Debian packages ruby, ruby-nokogiri and ruby-treetop, or OpenNebula's opennebula-rubygems"


def find(named: Optional[Path], root: Path = Path("/")) -> Optional[Path]:
    """The checkout that *named* is, or lies in; without a name, the root of an installed OpenNebula, or None.

    LabError where *named* is neither, or Ruby is missing.
    """
    if named is None:
        return root if (root / INSTALLED).is_file() and shutil.which("ruby") else None
    place = named.resolve()
    found = next((one for one in (place, *place.parents) if (one / MARK).is_file()), None)
    if found is None and (root / INSTALLED).is_file() and place.is_relative_to(root / "var/lib/one"):
        found = root
    if found is None:
        raise LabError(
            f"{named} belongs to no OpenNebula: --stock-remotes names a source checkout (or a directory in it), or "
            "/var/lib/one/remotes of an installed one."
        )
    if shutil.which("ruby") is None:
        raise LabError(f"The stock drivers need Ruby: {_HINT}.")
    return found


def missing_libraries(lab: Lab) -> List[str]:
    """What Ruby cannot load on the lab's front-end of what the stock drivers need: the file that it did not find."""
    found: List[str] = []
    for name in LIBRARIES:
        done = lab.fe.run(["ruby", "-e", "require ARGV[0]", name])
        if done.returncode:
            found.append(file_not_found(done.stderr.decode("utf-8", "replace")) or name)
    return list(dict.fromkeys(found))


def file_not_found(text: str) -> Optional[str]:
    """The file that Ruby says it cannot load."""
    match = re.search(r"cannot load such file -- (\S+)|(\S+) gem not installed", text)
    return (match[1] or match[2]) if match else None


def check(lab: Lab) -> None:
    """LabError that names what the stock drivers miss."""
    missing = missing_libraries(lab)
    if missing:
        raise LabError(f"Ruby cannot load {', '.join(missing)}, which the stock drivers need: {_HINT}.")
