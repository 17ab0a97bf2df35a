"""What waits when a host has stopped answering: 15 clones to it, then a delete there and a clone to another host.

All go through one_tm (OpenNebula's own with --opennebula), which has 15 slots: what comes after 15 that wait, waits
too.  Two ways to stop: its cable is pulled, or packets to and from it get lost.  And two beginnings: the daemon has a
connection to it from before, or has not.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, List, Optional

from bench.images import edge
from bench.measure import Table
from bench.testbed import Lab, LabConfig, LabError, Node
from bench.testbed.tm import TmResult, Transfers

_SLOTS = 15
_STOPS: Dict[str, tuple[Callable[[Node], None], Callable[[Node], None]]] = {
    "unplugged": (Node.cut, Node.restore),
    "silent": (Node.freeze, Node.thaw),
}
_LATER = 1.0  # seconds after the clones until the others are asked for


class Stall:
    """A lab with two hosts, and the calls that are made there."""

    def __init__(self, lab: Lab, transfers: Transfers, pool: ThreadPoolExecutor) -> None:
        self._lab, self._transfers, self._pool = lab, transfers, pool
        self._next = 100
        self.image = f"{lab.datastores}/1/small"
        edge.random_data(lab.fe.path(self.image), 1024 * 1024)
        lab.fe.path(self.image).chmod(0o644)
        lab.oned.add_image(1, 1, self.image, 1)

    def clone(self, host: str) -> Future[TmResult]:
        """Have one_tm clone the image to a new VM on *host*."""
        self._next += 1
        self._lab.oned.add_vm(self._next, host=host, ds_id=0, disks=[{"IMAGE_ID": 1}])
        target = f"{host}:{self._lab.datastores}/0/{self._next}/disk.0"
        return self._run(f"CLONE fastcopy fe:{self.image} {target} {self._next} 1", self._next)

    def delete(self, host: str) -> Future[TmResult]:
        """Have one_tm delete another VM's directory on *host*."""
        self._next += 1
        self._lab.oned.add_vm(self._next, host=host, ds_id=0)
        return self._run(f"DELETE fastcopy {host}:{self._lab.datastores}/0/{self._next} {self._next} 0", self._next)

    def _run(self, line: str, vm: int) -> Future[TmResult]:
        return self._pool.submit(self._transfers.run, [line], vm, 300.0)


def measure(stall: Stall, node: Node, how: str) -> List[tuple[str, List[TmResult]]]:
    """Stop the host, ask, and let it go on."""
    stop, go_on = _STOPS[how]
    stop(node)
    try:
        clones = [stall.clone("host1") for _ in range(_SLOTS)]
        time.sleep(_LATER)
        delete, other = stall.delete("host1"), stall.clone("host2")
        return [
            ("15 clones to it", [clone.result() for clone in clones]),
            ("a delete there", [delete.result()]),
            ("a clone to another host", [other.result()]),
        ]
    finally:
        go_on(node)


def main(arguments: Optional[List[str]] = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="bench/measure-stall", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--opennebula", type=Path, help="a checkout of OpenNebula, for its one_tm")
    parser.add_argument("--dir", type=Path, default=LabConfig().dir, help="where the lab is built")
    options = parser.parse_args(arguments)
    table = Table(
        "host1 is", "connection", "what", "failed", "least s", "most s", "what oned shows", text_columns=(0, 1, 2, 6)
    )
    try:
        config = LabConfig(hosts=2, dir=options.dir, opennebula=options.opennebula)
        with Lab.up(config) as lab, lab.transfers() as transfers, ThreadPoolExecutor(_SLOTS + 4) as pool:
            stall = Stall(lab, transfers, pool)
            for how in _STOPS:
                for known in ("none", "kept"):
                    lab.fe.run(["pkill", "-f", "tm_fastcopy.frontend.daemon"])
                    time.sleep(1.0)
                    if known == "kept":
                        stall.clone("host1").result()
                    for what, results in measure(stall, lab.hosts["host1"], how):
                        seconds = [result.seconds for result in results]
                        said = next((result.info for result in results if not result.success), "")
                        failed = sum(not result.success for result in results)
                        times = f"{min(seconds):.1f}", f"{max(seconds):.1f}"
                        table.add(how, known, what, f"{failed} of {len(results)}", *times, said[-90:])
    except (LabError, OSError) as error:
        print(f"measure-stall: {error}", file=sys.stderr)
        return 1
    print(table.render(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
