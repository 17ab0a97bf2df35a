"""The lab: a front-end and hosts on one machine, made of namespaces, and taken away without a trace.

Everything lies in one directory (`state.json`, `one/`, `nodes/<name>/`, `oned/`). What a crash leaves is
found by the holders' arguments and by the loop devices' backing files, so `up` can always clean up first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

from bench.testbed import disks, install, links, processes, secure_shell, tm, tree
from bench.testbed.errors import SEARCH, LabError, need_root, program
from bench.testbed.node import HOME, UID, Node
from bench.testbed.oned.control import Oned

DEFAULT_DIRECTORY = Path("/var/lib/fastcopy-lab")
CONTENTS = ("one", "nodes", "oned", "state.json", ".fastcopy-lab")
STAMP = ".fastcopy-lab"  # says that a directory is ours to empty
MADE_HOME = Path(HOME) / ".made-by-fastcopy-lab"
MOST_HOSTS = 60
RELEASE_WAIT = 60.0  # seconds; the kernel writes out what a file system still holds
FRONT_END = "fe"
XMLRPC = "http://127.0.0.1:2633/RPC2"


@dataclasses.dataclass(frozen=True)
class LabConfig:
    """`fs` is one file system per host, the last for the rest; `rate` like `1gbit`; `disk_size` like `20G`."""

    hosts: int = 2
    fs: tuple[str, ...] = ("xfs",)
    fe_fs: str = "xfs"
    rate: Optional[str] = None
    dir: Path = DEFAULT_DIRECTORY
    disk_size: str = "20G"
    opennebula: Optional[Path] = None

    def fs_of(self, index: int) -> str:
        """File system of node `index` (0 is the front-end)."""
        return self.fe_fs if index == 0 else self.fs[min(index, len(self.fs)) - 1]

    def names(self) -> list[str]:
        """The nodes' names, front-end first."""
        return [FRONT_END, *(f"host{index}" for index in range(1, self.hosts + 1))]

    def check(self) -> None:
        """LabError when something in it cannot be."""
        if not 1 <= self.hosts <= MOST_HOSTS:
            raise LabError(f"The lab has 1 to {MOST_HOSTS} hosts, not {self.hosts}.")
        for fs in (*self.fs, self.fe_fs):
            if fs not in disks.MAKE:
                raise LabError(f"The lab knows the file systems {', '.join(disks.MAKE)}, not {fs}.")
        disks.size_in_bytes(self.disk_size)
        if self.rate is not None:
            links.bits(self.rate)


