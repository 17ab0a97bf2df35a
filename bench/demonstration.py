"""The demo: a real Debian image goes to hosts and comes back, beside what the stock `ssh` driver runs.

Every file is compared by SHA-256 after every step; a difference ends the demo with an error.  It is one run of each
step, to show what happens; figures to compare drivers by are the bench's business.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import measure
from bench.images import catalogue, tools
from bench.images.mutate import mutate
from bench.jobs import FASTCOPY, PIPELINE, SYSTEM, Jobs, Run, WrongContent, settle
from bench.measure import Table, size_text
from bench.testbed import Lab, LabConfig, LabError

_MIB = 1024 * 1024
_CHUNK = 256 * 1024  # the driver's chunk for images of this size
_HOSTS = {"host1": "xfs", "host2": "ext4"}
_STEPS = ("first deploy", "second deploy", "second version", "write-back")

Runs = Dict[str, Run]
Job = Callable[[str], Run]


class Demo:
    """One walk through all steps on every host, at one link rate ("none": as fast as the machine goes)."""

    def __init__(self, jobs: Jobs, images: Path, link: str, progress: Progress) -> None:
        self.jobs, self.link, self._progress = jobs, link, progress
        self._first, self._second = (catalogue.path_of(name, images) for name in ("debian", "debian-v2"))
        self._bar = progress.add_task("", total=len(_HOSTS) * len(_STEPS) * 2)
        self.table = Table(
            "host", "step", "fastcopy s", "durable s", "pipeline s", "durable s", "times faster",
            "fastcopy wire", "pipeline wire", title=f"link: {link}", text_columns=(0, 1),
        )  # fmt: skip
        self.notes: List[str] = []

    def run(self) -> None:
        """All steps on all hosts."""
        old = self.jobs.add_image(1, f"debian-{self.link}", self._first)
        new = self.jobs.add_image(2, f"debian-v2-{self.link}", self._second)
        settle([self.jobs.lab.fe.path(old), self.jobs.lab.fe.path(new)])
        for host in _HOSTS:
            deploy = functools.partial(self._deploy, host, old)
            self._pair(host, "first deploy", deploy)
            self._pair(host, "second deploy", deploy)
            vms = self._update(host, new)
            self._write_back(host, vms)

    def _deploy(self, host: str, path: str, driver: str) -> Run:
        return self.jobs.clone(driver, host, 1, path)[0]

    def _update(self, host: str, new: str) -> Dict[str, int]:
        """Deploy the image's second version; return the VM of each driver."""
        vms: Dict[str, int] = {}

        def job(driver: str) -> Run:
            run, vms[driver] = self.jobs.clone(driver, host, 2, new)
            return run

        runs = self._pair(host, "second version", job)
        self._note("second version", host, runs[FASTCOPY], self._first, self._second)
        return vms

    def _write_back(self, host: str, vms: Dict[str, int]) -> None:
        """A guest writes into both drivers' disks alike; both bring theirs back, each over an image of its own."""
        lab = self.jobs.lab
        targets: Dict[str, str] = {}
        for driver, vm in vms.items():
            disk = lab.hosts[host].path(self.jobs.disk(vm, SYSTEM[driver]))
            mutate(disk, seed=7, contiguous=24 * _MIB, scattered=200, zeroed=4 * _MIB, punched=4 * _MIB)
            name = f"persistent-{driver}-{host}-{self.link}"
            targets[driver] = self.jobs.add_image(10 + len(targets), name, self._second, persistent=True)
        settle(lab.fe.path(path) for path in targets.values())
        runs = self._pair(
            host, "write-back", lambda driver: self.jobs.write_back(driver, host, vms[driver], targets[driver])
        )
        self._note("write-back", host, runs[FASTCOPY], self._second, lab.fe.path(targets[FASTCOPY]))
        for path in targets.values():
            lab.fe.path(path).unlink()

    def _pair(self, host: str, step: str, job: Job) -> Runs:
        """One step with both drivers, and its row in the table."""
        runs: Runs = {}
        for driver in (FASTCOPY, PIPELINE):
            self._progress.update(self._bar, description=f"{host} {_HOSTS[host]}, link {self.link}: {step}, {driver}")
            runs[driver] = job(driver)
            self._progress.advance(self._bar)
        ours, theirs = runs[FASTCOPY], runs[PIPELINE]
        self.table.add(
            f"{host} {_HOSTS[host]}", step, f"{ours.seconds:.2f}", f"{ours.durable:.2f}", f"{theirs.seconds:.2f}",
            f"{theirs.durable:.2f}", f"{theirs.seconds / ours.seconds:.1f}", size_text(ours.wire),
            size_text(theirs.wire),
        )  # fmt: skip
        return runs

    def _note(self, what: str, host: str, run: Run, old: Path, new: Path) -> None:
        chunks, size = measure.changed_chunks(old, new, _CHUNK)
        blocks = measure.changed_blocks(old, new)
        self.notes.append(
            f"{what}, {host} {_HOSTS[host]}: {size_text(run.wire)} on the wire; changed chunks {chunks} "
            f"({size_text(size)}), ratio {run.wire / size:.2f}; changed 4 KiB blocks {size_text(blocks)}"
        )


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the demo; 0 if every file was what it should be."""
    options = _parse(arguments)
    started = time.monotonic()
    try:
        _make_images(options.images)
        with Lab.up(LabConfig(hosts=len(_HOSTS), fs=tuple(_HOSTS.values()), dir=options.dir)) as lab:
            for link in options.rate:
                for host in _HOSTS:
                    lab.rate(host, None if link == "none" else link)
                _walk(Jobs(lab), options.images, link)
            if lab.oned.unknown_calls:
                raise WrongContent(f"a driver asked oned for what the lab does not know: {lab.oned.unknown_calls}")
    except (LabError, WrongContent, tools.Unable, OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print("Every file was compared by SHA-256 and was right.")
    print(f"The demo took {time.monotonic() - started:.0f} s, and the lab is gone.")
    return 0


def _make_images(directory: Path) -> None:
    for name in ("debian", "debian-v2"):
        if not catalogue.path_of(name, directory).exists():
            print(f"making the image {name} in {directory} (once; one to two minutes)", flush=True)
        catalogue.make(name, directory)


def _walk(jobs: Jobs, images: Path, link: str) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), transient=True) as progress:
        demo = Demo(jobs, images, link, progress)
        demo.run()
    print(demo.table.render())
    print("\n".join(demo.notes), end="\n\n", flush=True)


def _parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/demo", description=__doc__)
    parser.add_argument("--rate", nargs="+", default=["1gbit"], help="link rates to try, such as none 1gbit 200mbit")
    parser.add_argument("--images", type=Path, default=catalogue.DIRECTORY, help="where the images are kept")
    parser.add_argument("--dir", type=Path, default=LabConfig().dir, help="where the lab is built")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
