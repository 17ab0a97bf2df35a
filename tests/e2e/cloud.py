"""A small cloud for end-to-end tests: three hosts, images in datastore 1, and the driver's entry points.

The entry points are called as one_tm calls them, by oneadmin on the front-end; every host has a real sshd.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from bench.images.edge import MIB
from bench.testbed import Lab, processes
from bench.testbed.node import UID, Node, NodeProcess
from bench.testbed.tm import LOG_LINE

SYSTEM, DEFAULT, FILES = 0, 1, 2  # datastores of the lab
HOSTS = {"xfs": "host1", "btrfs": "host2", "ext4": "host3"}
SETTLING = 2.2  # seconds until an image is old enough for its manifest to be remembered
BOUND = 120.0  # seconds; no action may take longer, whatever happens to its link
NUMBERS = itertools.count(100)
"""Of VMs and images. A host remembers VMs that it has removed: none may get the number of an earlier one."""
_control: dict[tuple[str, str], int] = {}  # by lab and host: `Cloud.control_bytes`


@dataclasses.dataclass(frozen=True)
class Image:
    """An image in oned and in a datastore: its path there, and the same file as root reaches it."""

    id: int
    path: str
    file: Path


@dataclasses.dataclass(frozen=True)
class Vm:
    """A VM on a host; `directory` is its directory there, `path` the same as root reaches it."""

    id: int
    host: str
    directory: str
    path: Path

    def argument(self, name: str = "disk.0") -> str:
        """What oned passes to a driver for one of its files."""
        return f"{self.host}:{self.directory}/{name}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an entry point ended. `errors` are the lines that oned would make the VM's error of.

    `numbers` are those among its arguments: the VM's own may begin a log line, and no other.
    """

    code: int
    stderr: str
    stdout: str
    numbers: frozenset[str] = frozenset()

    @property
    def errors(self) -> list[str]:
        """Lines on stderr that are not log lines."""
        return [line for line in self._lines if not LOG_LINE.fullmatch(line.strip())]

    @property
    def log(self) -> list[str]:
        """The log lines."""
        return [line for line in self._lines if LOG_LINE.fullmatch(line.strip())]

    @property
    def _lines(self) -> list[str]:
        return [line for line in self.stderr.split("\n") if line]

    def succeeded(self) -> Outcome:
        """Assert success, and that nothing was said that oned would take for an error or a VM's number."""
        assert self.code == 0, self.stderr
        assert self.errors == []
        assert self.stdout == ""
        assert {vm for vm in map(number_of, self.log) if vm} <= self.numbers, self.stderr
        return self

    def failed(self, *words: str) -> Outcome:
        """Assert failure with exactly one sentence for the administrator, which has `words` in it."""
        assert self.code != 0, self.stderr
        assert len(self.errors) == 1, self.stderr
        sentence = self.errors[0]
        assert not sentence.startswith("-")
        assert 20 < len(sentence) < 2000
        assert "defect in fastcopy" not in sentence
        for word in words:
            assert word in sentence, sentence
        return self


class Running:
    """An entry point that runs."""

    def __init__(self, process: NodeProcess, numbers: frozenset[str] = frozenset()) -> None:
        self.process, self.numbers = process, numbers

    def outcome(self, timeout: float = BOUND) -> Outcome:
        """Wait for its end; it is killed after `timeout` seconds, and subprocess.TimeoutExpired raised."""
        with self.process:
            try:
                out, err = self.process.communicate(timeout=timeout)
            except BaseException:
                self.process.kill()
                raise
        return Outcome(self.process.returncode, err.decode(), out.decode(), self.numbers)

    def kill(self) -> None:
        """Kill the front-end's process without a chance to say anything."""
        self.process.kill()
        self.process.communicate(timeout=60)


