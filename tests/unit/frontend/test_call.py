"""A call: which datastores it belongs to."""

from __future__ import annotations

import pytest

from tm_fastcopy.core.errors import Refused
from tm_fastcopy.frontend.call import datastore, datastore_of
from tm_fastcopy.frontend.oned import Datastore

STORES = {
    0: Datastore(0, "/d/0", True),
    1: Datastore(1, "/d/1", False),
    2: Datastore(2, "/d/1/inner", False),
    3: Datastore(3, "/d/1", True),
}


@pytest.mark.parametrize(
    ("path", "system", "number"),
    [("/d/0/4/disk.0", True, 0), ("/d/1/image", False, 1), ("/d/1//inner/image", False, 2), ("/d/1/4/disk.0", True, 3)],
)
def test_the_datastore_that_a_path_lies_in(path: str, system: bool, number: int) -> None:
    assert datastore_of(STORES, path, system).id == number


@pytest.mark.parametrize(
    ("path", "system"), [("/d/0/42/disk.0", False), ("/d/2/x", False), ("/d/1", False), ("/d/0/../1/x", False)]
)
def test_a_path_outside_is_refused(path: str, system: bool) -> None:
    with pytest.raises(Refused):
        datastore_of(STORES, path, system)


def test_datastores_by_number() -> None:
    assert datastore(STORES, 2).id == 2
    with pytest.raises(Refused, match="oned knows no datastore 7"):
        datastore(STORES, 7)
