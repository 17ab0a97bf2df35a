"""Fixtures of the crash walk, and the line that sums it up."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Set

import pytest

from .forks import ForkServer
from .site import Site, Volume, own_mounts
from .walk import Harness, Report, Walk


class Totals:
    """What all walks of a test run did."""

    def __init__(self) -> None:
        self.report = Report()
        self.actions: Set[str] = set()
        self.arrows: Set[str] = set()

    def add(self, walk: Walk, report: Report) -> None:
        """Count a walk.  An arrow is counted once, in however many states and file systems it was walked."""
        self.actions.add(walk.scenario.action)
        self.arrows |= {f"{walk.scenario.action}: {arrow.role}.{arrow.change}" for arrow in walk.arrows}
        self.report.add(report)


_TOTALS = pytest.StashKey[Totals]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[_TOTALS] = Totals()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was walked."""
    totals = config.stash.get(_TOTALS, Totals())
    done = totals.report
    if totals.actions:
        lost = sum("lost:" in problem for problem in done.wrong)
        terminalreporter.write_line(
            f"crash walk: {len(totals.arrows)} arrows x {len(totals.actions)} actions "
            f"({', '.join(sorted(totals.actions))}), {done.kills} kills, {done.cuts} power cuts, "
            f"{done.failures} failed calls: {len(done.wrong) - lost} wrong, {lost} lost"
        )


@pytest.fixture
def totals(request: pytest.FixtureRequest) -> Totals:
    """What the summary is made of."""
    return request.config.stash[_TOTALS]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ForkServer]:
    """What the product's processes are forked from: inside the mount namespace, if the module says NEEDS_MOUNTS."""
    if getattr(request.module, "NEEDS_MOUNTS", False):
        request.getfixturevalue("mounts")
    scratch = Path(tempfile.mkdtemp(prefix="fastcopy-faults-", dir="/tmp"))  # a socket's path must be short
    server = ForkServer(scratch, "tests.faults.programs")
    yield server
    server.stop()
    shutil.rmtree(scratch)


@pytest.fixture
def harness(server: ForkServer) -> Iterator[Harness]:
    """Runs actions.  What a test that failed left running ends with it."""
    harness = Harness(Path(server.path).parent, server)
    yield harness
    server.kill("frontend", "host")
    harness.wait()
    harness.hit.unlink(missing_ok=True)


@pytest.fixture
def plain(tmp_path: Path) -> Site:
    """Both machines in a directory, on whatever file system that is.  Needs no root."""
    for name in ("host", "front"):
        (tmp_path / name).mkdir()
    return Site(tmp_path / "host", tmp_path / "front")


@pytest.fixture(scope="module")
def mounts() -> Iterator[Callable[..., Volume]]:
    """Makes volumes, which vanish after the module's tests."""
    # In memory where possible: a walk waits for some ten thousand fsyncs.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    top = Path(tempfile.mkdtemp(prefix="fastcopy-faults-", dir=place))
    made: List[Volume] = []
    numbers = itertools.count()

    def make(fs: str, size: int = Volume.SMALLEST) -> Volume:
        made.append(Volume(top, f"{fs}{next(numbers)}", fs, size))
        return made[-1]

    with own_mounts():
        try:
            yield make
        finally:
            for volume in made:
                volume.remove()
            shutil.rmtree(top)


@pytest.fixture(scope="module")
def volumes(mounts: Callable[..., Volume]) -> Callable[[str], Site]:
    """Makes a site whose two machines have a file system of their own each; one site per kind of file system."""
    sites: Dict[str, Site] = {}

    def site(fs: str) -> Site:
        if fs not in sites:
            host, front = mounts(fs), mounts(fs)
            sites[fs] = Site(host.mount, front.mount, host, front)
        return sites[fs]

    return site
