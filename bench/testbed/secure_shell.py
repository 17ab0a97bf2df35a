"""Accounts and sshd of a node: everybody may log in to everybody as oneadmin, with a key and no password."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.testbed import processes
from bench.testbed.errors import LabError, program

if TYPE_CHECKING:
    from bench.testbed.node import Node

START_WAIT = 60.0  # seconds; a loaded machine takes one or two

SSHD_CONFIG = """\
ListenAddress {address}
Port 22
HostKey {files}/host_key
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowUsers oneadmin
LogLevel ERROR
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""

CLIENT_CONFIG = """\
Host *
    StrictHostKeyChecking accept-new
"""


def keygen(path: Path, comment: str) -> str:
    """Make an ed25519 key pair at `path`; the public line."""
    vector = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    done = subprocess.run(vector, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"ssh-keygen failed: {done.stderr.strip()}")
    return path.with_suffix(".pub").read_text()


def account_files(target: Path, hosts: Mapping[str, str], uid: int, home: str) -> None:
    """Write passwd, group, shadow and hosts of a node: the machine's own, and oneadmin.

    `hosts` is name -> address.
    """
    lines = {
        "passwd": f"oneadmin:x:{uid}:{uid}:OpenNebula:{home}:/bin/bash",
        "group": f"oneadmin:x:{uid}:",
        "shadow": "oneadmin:*:19000:0:99999:7:::",  # `*`, not `!`: sshd refuses locked accounts
    }
    for name, line in lines.items():
        own = Path("/etc", name).read_text().splitlines()
        kept = [old for old in own if not old.startswith("oneadmin:")]
        (target / name).write_text("\n".join([*kept, line, ""]))
    (target / "shadow").chmod(0o640)
    named = [f"{address} {name}" for name, address in hosts.items()]
    (target / "hosts").write_text("\n".join(["127.0.0.1 localhost", "::1 localhost", *named, ""]))


def home_directory(home: Path, key: Path, host_keys: Mapping[str, str], uid: int) -> None:
    """Fill a node's /var/lib/one with key pair, authorized_keys, known_hosts, config and one_auth.

    `host_keys` is name,address -> public line.
    """
    ssh = home / ".ssh"
    ssh.mkdir(parents=True)
    for source, name in ((key, "id_ed25519"), (key.with_suffix(".pub"), "id_ed25519.pub")):
        shutil.copyfile(source, ssh / name)
    shutil.copyfile(key.with_suffix(".pub"), ssh / "authorized_keys")
    (ssh / "known_hosts").write_text("".join(f"{names} {line}" for names, line in host_keys.items()))
    (ssh / "config").write_text(CLIENT_CONFIG)
    one = home / ".one"
    one.mkdir()
    (one / "one_auth").write_text("oneadmin:oneadmin\n")
    for path in (home, *home.rglob("*")):
        os.chown(path, uid, uid)
        path.chmod(0o700 if path.is_dir() else 0o600)


def sshd_config(files: Path, address: str) -> None:
    """Write the configuration that `Node.start_sshd` uses."""
    (files / "sshd_config").write_text(SSHD_CONFIG.format(files=files, address=address))


def wait_for_sshd(node: Node, log: Path) -> None:
    """Return when the node's sshd listens; LabError with the end of its log when it does not."""
    try:
        processes.wait_for(lambda: listens(node.holder), START_WAIT, f"sshd on {node.name}")
    except LabError as error:
        said = log.read_text(errors="replace")[-500:] if log.exists() else ""
        raise LabError(f"{error} Its log ends: {said.strip()}") from None


def listens(holder: int) -> bool:
    """Whether something on the node listens on TCP port 22."""
    try:
        table = Path(f"/proc/{holder}/net/tcp").read_text()
    except OSError:
        return False
    rows = [line.split() for line in table.splitlines()[1:]]
    # The kernel's notation: port 22 is 0016, state LISTEN is 0A.
    return any(row[1].endswith(":0016") and row[3] == "0A" for row in rows)
