"""Leases: room that transfers speak for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.lease import EXPIRY, Lease, leased
from tm_fastcopy.core.files import Files


def test_leases_add_up_until_they_are_given_back(cache: Cache) -> None:
    one, other = Lease(Files(), cache, 1000), Lease(Files(), cache, 50)
    assert leased(Files(), cache, time.time()) == 1050
    one.renew(10)
    assert leased(Files(), cache, time.time()) == 60
    one.renew(-5)
    assert leased(Files(), cache, time.time()) == 50
    other.release()
    one.release()
    assert leased(Files(), cache, time.time()) == 0
    assert os.listdir(cache.path) == []


def test_a_lease_that_was_not_renewed_counts_for_nothing_and_is_removed(cache: Cache) -> None:
    held = Lease(Files(), cache, 1000)
    assert leased(Files(), cache, time.time() + EXPIRY + 1) == 0
    assert os.listdir(cache.path) == []
    held.release()


@pytest.mark.parametrize("text", ["", "nonsense", "\xff"])
def test_a_lease_that_cannot_be_read_counts_for_nothing(cache: Cache, text: str) -> None:
    (Path(cache.path) / "1.2.lease").write_text(text)
    assert leased(Files(), cache, time.time()) == 0