class Cloud:
    """What tests do with the lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.store = f"{lab.datastores}/{DEFAULT}"
        self.system = f"{lab.datastores}/{SYSTEM}"
        self.environment = {"FASTCOPY_CACHE_SCRUB_RATE": "0"}
        """What every action is started with.  A test that needs a process of its own adds FASTCOPY_DAEMON=no."""

    # -- images and VMs --------------------------------------------------------------------------------------

    def image(
        self,
        write: Callable[[Path], object],
        name: str = "",
        mode: int = 0o640,
        store: int = DEFAULT,
        format: str = "raw",
    ) -> Image:
        """Write a new image's file with `write`, and make the image known to oned; its size is rounded up."""
        number = next(NUMBERS)
        path = f"{self.lab.datastores}/{store}/{name or f'image-{number}'}"
        file = self.lab.fe.path(path)
        write(file)
        give(file, mode)
        self.lab.oned.add_image(number, store, path, -(-file.stat().st_size // MIB), format=format)
        return Image(number, path, file)

    def known(self, name: str) -> Image:
        """An image of the gallery: settled, and the same for all tests. Whoever writes into it makes others fail."""
        number = next(NUMBERS)
        path = f"{self.store}/gallery/{name}"
        file = self.lab.fe.path(path)
        self.lab.oned.add_image(number, DEFAULT, path, -(-file.stat().st_size // MIB))
        return Image(number, path, file)

    def vm(self, image: Optional[Image], host: str = "host1", **disk: object) -> Vm:
        """A new VM in its prolog, with one disk of `image`; `disk` overrides attributes of it."""
        number = next(NUMBERS)
        disks = [{"IMAGE_ID": image.id, **disk}] if image else []
        self.lab.oned.add_vm(number, host=host, ds_id=SYSTEM, disks=disks)
        directory = f"{self.system}/{number}"
        return Vm(number, host, directory, self.lab.hosts[host].path(directory))

    def clear(self) -> None:
        """Make hosts and datastores as they were: no disks, no caches, no images."""
        for host in self.lab.hosts.values():
            empty(host.path(self.lab.datastores), keep=("0", "100", "lost+found"))
            for store in (SYSTEM, 100):
                empty(host.path(self.lab.datastores / str(store)))
        for store in (DEFAULT, FILES):
            empty(self.lab.fe.path(self.lab.datastores / str(store)), keep=("gallery",))

    # -- actions ---------------------------------------------------------------------------------------------

    def start(self, action: str, arguments: Sequence[str], **environment: str) -> Running:
        """Start an entry point as oneadmin on the front-end."""
        entry = self.lab.one_location / "var/remotes/tm/fastcopy" / action
        numbers = frozenset(word for word in arguments if word.isdigit())
        return Running(self.lab.fe.popen([entry, *arguments], env={**self.environment, **environment}), numbers)

    def run(self, action: str, *arguments: str, timeout: float = BOUND) -> Outcome:
        """Run an entry point to its end."""
        return self.start(action, arguments).outcome(timeout)

    def start_clone(self, image: Image, vm: Vm, name: str = "disk.0") -> Running:
        """Start the clone of an image for a VM."""
        return self.start("clone", clone_arguments(image, vm, name))

    def clone(self, image: Image, vm: Vm, name: str = "disk.0") -> Outcome:
        """Clone an image for a VM."""
        return self.start_clone(image, vm, name).outcome()

    def start_mvds(self, vm: Vm, image: Image) -> Running:
        """Start bringing a VM's disk back."""
        return self.start("mvds", [vm.argument(), image.path, str(vm.id), str(DEFAULT)])

    def mvds(self, vm: Vm, image: Image) -> Outcome:
        """Bring a VM's disk back as its image."""
        return self.start_mvds(vm, image).outcome()

    def ln(self, image: Image, vm: Vm) -> Outcome:
        """Bring a persistent image to the host of a VM."""
        return self.start("ln", clone_arguments(image, vm)).outcome()

    def start_cpds(self, vm: Vm, path: str, snapshot: int = -1) -> Running:
        """Start saving a VM's disk as the new image `path`."""
        return self.start("cpds", [vm.argument(), path, str(snapshot), str(vm.id), str(DEFAULT)])

    def cpds(self, vm: Vm, path: str) -> Outcome:
        """Save a VM's disk as a new image."""
        return self.start_cpds(vm, path).outcome()

    def delete(self, vm: Vm, name: str = "") -> Outcome:
        """Delete a VM's disk, or its whole directory."""
        if not name:
            return self.run("delete", f"{vm.host}:{vm.directory}", str(vm.id), str(SYSTEM))
        return self.run("delete", vm.argument(name), str(vm.id), str(DEFAULT))

    # -- looking ---------------------------------------------------------------------------------------------

    def node(self, vm: Vm) -> Node:
        """The host of a VM."""
        return self.lab.hosts[vm.host]

    def cache(self, host: str) -> Path:
        """The cache's directory on a host, as root reaches it."""
        return self.lab.hosts[host].path(self.lab.datastores / ".fastcopy/cache")

    def daemons(self) -> list[int]:
        """Daemons on the front-end."""
        found = self.lab.fe.processes()
        return [pid for pid in found if "tm_fastcopy.frontend.daemon" in processes.arguments(pid)]

    def end_daemons(self) -> None:
        """Ask the daemons to end, and wait until they have."""
        self.lab.fe.signal(self.daemons(), signal.SIGTERM)
        processes.wait_for(lambda: not self.daemons(), 60, "the daemons to end")

    def log(self) -> str:
        """The daemon's log."""
        path = self.lab.one_location / "var/fastcopy.log"
        return path.read_text() if path.exists() else ""

    def agents(self, host: str) -> list[int]:
        """Processes of agents and lanes on a host."""
        node = self.lab.hosts[host]
        return [pid for pid in node.processes() if any("base64" in word for word in processes.arguments(pid))]

    def busy(self, host: str) -> list[int]:
        """Agents and lanes on a host that hold something in a datastore; those that are kept for later do not."""
        return [pid for pid in self.agents(host) if any("/datastores" in path for path in processes.open_files(pid))]

    def control_bytes(self, host: str) -> int:
        """What a clone costs on a host's cable, both ways, when there is nothing to copy: ssh and our messages."""
        key = str(self.lab.dir), host
        if key not in _control:
            vm = self.vm(self.known("empty"), host)
            with traffic(self.lab.hosts[host]) as seen:
                self.clone(self.known("empty"), vm).succeeded()
            _control[key] = seen.rx + seen.tx
        return _control[key]

    def wait_for_quiet(self, host: str) -> None:
        """Return when no agent is at work on a host: what nobody waits for is then done as well."""
        processes.wait_for(lambda: not self.busy(host), 60, f"the agents on {host} to end")


def number_of(line: str) -> str:
    """The number that a log line begins with, which oned takes for a VM's; "" if there is none."""
    found = re.match(r"[A-Z]+:\s+(\d+)", line)
    return found[1] if found else ""


def clone_arguments(image: Image, vm: Vm, name: str = "disk.0") -> list[str]:
    """The arguments that oned gives to `clone`: the datastore is the image's."""
    return [f"fe:{image.path}", vm.argument(name), str(vm.id), str(DEFAULT)]


def give(file: Path, mode: int) -> None:
    """Make a file oneadmin's, with these permission bits."""
    shutil.chown(file, UID, UID)
    file.chmod(mode)


def empty(directory: Path, keep: Sequence[str] = ()) -> None:
    """Remove what is in a directory."""
    for path in directory.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def settle() -> None:
    """Let images become old enough to be remembered by their identity."""
    time.sleep(SETTLING)


class Traffic:
    """Bytes that a host's interface received (`rx`) and sent (`tx`), headers included, once the block has ended."""

    def __init__(self) -> None:
        self.rx = self.tx = 0


@contextmanager
def traffic(node: Node) -> Iterator[Traffic]:
    """Measure what goes over a host's cable in a block."""
    seen = Traffic()
    rx, tx = node.rx_bytes(), node.tx_bytes()
    yield seen
    seen.rx, seen.tx = node.rx_bytes() - rx, node.tx_bytes() - tx


def wait_for_bytes(node: Node, more: int, sent: bool = False) -> None:
    """Return when a host has received (or sent) so many bytes more than now."""
    count = node.tx_bytes if sent else node.rx_bytes
    goal = count() + more
    processes.wait_for(lambda: count() >= goal, 60, f"{more} bytes on the wire of {node.name}")


@contextmanager
def rate(lab: Lab, host: str, limit: str) -> Iterator[None]:
    """Limit a host's link in a block."""
    lab.rate(host, limit)
    try:
        yield
    finally:
        lab.rate(host, None)
