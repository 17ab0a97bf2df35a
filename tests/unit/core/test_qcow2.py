"""qcow2 headers: what is read out of them, what is refused, and that no damage does more than be refused."""

from __future__ import annotations

from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import qcow2_header
from tm_fastcopy.core import qcow2
from tm_fastcopy.core.errors import Refused
from tm_fastcopy.core.qcow2 import Header

GIB = 1 << 30


def parse(**fields: Any) -> Header:
    return qcow2.parse(qcow2_header(**fields), 1 << 20, "x.qcow2")


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_image(version: int) -> None:
    header = parse(version=version, size=5 * GIB)
    assert header == Header(version, 5 * GIB, None, None, 0, 0)
    qcow2.check_stand_alone(header, "x")


@pytest.mark.parametrize("version", [2, 3])
def test_a_backing_file(version: int) -> None:
    assert parse(version=version, backing=b"base").backing == "base"


def test_a_name_ends_where_qemu_ends_it() -> None:
    assert parse(backing=b"/etc/passwd\0harmless").backing == "/etc/passwd"
    assert parse(backing=b"\0harmless").backing is None


def test_an_external_data_file() -> None:
    assert parse(features=4, data_file=b"data.raw").data_file == "data.raw"
    assert parse(features=4).data_file == ""
    assert parse(data_file=b"/dev/sda").data_file == "/dev/sda"  # though QEMU wants the feature bit as well


def test_encryption_and_snapshots_are_told() -> None:
    header = parse(encryption=2, snapshots=3)
    assert (header.encryption, header.snapshots) == (2, 3)
    qcow2.check_stand_alone(header, "x")


OUTSIDE = [
    "/etc/passwd",
    "../other",
    "a/../../b",
    "..",
    "json:{\"driver\":\"nbd\"}",
    "nbd://host/x",
    "nbd:host:1",
    "https://host/x",
    "fat:rw:dir",
    "file:/etc/passwd",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside(name: str) -> None:
    for fields in ({"backing": name.encode()}, {"features": 4, "data_file": name.encode()}):
        with pytest.raises(Refused, match="outside its own directory"):
            qcow2.check_stand_alone(parse(**fields), "x")


@pytest.mark.parametrize("name", ["0", "disk.0.snap/0", "base.qcow2", "a..b", "dir/with:colon"])
def test_names_beside_the_image_are_refused_for_another_reason(name: str) -> None:
    with pytest.raises(Refused, match="several files"):
        qcow2.check_stand_alone(parse(backing=name.encode()), "x")


def test_a_name_is_shown_in_a_sentence_whatever_it_is() -> None:
    with pytest.raises(Refused) as caught:
        qcow2.check_stand_alone(parse(backing=b"/\xff\n" + b"x" * 300), "x")
    assert str(caught.value).isascii() and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 4}, "version 4"),
        ({"cluster_bits": 8}, "damaged"),
        ({"cluster_bits": 22}, "damaged"),
        ({"cluster_bits": 1 << 31}, "damaged"),
        ({"size": 1 << 61}, "damaged"),
        ({"encryption": 3}, "damaged"),
        ({"features": 1 << 5}, "does not know"),
        ({"l1": (1, (1 << 20) - 4)}, "shorter"),
        ({"l1": (1 << 31, 0)}, "shorter"),
        ({"l1": (0, 1 << 63)}, "shorter"),
        ({"backing": b"x" * 1024}, "damaged"),
    ],
)
def test_what_is_refused(fields: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        parse(**fields)


def test_a_name_beyond_the_first_cluster_is_refused() -> None:
    raw = bytearray(qcow2_header(backing=b"base", cluster_bits=9))
    raw[8:16] = (510).to_bytes(8, "big")
    with pytest.raises(Refused, match="damaged"):
        qcow2.parse(bytes(raw), 1 << 20, "x")


def test_an_extension_that_does_not_end_is_refused() -> None:
    raw = bytearray(qcow2_header(data_file=b"data.raw"))
    raw[108:112] = (1 << 16).to_bytes(4, "big")
    with pytest.raises(Refused, match="damaged"):
        qcow2.parse(bytes(raw), 1 << 20, "x")


@pytest.mark.parametrize("raw", [b"", b"QFI\xfb", bytes(512), b"#!/bin/sh\n" * 60, qcow2_header()[:71]])
def test_what_is_no_qcow2_image(raw: bytes) -> None:
    with pytest.raises(Refused, match="no qcow2 image, though oned says so"):
        qcow2.parse(raw, 1 << 20, "x")


def outcome(raw: bytes) -> object:
    try:
        return qcow2.parse(raw, 1 << 20, "x")
    except Refused as error:
        return str(error)


@given(st.binary(max_size=400), st.integers(0, 8))
def test_any_bytes_are_a_header_or_refused(raw: bytes, version: int) -> None:
    outcome(raw)
    outcome(b"QFI\xfb" + version.to_bytes(4, "big") + raw)


@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_a_damaged_header_is_read_or_refused(changes: List[Any], cut: bool) -> None:
    raw = bytearray(qcow2_header(backing=b"../base", data_file=b"data.raw", features=4))
    for at, value in changes:
        raw[at] = value
    outcome(bytes(raw[: changes[0][0]] if cut else raw))


@given(st.text(min_size=1, max_size=60).filter(lambda name: "\0" not in name))
def test_no_image_with_a_name_in_its_header_stands_alone(name: str) -> None:
    raw = name.encode("utf-8", "surrogatepass")
    for fields in ({"backing": raw}, {"data_file": raw}, {"version": 2, "backing": raw}):
        with pytest.raises(Refused):
            qcow2.check_stand_alone(parse(**fields), "x")
