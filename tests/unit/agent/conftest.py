"""A host's datastores in a temporary directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest

from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.lanes import LaneDoor
from tm_fastcopy.core.files import Files


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The system datastore 100, empty."""
    made = tmp_path / "datastores" / "100"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def cache(base: Path) -> Iterator[Cache]:
    """The cache that serves it."""
    fd = os.open(base, os.O_RDONLY)
    found, reason = Cache.open(Files(), fd, str(base))
    os.close(fd)
    assert found is not None, reason
    yield found
    found.close()


@pytest.fixture
def door() -> Iterator[LaneDoor]:
    """Where lanes come in."""
    made = LaneDoor()
    yield made
    made.remove()
