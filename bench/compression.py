"""Whether the choice between packed and plain chunks is the right one, on links that change while a transfer runs.

Each transfer is made three times in turn: with the choice left to the driver (auto), always packed (zstd), and always
plain (none).  The link is shaped with tc's token bucket; where two rates stand, the second one begins when half of the
image's packed size has passed.  Two images: a real Debian, which packs to a third, and one of 100 symbols, which packs
to five sixths and so is worth it on a slow link only.  Every disk is compared with its image.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from bench.images import catalogue, edge, tools
from bench.jobs import FASTCOPY, SYSTEM, Jobs, WrongContent, settle
from bench.measure import Table, changed_blocks
from bench.testbed import Lab, LabConfig, LabError

_MIB = 1024 * 1024
_WAYS = ("auto", "zstd", "none")
_HOST = "host1"
_PATIENCE = 600.0  # seconds for one transfer; the slowest here takes a minute
_LINKS: Sequence[Sequence[Optional[str]]] = (("200mbit",), (None,), ("200mbit", None), (None, "200mbit"))
_PACKED = {"debian": 0.37, "100 symbols": 0.83}  # of its data, by zstd at level 1


@dataclass(frozen=True)
class Result:
    """One transfer: seconds, MiB of chunks sent and of these in packed slices, MiB through the host's interface."""

    seconds: float
    sent: float
    packed: float
    wire: float


class Transfers:
    """Transfers of new images to one host."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs, self._lab = jobs, jobs.lab

    def run(self, number: int, path: str, way: str, link: Sequence[Optional[str]], half: float) -> Result:
        """Clone once, with the link's next rate from *half* bytes on."""
        lab, host = self._lab, self._lab.hosts[_HOST]
        lab.rate(_HOST, link[0])
        cache = host.path(f"{lab.datastores}/.fastcopy/cache")
        for entry in cache.iterdir() if cache.exists() else ():
            entry.unlink()
        vm = self._jobs.new_vm(_HOST, number, SYSTEM[FASTCOPY])
        disk = self._jobs.disk(vm, SYSTEM[FASTCOPY])
        entry = lab.one_location / "var/remotes/tm/fastcopy/clone"
        argv = [str(entry), f"fe:{path}", f"{_HOST}:{disk}", str(vm), "0"]
        before, started = host.rx_bytes(), time.monotonic()
        pipe = subprocess.PIPE
        process = lab.fe.popen(argv, env={"FASTCOPY_COMPRESSION": way}, stdout=pipe, stderr=pipe)
        for rate in link[1:]:
            while process.poll() is None and host.rx_bytes() - before < half:
                time.sleep(0.01)
            lab.rate(_HOST, rate)
        said = process.communicate(timeout=_PATIENCE)[1].decode("utf-8", "replace").strip()
        seconds = time.monotonic() - started
        wire = (host.rx_bytes() - before) / _MIB
        found = re.search(r"chunks sent ([\d.]+) MiB \(([\d.]+) MiB packed", said)
        if process.returncode or not found or changed_blocks(lab.fe.path(path), host.path(disk)):
            raise WrongContent(f"a clone with {way} failed, or the disk is wrong: {said}")
        shutil.rmtree(host.path(disk).parent)
        return Result(seconds, float(found[1]), float(found[2]), wire)


def measure(jobs: Jobs, images: Path, rounds: int) -> Table:
    """All transfers, in turns."""
    table = Table(
        "image", "link", "way", "seconds", "in packed slices", "wire MiB", "against the best",
        title="median (least-most)", text_columns=(0, 1, 2),
    )  # fmt: skip
    transfers = Transfers(jobs)
    symbols = images / "measure-100-symbols"
    edge.symbols(symbols, 768 * _MIB)
    sources = {"debian": catalogue.path_of("debian", images), "100 symbols": symbols}
    for number, (name, source) in enumerate(sources.items(), 1):
        path = jobs.add_image(number, name.replace(" ", "-"), source)
        settle([jobs.lab.fe.path(path)])
        data = source.stat().st_blocks * 512
        for link in _LINKS:
            found: Dict[str, List[Result]] = {way: [] for way in _WAYS}
            for turn in range(rounds + 1):
                for way in _WAYS:
                    result = transfers.run(number, path, way, link, data * _PACKED[name] / 2)
                    if turn or rounds == 1:
                        found[way].append(result)
            middle = {way: statistics.median(one.seconds for one in results) for way, results in found.items()}
            for way, results in found.items():
                seconds = [one.seconds for one in results]
                table.add(
                    name,
                    " then ".join(rate or "none" for rate in link),
                    way,
                    f"{middle[way]:.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
                    f"{100 * statistics.median(one.packed / one.sent for one in results):.0f} %",
                    f"{statistics.median(one.wire for one in results):.0f}",
                    f"{middle[way] / min(middle.values()):.2f}",
                )
    symbols.unlink()
    return table


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure and print; 0 if every disk was right."""
    parser = argparse.ArgumentParser(
        prog="bench/measure-compression", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="transfers of each kind that count (3)")
    parser.add_argument("--images", type=Path, default=catalogue.DIRECTORY, help="where the images are kept")
    parser.add_argument("--dir", type=Path, default=LabConfig().dir, help="where the lab is built")
    options = parser.parse_args(arguments)
    try:
        catalogue.make("debian", options.images)
        with Lab.up(LabConfig(hosts=1, dir=options.dir)) as lab:
            print(measure(Jobs(lab), options.images, options.rounds).render(), end="")
    except (LabError, WrongContent, tools.Unable, OSError, subprocess.SubprocessError) as error:
        print(f"measure-compression: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
