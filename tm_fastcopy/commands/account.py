"""Account: the commands work as the user that oned runs as, whose keys hosts know and whose daemon answers."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from typing import Dict

from ..core.errors import FastcopyError
from ..frontend.places import Places

_AGENT = Path("/var/run/one/ssh-agent.env")  # written by opennebula-ssh-agent.service
_MAX_AGENT = 4096


def assume(places: Places) -> Dict[str, str]:
    """Become that user, if we are root, and return the environment to work with; `FastcopyError` for anybody else."""
    top = places.state.parent
    try:
        owner = pwd.getpwuid(os.stat(top).st_uid)
    except (OSError, KeyError) as error:
        raise FastcopyError(
            f"there is no OpenNebula front-end here: {top} is missing, or its owner has no name (a self-contained "
            "OpenNebula is named by ONE_LOCATION)"
        ) from error
    if os.geteuid() not in (0, owner.pw_uid):
        raise FastcopyError(f"this is for {owner.pw_name} and root: sudo -u {owner.pw_name} fastcopy ...")
    if os.geteuid() == 0 and owner.pw_uid != 0:
        os.initgroups(owner.pw_name, owner.pw_gid)
        os.setgid(owner.pw_gid)
        os.setuid(owner.pw_uid)
        os.environ.update(HOME=owner.pw_dir, USER=owner.pw_name, LOGNAME=owner.pw_name)
        for name in ("SSH_AUTH_SOCK", "XDG_RUNTIME_DIR"):  # root's
            os.environ.pop(name, None)
    return environment()


def environment() -> Dict[str, str]:
    """What actions would have: with the ssh agent that OpenNebula runs, where nobody has said otherwise."""
    found = dict(os.environ)
    if not found.get("SSH_AUTH_SOCK"):
        try:
            with _AGENT.open(encoding="utf-8", errors="replace") as file:
                named = re.search(r"(?m)^(?:export )?SSH_AUTH_SOCK=\"?([^\s;\"]+)", file.read(_MAX_AGENT))
        except OSError:
            named = None
        if named:
            found["SSH_AUTH_SOCK"] = named[1]
    return found
