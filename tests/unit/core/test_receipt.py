"""Receipts: written, read, and what is not taken for one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.core.errors import Refused
from tm_fastcopy.core.receipt import MAX_ENCODED, Receipt

RECEIPT = Receipt("/var/lib/one/datastores/100/42/disk.0", "ab" * 32, 1 << 32, 64768, 131)


@pytest.mark.parametrize("path", [RECEIPT.path, "/with blanks/and 'quotes'", "/with/Füße/\udcff", "/" + "x" * 4095])
def test_it_is_written_and_read(path: str) -> None:
    receipt = replace(RECEIPT, path=path)
    assert Receipt.decode(receipt.encode()) == receipt
    assert "\n" not in receipt.encode()


def changed(**changes: Any) -> str:
    values: Dict[str, Any] = {**asdict(RECEIPT), **changes}
    return json.dumps({key: value for key, value in values.items() if value is not ...})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        "{}",
        "{",
        "[" * 10_000,
        changed(more=1),
        changed(path=...),
        changed(inode=...),
        changed(version=...),
        changed(path=7),
        changed(size="7"),
        changed(size=7.0),
        changed(device=True),
        changed(version="1"),
        changed(version=True),
        changed(path="x" * MAX_ENCODED),
    ],
    ids=lambda text: text[:50],
)
def test_what_is_no_receipt(text: str) -> None:
    with pytest.raises(Refused, match="this is not a receipt"):
        Receipt.decode(text)


@pytest.mark.parametrize("version", [0, 2, 100])
def test_another_version_is_named(version: int) -> None:
    with pytest.raises(Refused, match=f"of version {version}, and version 1 is the newest known"):
        Receipt.decode(changed(version=version))


@given(st.text(max_size=100))
def test_random_text_is_no_receipt(text: str) -> None:
    with pytest.raises(Refused):
        Receipt.decode(text)
