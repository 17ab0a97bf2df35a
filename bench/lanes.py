"""Which lane is faster: the ssh program or asyncssh, with one stream and with two, cipher by cipher.

    python -m bench.lanes [HOST] [--mib 512] [--rounds 3]

Two paths are measured.  "put" is the real one: an agent on the host takes chunks on lanes, verifies and writes them to
a file in memory (/dev/shm); only reading and compressing the image is left out.  "sink" is `head -c N >/dev/null` on
the host: the stream alone.  Data does not compress.  Rounds are interleaved, so that whatever else the machine does
falls on all alike, and medians are shown.  Logins are not part of the time.  CPU seconds are this process's and its ssh
children's, logins included.  Without HOST a temporary sshd on loopback is used, and then host and front-end share one
machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Protocol, Sequence

from bench.loopback import HOST, Sshd
from bench.measure import Table
from tm_fastcopy.core.codec import PLAIN
from tm_fastcopy.core.hashing import digest
from tm_fastcopy.core.manifest import DEFAULT_CHUNK, MIB
from tm_fastcopy.core.messages import PAGE_CHUNKS, Begin, Begun, Offer, Put, Stored, Wants
from tm_fastcopy.core.paths import DiskPath
from tm_fastcopy.frontend.asyncssh_link import AsyncsshDialer
from tm_fastcopy.frontend.bundle import Bundles, HostPython
from tm_fastcopy.frontend.channel import Channel
from tm_fastcopy.frontend.connections import Connections
from tm_fastcopy.frontend.host import Host
from tm_fastcopy.frontend.lanes import WINDOW
from tm_fastcopy.frontend.link import Link
from tm_fastcopy.frontend.process_link import SshDialer

GCM = "aes128-gcm@openssh.com"
CHACHA = "chacha20-poly1305@openssh.com"
_PIECE = 64 * 1024  # bytes of one write to a sink


class Starter(Protocol):
    """A dialer that can start any command."""

    async def start(self, host: str, bulk: bool, command: str) -> Link:
        """Start *command* on *host*."""

    async def dial(self, host: str, bulk: bool) -> Link:
        """Start our bootstrap on *host*."""

    async def close(self) -> None:
        """End what is kept."""


class _OneCipher(SshDialer):
    """The ssh program with one cipher and no other."""

    def __init__(self, options: Sequence[str], cipher: str) -> None:
        super().__init__([*options, "-o", f"Ciphers={cipher}"])

    async def _bulk_cipher(self, host: str) -> List[str]:
        return []


class Case(NamedTuple):
    """One thing that is measured."""

    path: str
    lane: str
    cipher: str
    streams: int


class Measure(NamedTuple):
    """What it took: seconds, and CPU seconds of the front-end."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


class Chunks:
    """*count* different chunks that do not compress, in the memory of two."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._noise = os.urandom(DEFAULT_CHUNK - 8)
        self.digests = b"".join(digest(self.chunk(index)) for index in range(count))

    def chunk(self, index: int) -> bytes:
        """The bytes of chunk *index*."""
        return index.to_bytes(8, "big") + self._noise

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.count * DEFAULT_CHUNK


class Bench:
    """All measures against one host."""

    def __init__(self, host: str, options: Sequence[str], chunks: Chunks) -> None:
        self._host, self._options, self._chunks = host, list(options), chunks
        self._bundles = Bundles(Path("/nonexistent"))
        self._bundles.get(HostPython.here())

    def _dialer(self, case: Case) -> Starter:
        if case.lane == "ssh":
            return _OneCipher(self._options, case.cipher)
        return AsyncsshDialer(self._options, [case.cipher])

    async def measure(self, case: Case, directory: str) -> Measure:
        """Measure one case once."""
        work = self._put if case.path == "put" else self._sink
        before = cpu_seconds()
        wall = await work(self._dialer(case), case.streams, directory)
        return Measure(wall, cpu_seconds() - before)

    async def _sink(self, dialer: Starter, streams: int, directory: str) -> float:
        links = [await dialer.start(self._host, True, self._swallow(share, streams)) for share in range(streams)]
        for link in links:
            await self._hear(link, b"ready\n")
        begun = time.monotonic()
        await asyncio.gather(*(self._fill(link, share, streams) for share, link in enumerate(links)))
        wall = time.monotonic() - begun
        for link in links:
            await link.close(wait=10.0)
        return wall

    async def _hear(self, link: Link, word: bytes) -> None:
        if await link.read_line(16) != word:
            raise RuntimeError("the host ended before it had taken all")

    def _swallow(self, share: int, streams: int) -> str:
        count = len(range(share, self._chunks.count, streams))
        return f"echo ready; head -c {count * DEFAULT_CHUNK} >/dev/null; echo end"

    async def _fill(self, link: Link, share: int, streams: int) -> None:
        for index in range(share, self._chunks.count, streams):
            chunk = self._chunks.chunk(index)
            for at in range(0, len(chunk), _PIECE):
                await link.write(chunk[at : at + _PIECE])
        await self._hear(link, b"end\n")

    async def _put(self, dialer: Starter, streams: int, directory: str) -> float:
        connections = Connections(dialer, dialer, self._bundles)
        async with Host(connections, self._host) as host:
            await host.open(DiskPath(directory, 1, "disk.0"), 0, time.time_ns() // 1000, create=True)
            await self._offer(host)
            lanes = [await host.lane() for _ in range(streams)]
            begun = time.monotonic()
            waiting = iter(range(self._chunks.count))
            await asyncio.gather(*(self._feed(lane, waiting) for lane in lanes))
            wall = time.monotonic() - begun
            for lane in lanes:
                await host.release(lane, usable=False)
        await connections.close()
        return wall

    async def _offer(self, host: Host) -> None:
        size = self._chunks.size
        await host.ask(Begin("", size, size, DEFAULT_CHUNK, size, 0o600, True, "raw", 0), Begun)
        for first in range(0, self._chunks.count, PAGE_CHUNKS):
            digests = self._chunks.digests[first * 32 : (first + PAGE_CHUNKS) * 32]
            wants: Wants = await host.ask(Offer.make(first, digests, [(0, size)]), Wants)
            if not all(wants.blob):
                raise RuntimeError("the host has some of the data already; it should be fresh")

    async def _feed(self, lane: Channel, waiting: Iterator[int]) -> None:
        """Send chunks as the product's lanes do: as many on their way as `WINDOW` allows."""
        room = asyncio.Semaphore(WINDOW)
        sent: asyncio.Queue[Optional[int]] = asyncio.Queue()

        async def send() -> None:
            for index in waiting:
                await room.acquire()
                sent.put_nowait(index)
                await lane.send(Put(index, DEFAULT_CHUNK, PLAIN, self._chunks.chunk(index)))
            sent.put_nowait(None)

        async def receive() -> None:
            while (await sent.get()) is not None:
                answer = await lane.receive()
                if not isinstance(answer, Stored):
                    raise RuntimeError(f"the agent answered {answer}")
                room.release()

        await asyncio.gather(send(), receive())


