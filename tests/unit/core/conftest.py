"""What the tests of core share."""

from __future__ import annotations

from typing import Iterator

import pytest

from tests.support import close_kept


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Close what a test asked to be closed: a thousand open files are all that most users may have."""
    yield
    close_kept()
