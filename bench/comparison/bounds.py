"""What the machine itself can do, measured on the spot: the yardstick beside every figure.

    line      one TCP stream from the front-end to a host, into nothing
    ssh       one ssh stream from the front-end to a host, into nothing, for each cipher
    disk      writing to a host's datastores, until it is durable
    copy      a copy of the image on a host, as cp makes it (a reflink where the file system can): the median of some
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Callable, Dict, List

from bench.comparison.scenarios import OLD, WARM, Case
from bench.comparison.site import Site, copy
from bench.comparison.values import Bound
from bench.images.edge import MIB
from bench.testbed import Lab, LabError

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "chacha20-poly1305@openssh.com")
_WAIT = 120.0  # seconds for one measure
_STREAM = 128  # MiB through ssh
_WRITE = 512  # MiB on a disk
_SECONDS = 1.5  # of one TCP stream
_COPIES = 3  # of which the median counts: one alone is often slowed by something else
_PORT = 5001

_SINK = f"""
import socket
server = socket.create_server(("", {_PORT}))
print("ready", flush=True)
connection = server.accept()[0]
while connection.recv(1 << 20):
    pass
connection.sendall(b"x")
"""
_SOURCE = f"""
import socket, sys, time
connection = socket.create_connection((sys.argv[1], {_PORT}))
block, sent, began = bytes(1 << 20), 0, time.monotonic()
while time.monotonic() - began < {_SECONDS}:
    connection.sendall(block)
    sent += len(block)
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
print(sent / (time.monotonic() - began))
"""


def line_rate(lab: Lab, host: str) -> float:
    """Bytes per second of one TCP stream from the front-end to a host."""
    node = lab.hosts[host]
    with node.popen(["python3", "-I", "-S", "-c", _SINK]) as sink:
        assert sink.stdout is not None
        try:
            if sink.stdout.readline() != b"ready\n":
                raise LabError(f"nothing could listen on {host}")
            done = lab.fe.run(["python3", "-I", "-S", "-c", _SOURCE, node.address], timeout=_WAIT, check=True)
        finally:
            sink.kill()
    return float(done.stdout)


def ssh_rates(lab: Lab, host: str) -> Dict[str, float]:
    """Bytes per second of one ssh stream, by cipher; a cipher that sshd or ssh does not have is left out."""
    found: Dict[str, float] = {}
    login = ["ssh", "-o", "ControlPath=none", host, "true"]
    for cipher in CIPHERS:
        began = time.monotonic()
        if lab.fe.run([*login[:3], "-c", cipher, *login[3:]]).returncode:
            continue
        alone = time.monotonic() - began
        stream = f'head -c {_STREAM}M /dev/zero | ssh -o ControlPath=none -c "$0" "$1" "cat >/dev/null"'
        began = time.monotonic()
        lab.fe.run(["bash", "-c", f"set -o pipefail; {stream}", cipher, host], timeout=_WAIT, check=True)
        found[cipher] = _STREAM * MIB / max(time.monotonic() - began - alone, 1e-3)
    return found


def disk_rate(lab: Lab, host: str) -> float:
    """Bytes per second of one stream into a file on a host's datastores, durable."""
    node = lab.hosts[host]
    path = f"{lab.datastores}/bench-write"
    began = time.monotonic()
    node.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={_WRITE}", "conv=fsync"],
        user="root", timeout=_WAIT, check=True,
    )  # fmt: skip
    rate = _WRITE * MIB / (time.monotonic() - began)
    node.path(path).unlink()
    return rate


def copy_bound(site: Site, host: str, picture: str, clock: Callable[[], float] = time.monotonic) -> Bound:
    """The median of some copies of an image on a host, read from the page cache; reflinks where it can make them.

    The source is durable before: to write out its pages would otherwise be a part of the first copy.
    """
    node, path = site.lab.hosts[host], f"{site.lab.datastores}/bench-copy"
    copied = f"{path}-2"
    seconds: List[float] = []
    try:
        copy(site.original(picture), node.path(path))
        fd = os.open(node.path(path), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        reflink = ["cp", "--reflink=always", "--sparse=auto", path, copied]
        whole = ["cp", "--reflink=never", "--sparse=auto", path, copied]
        argv, what = (whole, "copy") if node.run(reflink, user="root").returncode else (reflink, "reflink")
        for _ in range(_COPIES):
            node.path(copied).unlink(missing_ok=True)
            began = clock()
            node.run(argv, user="root", timeout=_WAIT, check=True)
            seconds.append(clock() - began)
    finally:
        for name in (path, copied):
            node.path(name).unlink(missing_ok=True)
    return Bound(statistics.median(seconds), f"{what} on the host")


class Bounds:
    """Measures each thing once, and says what is the bound of a case."""

    def __init__(self, site: Site, rates: Dict[str, float]) -> None:
        self._site, self._rates = site, rates
        self._copies: Dict[tuple[str, str], Bound] = {}

    def line(self, link: str, host: str) -> float:
        """The rate of a link, which is set on *host* now."""
        return self._once(f"line {link}", lambda: line_rate(self._site.lab, host))

    def disk(self, fs: str, host: str) -> float:
        """The rate of a host's disk."""
        return self._once(f"disk {fs}", lambda: disk_rate(self._site.lab, host))

    def ssh(self, link: str, host: str) -> None:
        """Measure ssh on a link, for the report."""
        if not any(name.startswith(f"ssh {link} ") for name in self._rates):
            for cipher, rate in ssh_rates(self._site.lab, host).items():
                self._rates[f"ssh {link} {cipher}"] = rate

    def _once(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self._rates:
            self._rates[name] = measure()
        return self._rates[name]

    def of(self, case: Case, fs: str, link: str, hosts: List[str]) -> Bound:
        """What limits a case: the line, the disk, or (where the host has the image) a copy on the host."""
        site, first = self._site, hosts[0]
        if case.state == WARM:
            key = fs, case.image
            if key not in self._copies:
                self._copies[key] = copy_bound(site, first, case.image)
            return self._copies[key]
        moved = travels(site, case)
        line = self.line(case.uplink or link, first)
        line_seconds = moved * (len(hosts) if case.uplink else 1) / line
        if case.change:
            return Bound(line_seconds, "line")
        copies = 1 if fs in ("xfs", "btrfs") else case.vms
        disk_seconds = moved * copies / self.disk(fs, first)
        return Bound(line_seconds, "line") if line_seconds > disk_seconds else Bound(disk_seconds, "disk")


def travels(site: Site, case: Case) -> int:
    """Bytes that a host does not have before: what must come to it, before any compression."""
    if case.change:
        return site.changed("system", f"system-{case.change}")
    if case.state == OLD:
        return site.changed("system", case.image)
    return sum(site.data(image) for image in case.images)
