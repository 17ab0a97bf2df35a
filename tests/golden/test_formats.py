"""Golden files: what version 1 of each format looks like.  The present code must write and read it identically.

A golden file never changes.  A new version of a format gets a new file, and the old one must still be read.
Files: manifest-v1.bin and receipt-v1.json as they are stored, wire-v1.txt with one frame of each message in
hexadecimal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest

from tests.wire_cases import CASES
from tm_fastcopy.core.manifest import Manifest
from tm_fastcopy.core.receipt import Receipt
from tm_fastcopy.core.wire import PROTOCOL_VERSION, Decoder, Message, encode

HERE = Path(__file__).resolve().parent

# Three chunks of 64 KiB, the last of 5 bytes: data, nothing, data.  The digests are simply numbered bytes.
MANIFEST = Manifest(2 * 65536 + 5, 65536, bytes(range(1, 33)) + bytes(32) + bytes(range(33, 65)))
MANIFEST_ID = "6d48c32933cd8ca922451b99d56ffaae795b06da839e98c6cc509365585d37d6"
RECEIPT = Receipt("/var/lib/one/datastores/100/42/disk.0", "ab" * 32, 4294967296, 64768, 131)


def test_manifest_v1() -> None:
    raw = (HERE / "manifest-v1.bin").read_bytes()
    assert MANIFEST.encode() == raw
    assert Manifest.decode(raw) == MANIFEST
    assert Manifest.decode(raw).id == MANIFEST_ID


def test_receipt_v1() -> None:
    text = (HERE / "receipt-v1.json").read_text()
    assert RECEIPT.encode() == text.rstrip("\n")
    assert Receipt.decode(text) == RECEIPT


def frames() -> Dict[str, bytes]:
    """The golden frames by the names of their messages."""
    lines = (HERE / "wire-v1.txt").read_text().splitlines()
    return {name: bytes.fromhex(text) for name, text in (line.split() for line in lines if not line.startswith("#"))}


def test_the_wire_is_still_version_1() -> None:
    assert PROTOCOL_VERSION == 1
    assert list(frames()) == [type(message).__name__ for message in CASES]


@pytest.mark.parametrize("message", CASES, ids=lambda message: type(message).__name__)
def test_wire_v1(message: Message) -> None:
    raw = frames()[type(message).__name__]
    assert encode(message) == raw
    assert list(Decoder().feed(raw)) == [message]
