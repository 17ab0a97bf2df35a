"""A real sshd on loopback, run by the current user, with keys and configuration of its own.

For measures and tests that need ssh and nothing else of a lab.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Optional

HOST = "host1"  # what callers name it; the client's configuration says where that is

_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
AuthorizedKeysFile {home}/key.pub
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
LogLevel ERROR
"""

_CLIENT = """\
Host {host} refused
    HostName 127.0.0.1
    User {user}
    IdentityFile {home}/key
    IdentitiesOnly yes
    UserKnownHostsFile {home}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking accept-new
Host {host}
    Port {port}
Host refused
    Port {closed}
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Sshd:
    """The server, with its files in *home*; `config` is what `ssh -F` takes to reach it as `HOST`.

    If *command* is given, every command runs through that program, which finds it in SSH_ORIGINAL_COMMAND.
    """

    def __init__(self, home: Path, command: Optional[Path] = None) -> None:
        program = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin")
        if program is None:
            raise RuntimeError("there is no sshd on this machine: install openssh-server")
        self.home, self.port = home, free_port()
        for name in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
        (home / "sshd_config").write_text(
            _SERVER.format(port=self.port, home=home) + (f"ForceCommand {command}\n" if command else "")
        )
        self.config = home / "ssh_config"
        self.config.write_text(
            _CLIENT.format(host=HOST, user=getpass.getuser(), home=home, port=self.port, closed=free_port())
        )
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", 0o755, exist_ok=True)  # sshd as root will not start without it
        self._log = open(home / "log", "wb")
        self._process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(home / "sshd_config")], stdin=subprocess.DEVNULL, stderr=self._log
        )
        self._await()

    def _await(self) -> None:
        for _ in range(600):
            if self._process.poll() is not None:
                raise RuntimeError(f"sshd did not start: {(self.home / 'log').read_text()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("sshd does not listen")

    def forget_host_key(self) -> None:
        """Make the host one that nobody has seen yet."""
        (self.home / "known_hosts").unlink(missing_ok=True)

    def close(self) -> None:
        """Stop the server; connections that are open stay."""
        self._process.terminate()
        self._process.wait()
        self._log.close()
