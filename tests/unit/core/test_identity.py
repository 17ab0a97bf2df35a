"""Identity: it changes with every write, and is remembered only when it is settled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tm_fastcopy.core.identity import SETTLED_NS, Identity

NOW = 1_700_000_000_000_000_000
IDENTITY = Identity(1, 2, 3, NOW - SETTLED_NS, NOW - SETTLED_NS)


def test_two_seconds_settle_it() -> None:
    assert SETTLED_NS == 2_000_000_000
    assert IDENTITY.settled(NOW)
    assert not IDENTITY.settled(NOW - 1)


@pytest.mark.parametrize("time", ["mtime_ns", "ctime_ns"])
def test_both_times_count(time: str) -> None:
    assert not IDENTITY._replace(**{time: NOW - SETTLED_NS + 1}).settled(NOW)


def test_a_time_in_the_future_is_not_settled() -> None:
    assert not IDENTITY._replace(mtime_ns=NOW + 10**12).settled(NOW)


def test_whatever_differs_makes_another_key() -> None:
    several = [IDENTITY, *(IDENTITY._replace(**{field: 99}) for field in Identity._fields)]
    keys = {identity.key("here") for identity in several} | {IDENTITY.key("there")}
    assert len(keys) == len(several) + 1
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)


def test_a_write_that_hides_its_mtime_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    os.utime(path, ns=(0, 0))
    before = Identity.of(path.stat())
    path.write_text("two")
    os.utime(path, ns=(0, 0))
    os.utime(path, ns=(0, 0))
    after = Identity.of(path.stat())
    assert after.mtime_ns == before.mtime_ns
    # The kernel's clock ticks in milliseconds, which is what `settled` is for: equal only within one tick.
    assert after == before or after.ctime_ns > before.ctime_ns


def test_the_same_state_has_the_same_identity(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    assert Identity.of(path.stat()) == Identity.of(path.stat())
    os.truncate(path, 2)
    assert Identity.of(path.stat()).size == 2