class Lab:
    """A running lab. `Lab.up` is a context manager; `Lab.attach` finds what another process started."""

    def __init__(self, config: LabConfig, holders: dict[str, int]) -> None:
        self.config = config
        self.dir = config.dir
        self.one_location = config.dir / "one"
        self.datastores = self.one_location / "var/datastores"
        nodes = {name: self._node(index, name, holders) for index, name in enumerate(config.names())}
        self.fe = nodes.pop(FRONT_END)
        self.hosts = nodes
        self.oned = Oned(config.dir / "oned", self.fe, self.datastores, self.hosts)

    def _node(self, index: int, name: str, holders: dict[str, int]) -> Node:
        environment = {"LANG": "C.UTF-8", "PATH": SEARCH}
        if index == 0:
            environment.update(
                PATH=f"{self.one_location}/bin:{environment['PATH']}",
                ONE_LOCATION=str(self.one_location),
                ONE_XMLRPC=XMLRPC,
                ONE_AUTH=f"{HOME}/.one/one_auth",
                RUBYLIB=f"{self.one_location}/lib/ruby:{self.one_location}/lib/ruby/lab",
            )
        return Node(
            name=name,
            address=links.address(index),
            holder=holders[name],
            files=self.dir / "nodes" / name,
            datastores=self.datastores,
            fs=self.config.fs_of(index),
            environment=environment,
            frontend=holders[FRONT_END],
        )

    def node(self, name: str) -> Node:
        """The node of that name, `fe` included. LabError if there is none."""
        nodes = {FRONT_END: self.fe, **self.hosts}
        if name not in nodes:
            raise LabError(f"The lab has no node {name}; it has {', '.join(nodes)}.")
        return nodes[name]

    # -- life ------------------------------------------------------------------------------------------------

    @classmethod
    def up(cls, config: LabConfig) -> Lab:
        """Start a lab, after removing what an earlier one left there. LabError says what is missing."""
        need_root()
        config = dataclasses.replace(config, dir=config.dir.resolve())
        config.check()
        check_directory(config.dir)
        take_down(config.dir)
        try:
            return cls._build(config)
        except BaseException:
            take_down(config.dir)
            raise

    @classmethod
    def _build(cls, config: LabConfig) -> Lab:
        prepare_directory(config)
        names = config.names()
        keys = make_keys(config)
        holders = {name: start_holder(config.dir, name) for name in names}
        make_home_mount_point()  # after the holders: while one lives, no other lab's `down` takes it away
        lab = cls(config, holders)
        links.front(lab.fe.holder, config.hosts)
        for index, node in enumerate([lab.fe, *lab.hosts.values()]):
            if index > 0:
                links.attach(lab.fe.holder, node.holder, node.name, index, config.hosts)
                links.shape(lab.fe.holder, node.holder, node.name, config.rate)
            lab._furnish(index, node, keys)
        lab.oned.create(lab.one_location, list(lab.hosts))
        lab.install_driver()
        lab.oned.start()
        for node in [lab.fe, *lab.hosts.values()]:
            node.start_sshd()
        (config.dir / "state.json").write_text(json.dumps(state(config), indent=1) + "\n")
        return lab

    def _furnish(self, index: int, node: Node, host_keys: dict[str, str]) -> None:
        """Give a node its private files and its file system."""
        addresses = {name: links.address(i) for i, name in enumerate(self.config.names())}
        etc, home, tmp = node.files / "etc", node.files / "home", node.files / "tmp"
        etc.mkdir()
        secure_shell.account_files(etc, addresses, UID, HOME)
        (etc / "hostname").write_text(f"{node.name}\n")
        secure_shell.home_directory(home, self.dir / "nodes/key", host_keys, UID)
        secure_shell.sshd_config(node.files, node.address)
        tmp.mkdir()
        tmp.chmod(0o1777)
        mount = program("mount")
        private = [(file, Path("/etc") / file.name) for file in sorted(etc.iterdir())]
        private += [(home, Path(HOME)), (tmp, Path("/var/tmp"))]
        if index > 0:  # a real host has nothing of the front-end's tree
            one = node.files / "one"
            (one / "var/datastores").mkdir(parents=True)
            private.append((one, self.one_location))
        for source, target in private:
            if target.exists():
                node.run([mount, "--bind", source, target], user="root", check=True)
        node.run([mount, "-t", "tmpfs", "-o", "mode=755", "run", "/run"], user="root", check=True)
        for name, owner in (("sshd", 0), ("lock", 0), ("lock/one", UID), ("one", UID)):
            path = node.path(f"/run/{name}")
            path.mkdir()
            os.chown(path, owner, owner)
        image = node.files / disks.IMAGE
        disks.create(image, node.fs, disks.size_in_bytes(self.config.disk_size))
        disks.mount(node, image, self.datastores)
        os.chown(node.path(self.datastores), UID, UID)

    @classmethod
    def attach(cls, directory: Path = DEFAULT_DIRECTORY) -> Lab:
        """The lab that `bench/lab up` or another process started there. LabError if none runs."""
        need_root()
        directory = directory.resolve()
        try:
            saved = json.loads((directory / "state.json").read_text())
        except FileNotFoundError:
            raise LabError(f"No lab runs in {directory}: start one with `bench/lab up`.") from None
        config = LabConfig(**{**saved, "fs": tuple(saved["fs"]), "dir": directory,
                              "opennebula": saved["opennebula"] and Path(saved["opennebula"])})  # fmt: skip
        found = {name: pid for pid, _, name in processes.holders(directory) if processes.is_first(pid)}
        dead = set(config.names()) - set(found)
        if dead:
            raise LabError(f"The lab in {directory} has lost {', '.join(sorted(dead))}: start it again.")
        return cls(config, found)

    def down(self) -> None:
        """Remove every process, namespace, mount, loop device and file of the lab. May be repeated."""
        for node in [self.fe, *self.hosts.values()]:
            disks.abandon(node.path(self.datastores), node.fs)
        take_down(self.dir)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.down()

    # -- use -------------------------------------------------------------------------------------------------

    def install_driver(self) -> None:
        """Install the checkout's driver, new or again, and bring the remotes to the hosts."""
        install.driver(self.one_location)
        tree.give(self.one_location / "var/remotes", UID)
        for host in self.hosts.values():
            install.synchronize(self.one_location, host.files / "tmp", UID)

    def rate(self, host: str, rate: Optional[str]) -> None:
        """Limit a host's link both ways to `rate` (`1gbit`, `200mbit`); None lifts the limit."""
        node = self.node(host)
        if node is self.fe:
            raise LabError("The front-end has no link of its own: set the hosts' rates.")
        links.shape(self.fe.holder, node.holder, node.name, rate)

    def uplink(self, rate: Optional[str]) -> None:
        """Limit all that the front-end itself sends, to all hosts together; None lifts the limit.

        What hosts send, to it or to each other, is not limited.
        """
        links.limit(self.fe.holder, links.BRIDGE, rate)

    def transfers(self) -> tm.Transfers:
        """A one_tm that takes many scripts, also at once; a context manager. See `tm`."""
        return tm.open_transfers(self.fe, self.one_location, real=self.config.opennebula is not None)

    def tm(self, script_lines: list[str], vm_id: int, timeout: float = 120.0) -> tm.TmResult:
        """Run a transfer script through one_tm, or our equivalent when the lab has no OpenNebula checkout."""
        with self.transfers() as transfers:
            return transfers.run(script_lines, vm_id, timeout)