def _cases(paths: Sequence[str]) -> List[Case]:
    return [
        Case(path, lane, cipher, streams)
        for path in paths
        for streams in (1, 2)
        for lane in ("ssh", "asyncssh")
        for cipher in (GCM, CHACHA)
    ]


def _ssh(options: Sequence[str], host: str, *words: str) -> str:
    """Run a command on the host and return what it prints."""
    argv = ["ssh", *options, "-o", "BatchMode=yes", "--", host, shlex.join(words)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


Found = Dict[Case, List[Measure]]


def _rounds(bench: Bench, cases: Sequence[Case], rounds: int, options: Sequence[str], host: str) -> Found:
    found: Found = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            directory = _ssh(options, host, "mktemp", "-d", "/dev/shm/fastcopy-lanes.XXXXXX")
            base = f"{directory}/datastores/100"  # a level of its own, because a cache lies beside a datastore
            try:
                _ssh(options, host, "mkdir", "-p", base)
                found[case].append(asyncio.run(bench.measure(case, base)))
            finally:
                _ssh(options, host, "rm", "-rf", "--", directory)
            said = f"{case.path}, {case.lane}, {case.cipher}, {case.streams}: {found[case][-1].wall:.2f} s"
            print(f"round {number + 1} of {rounds}: {said}", file=sys.stderr)
    return found


def _show(found: Found, size: int) -> str:
    table = Table("path", "lane", "cipher", "streams", "MiB/s", "slowest", "fastest", "CPU s", text_columns=(0, 1, 2))
    for case, measures in found.items():
        rates = sorted(size / MIB / measure.wall for measure in measures)
        cpu = statistics.median(measure.cpu for measure in measures)
        speeds = (statistics.median(rates), rates[0], rates[-1])
        cipher = case.cipher.partition("@")[0]
        table.add(case.path, case.lane, cipher, case.streams, *(f"{rate:.0f}" for rate in speeds), f"{cpu:.2f}")
    return table.render()


def _parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("host", nargs="?", default="", help="as ssh knows it; without, an sshd on loopback is started")
    parser.add_argument("--mib", type=int, default=512, help="data of one measure, in MiB (512)")
    parser.add_argument("--rounds", type=int, default=3, help="measures of each case (3)")
    parser.add_argument("--path", choices=("put", "sink"), help="only this path")
    return parser.parse_args(arguments)


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure and print the table."""
    options = _parse(arguments)
    chunks = Chunks(max(1, options.mib * MIB // DEFAULT_CHUNK))
    cases = _cases([options.path] if options.path else ["put", "sink"])
    with tempfile.TemporaryDirectory(prefix="fastcopy-lanes-") as home:
        server = None if options.host else Sshd(Path(home))
        try:
            ssh = ["-F", str(server.config)] if server else []
            host = options.host or HOST
            found = _rounds(Bench(host, ssh, chunks), cases, options.rounds, ssh, host)
        finally:
            if server:
                server.close()
    where = options.host or "loopback, where both ends share the cores"
    print(f"{options.mib} MiB that do not compress, medians of {options.rounds}, {os.cpu_count()} cores, to {where}")
    print(_show(found, chunks.size), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
