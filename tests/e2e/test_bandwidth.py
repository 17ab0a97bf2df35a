"""Limits of bandwidth, both ways: no transfer was faster than it was allowed to be, by its own log line.

A machine that is slow can only make it slower, so nothing here depends on how busy it is.
"""

from __future__ import annotations

import re

import pytest

from bench.images.edge import MIB, random_data
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, SYSTEM, Cloud, Outcome, Vm
from tests.e2e.test_configuration import attributes

pytestmark = pytest.mark.root

SIZE = 40 * MIB
RATE = 10  # MiB per second
WINDOWS = 2 * 4 + 1  # MiB that two lanes have on their way before they pay, and what bucket and messages take


def assert_limited(outcome: Outcome) -> None:
    """Assert that what an action's log line says was on the wire took the time that it had to."""
    line = " ".join(outcome.succeeded().log)
    wire = re.search(r"on the wire ([0-9.]+) MiB", line)
    seconds = re.search(r"transfer ([0-9.]+)", line)
    assert wire and seconds, line
    assert float(wire[1]) >= SIZE // MIB, line
    assert float(wire[1]) <= RATE * float(seconds[1]) + WINDOWS, line


def changed(cloud: Cloud, vm: Vm) -> None:
    """Write something else into all of a VM's disk."""
    random_data(vm.path / "disk.0", SIZE, seed=vm.id)


def test_the_front_end_and_a_host_are_not_faster_than_allowed(cloud: Cloud) -> None:
    image = cloud.image(lambda path: random_data(path, SIZE))
    vm, other = cloud.vm(image), cloud.vm(image, "host3")
    cloud.environment["FASTCOPY_BWLIMIT"] = f"{RATE}M"
    assert_limited(cloud.clone(image, vm))
    del cloud.environment["FASTCOPY_BWLIMIT"]
    changed(cloud, vm)
    with attributes(cloud, system={"FASTCOPY_BWLIMIT_HOST": f"{RATE}M"}):
        assert_limited(cloud.mvds(vm, image))
        assert look.same_content(vm.path / "disk.0", image.file)
        cloud.environment["FASTCOPY_DAEMON"] = "no"  # a bucket of its own
        assert_limited(cloud.clone(image, other))
    assert look.same_content(other.path / "disk.0", image.file)


def test_a_limit_that_is_none_is_a_sentence(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    with attributes(cloud, system={"FASTCOPY_BWLIMIT": "1G"}):
        cloud.clone(image, vm).failed(f"FASTCOPY_BWLIMIT in datastore {SYSTEM}", "a setting of the whole front-end")
    with attributes(cloud, system={"FASTCOPY_BWLIMIT_HOST": "100"}):
        cloud.clone(image, vm).failed(f"FASTCOPY_BWLIMIT_HOST is '100' in datastore {SYSTEM}", "bytes with a suffix")
    with attributes(cloud, image={"FASTCOPY_BWLIMIT_HOST": "1G"}):
        cloud.clone(image, vm).failed(f"FASTCOPY_BWLIMIT_HOST in datastore {DEFAULT}", "a setting of hosts")