def state(config: LabConfig) -> dict[str, Any]:
    """The configuration as JSON can hold it."""
    return {
        **dataclasses.asdict(config),
        "dir": str(config.dir),
        "opennebula": config.opennebula and str(config.opennebula.resolve()),
    }


def check_directory(directory: Path) -> None:
    """LabError unless a lab can live there: ours or new, and on a path that oneadmin may walk."""
    for banned in ("/run", "/var/tmp", "/etc", HOME):
        if directory.is_relative_to(banned):
            raise LabError(f"The lab cannot lie below {banned}: every node has its own.")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / STAMP).exists():
        raise LabError(f"{directory} is not empty and no lab made it: choose another directory.")
    for parent in directory.parents:
        if parent.exists() and not parent.stat().st_mode & 0o001:
            raise LabError(f"oneadmin may not enter {parent}: choose another directory for the lab.")


def prepare_directory(config: LabConfig) -> None:
    """Make the lab's directory and the OpenNebula tree in it."""
    config.dir.mkdir(parents=True, exist_ok=True)
    config.dir.chmod(0o755)
    (config.dir / STAMP).write_text("bench/lab made this directory and deletes what is in it.\n")
    tree.create(config.dir / "one")
    if config.opennebula is not None:
        tree.add_stock(config.dir / "one", config.opennebula)
    tree.give(config.dir / "one", UID)
    (config.dir / "nodes").mkdir(mode=0o700)  # keys and homes: nodes see theirs through mounts only


def make_keys(config: LabConfig) -> dict[str, str]:
    """Make oneadmin's key and every sshd's; `name,address` -> public line, as known_hosts wants it."""
    secure_shell.keygen(config.dir / "nodes/key", "oneadmin@lab")
    keys = {}
    for index, name in enumerate(config.names()):
        files = config.dir / "nodes" / name
        files.mkdir()
        keys[f"{name},{links.address(index)}"] = secure_shell.keygen(files / "host_key", name)
    return keys


def start_holder(directory: Path, name: str) -> int:
    """Start the process that holds a node's namespaces; its id. It is nobody's child and outlives us."""
    script = Path(__file__).with_name("holder.py")
    vector = [
        *(program("setsid"), "--fork"),
        *(program("unshare"), "--ipc", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"),
        *(sys.executable, "-I", "-S", str(script), processes.MARKER, str(directory), name),
    ]
    with subprocess.Popen(vector, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/") as process:
        assert process.stdout is not None
        word = process.stdout.readline()
    pid = processes.holder_of(directory, name)
    if word != b"ready\n" or pid is None:
        raise LabError(f"The namespaces of {name} could not be made; the kernel may forbid them here.")
    return pid


def make_home_mount_point() -> None:
    """Make /var/lib/one on the machine if it is missing; the nodes' homes are mounted there."""
    with contextlib.suppress(FileExistsError):
        Path(HOME).mkdir()
        MADE_HOME.touch()


def remove_home_mount_point() -> None:
    """Remove /var/lib/one if a lab made it and no lab is left (labs may run side by side)."""
    if MADE_HOME.exists() and not processes.holders():
        MADE_HOME.unlink()
        with contextlib.suppress(OSError):  # somebody put something there: leave it
            Path(HOME).rmdir()


def take_down(directory: Path) -> None:
    """Remove a lab by what can be seen of it, whatever state it is in."""
    processes.kill((pid for pid, _, _ in processes.holders(directory)), RELEASE_WAIT)
    processes.wait_for(lambda: not disks.loops(directory), RELEASE_WAIT, f"the loop devices of {directory}")
    remove_home_mount_point()
    if not (directory / STAMP).exists():
        return
    for name in CONTENTS:  # the stamp goes last
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the user's own files keep it
        directory.rmdir()
