"""A node of the lab, front-end or host: its namespaces and what a test does to it.

A node has its own mount, network, process, IPC and host name namespaces, held open by one process. Commands
enter all of them. The process namespace makes `kill` honest: what runs on a node is what dies with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Optional, Union

from bench.testbed import disks, links, processes, secure_shell
from bench.testbed.errors import LabError, program

Argv = Sequence[Union[str, "os.PathLike[str]"]]
Stream = Union[None, int, IO[Any]]

UID = 9869  # OpenNebula's packages give oneadmin this uid and gid
HOME = "/var/lib/one"


class NodeProcess(subprocess.Popen[bytes]):
    """A process in a node. Signals go to its process group: `nsenter` stands between us and the command."""

    def send_signal(self, sig: int) -> None:
        """Send `sig` to the command and its wrapper, unless they have ended."""
        if self.poll() is None:
            os.killpg(self.pid, sig)


@dataclasses.dataclass(frozen=True)
class Node:
    """`name` is the host name; `files` holds its private files; `environment` is what its commands see."""

    name: str
    address: str
    holder: int
    files: Path
    datastores: Path
    fs: str
    environment: Mapping[str, str]
    frontend: int  # holder of the front-end, where the bridge is

    # -- commands --------------------------------------------------------------------------------------------

    def command(self, argv: Argv, user: str = "oneadmin", cwd: str = "/") -> list[str]:
        """The vector that runs `argv` in this node's namespaces as `user` (oneadmin or root), in `cwd`."""
        if user not in ("oneadmin", "root"):
            raise LabError(f"The lab knows the users oneadmin and root, not {user}.")
        number = str(UID if user == "oneadmin" else 0)
        return [
            program("nsenter"),
            *(f"--{kind}=/proc/{self.holder}/ns/{kind}" for kind in ("ipc", "net", "pid", "uts")),
            f"--mount=/proc/{self.holder}/ns/mnt",
            f"--wdns={cwd}",
            f"--setuid={number}",
            f"--setgid={number}",
            "--",
            *(os.fspath(word) for word in argv),
        ]

    def _environment(self, user: str, env: Optional[Mapping[str, str]]) -> dict[str, str]:
        home = HOME if user == "oneadmin" else "/root"
        return {**self.environment, "HOME": home, "USER": user, "LOGNAME": user, **(env or {})}

    def popen(
        self,
        argv: Argv,
        *,
        user: str = "oneadmin",
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "/",
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.PIPE,
        stderr: Stream = subprocess.PIPE,
    ) -> NodeProcess:
        """Start `argv` in the node. `env` adds to the node's own small environment; ours is not inherited."""
        return NodeProcess(
            self.command(argv, user, cwd),
            env=self._environment(user, env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def run(
        self,
        argv: Argv,
        *,
        user: str = "oneadmin",
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "/",
        input: Optional[bytes] = None,
        timeout: float = 60.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `argv` to its end. After `timeout` seconds it is killed and subprocess.TimeoutExpired raised.

        With `check`, an exit code other than 0 is a LabError that carries stderr.
        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(argv, user=user, env=env, cwd=cwd, stdin=stdin) as process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess([os.fspath(word) for word in argv], process.returncode, out, err)
        if check and done.returncode != 0:
            text = err.decode("utf-8", "replace").strip()
            raise LabError(f"{self.name}: {' '.join(done.args)} ended with {done.returncode}: {text}")
        return done

    def path(self, inside: Union[str, os.PathLike[str]]) -> Path:
        """An absolute path of this node, as root reaches it from outside.

        Absolute symbolic links inside are followed in the caller's own tree: resolve those with `run`.
        """
        return Path(f"/proc/{self.holder}/root") / os.fspath(inside).lstrip("/")

    # -- the link --------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Pull the cable: the port is down and the host sees no carrier."""
        links.cable(self.frontend, self.name, up=False)

    def restore(self) -> None:
        """Put the cable back."""
        links.cable(self.frontend, self.name, up=True)

    def freeze(self) -> None:
        """Make the host silent: every packet is dropped both ways, without a carrier or ARP error."""
        links.silence(self.frontend, self.name, silent=True)

    def thaw(self) -> None:
        """Let packets pass again."""
        links.silence(self.frontend, self.name, silent=False)

    def rx_bytes(self) -> int:
        """Bytes that this host's interface has received since `up`."""
        return links.counters(self.holder)[0]

    def tx_bytes(self) -> int:
        """Bytes that this host's interface has sent since `up`."""
        return links.counters(self.holder)[1]

    # -- services and disk -----------------------------------------------------------------------------------

    def processes(self, name: Optional[str] = None) -> list[int]:
        """Ids, as the machine counts, of this node's processes; only those whose program file is `name`."""
        return [p for p in processes.members(self.holder) if name is None or processes.executable(p) == name]

    def stop_sshd(self) -> None:
        """Kill the sshd and every session of it; what the sessions started may live on."""
        found = self.processes("sshd") + self.processes("sshd-session")
        processes.kill(found)

    def start_sshd(self) -> None:
        """Start sshd and return when it answers."""
        config = self.files / "sshd_config"
        log = self.files / "sshd.log"
        self.run([program("sshd"), "-f", config, "-E", log], user="root", env={"LANG": "C.UTF-8"}, check=True)
        secure_shell.wait_for_sshd(self, log)

    def remount_datastores(self, options: str) -> None:
        """Mount the datastores file system again with `options`, for example `ro`."""
        self.run([program("mount"), "-o", f"remount,{options}", self.datastores], user="root", check=True)

    def power_cut(self) -> None:
        """Lose power and come back: what was not made durable in the datastores is gone.

        The link goes silent first, so that peers hear nothing of the end; then the file system is shut down
        without flushing its log, every process is killed, and the node starts again: mount, sshd, link.
        `/tmp`, `/var/tmp` and the home lie on the machine's own file system and stay. Raises LabError on
        btrfs.
        """
        disks.can_lose_power(self.fs)
        if self.holder != self.frontend:
            self.freeze()
        disks.lose_power(self.path(self.datastores))
        processes.kill(self.processes())
        links.forget_connections(self.holder)
        self.run([program("umount"), self.datastores], user="root", check=True)
        disks.mount(self, self.files / disks.IMAGE, self.datastores)
        self.start_sshd()
        if self.holder != self.frontend:
            self.thaw()

    def signal(self, pids: Sequence[int], sig: signal.Signals) -> None:
        """Send `sig` to processes of this node; LabError if one of them is not."""
        strangers = {pid for pid in set(pids) - set(self.processes()) if processes.alive(pid)}
        if strangers:
            raise LabError(f"{self.name}: processes {sorted(strangers)} do not run on this node.")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
