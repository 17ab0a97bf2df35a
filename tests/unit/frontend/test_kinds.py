"""Kinds of settings: what each reads, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.frontend.kinds import (
    Bytes,
    Choice,
    Kind,
    Limit,
    Number,
    Share,
    StockPercent,
    StockSwitch,
    Switch,
    shown,
)

NUMBER, SECONDS = Number(1, 16), Number(0, 600, "seconds")
CHOICE, SWITCH = Choice("auto", "reflink", "copy"), Switch()
BYTES, SHARE = Bytes(1 << 16), Share(1 << 20)
STOCK_SWITCH, STOCK_PERCENT = StockSwitch(), StockPercent()
KINDS = [NUMBER, SECONDS, CHOICE, SWITCH, BYTES, SHARE, STOCK_SWITCH, STOCK_PERCENT]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (NUMBER, "1", 1),
        (NUMBER, "16", 16),
        (NUMBER, "010", 10),
        (SECONDS, "0", 0),
        (SECONDS, "600", 600),
        (CHOICE, "auto", "auto"),
        (CHOICE, "REFLINK", "reflink"),
        *((SWITCH, word, True) for word in ("yes", "YES", "Yes", "true", "TRUE")),
        *((SWITCH, word, False) for word in ("no", "NO", "false", "False")),
        (BYTES, "0", 0),
        (BYTES, "65536", 65536),
        (BYTES, "64K", 65536),
        (BYTES, "20M", 20 << 20),
        (BYTES, "20m", 20 << 20),
        (BYTES, "3G", 3 << 30),
        (BYTES, "1048576T", 1 << 60),
        (SHARE, "0%", Limit(0, True)),
        (SHARE, "100%", Limit(100, True)),
        (SHARE, "0", Limit(0, False)),
        (SHARE, "1M", Limit(1 << 20, False)),
        *((STOCK_SWITCH, word, True) for word in ("YES", "yes")),
        *((STOCK_SWITCH, word, False) for word in ("NO", "true", "1", "Y", "", "nonsense")),
        (STOCK_PERCENT, "10", Limit(10, True)),
        (STOCK_PERCENT, "10%", Limit(10, True)),
        (STOCK_PERCENT, "0", Limit(0, True)),
        (STOCK_PERCENT, "100", Limit(100, True)),
    ],
)
def test_what_is_read(kind: Kind, text: str, value: Any) -> None:
    found = kind.read(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((NUMBER, text) for text in ("", "0", "17", "-1", "+1", "1.5", "many", "²", "٣", " 2", "2 ", "2\n", "0x2")),
        *((NUMBER, text) for text in ("1_0", "1e1", "9" * 19, "9" * 20, "9" * 100_000, "None", "~")),
        *((SECONDS, text) for text in ("601", "5m", "-0")),
        *((CHOICE, text) for text in ("", "aut", "auto ", "auto,copy", "yes")),
        *((SWITCH, text) for text in ("", "1", "0", "on", "off", "y", "maybe", " yes")),
        *((BYTES, text) for text in ("", "K", "1", "20", "63K", "1048577T", "1P", "1KB", "1KiB", "1.5G", "-1M", "1 G")),
        *((BYTES, text) for text in ("0x1M", "²M", "10%", "9" * 18 + "T")),
        *((SHARE, text) for text in ("", "80", "101%", "-1%", "1.5%", "%", "1023K", "80 %", "80%%", "5M%")),
        *((STOCK_PERCENT, text) for text in ("", "101", "-1", "1.5", "10GB", "ten")),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError):
        kind.read(text)


@given(st.sampled_from(KINDS), st.text())
def test_any_text_is_a_value_or_a_value_error(kind: Kind, text: str) -> None:
    try:
        kind.read(text)
    except ValueError:
        pass


@given(st.integers(1 << 16, 1 << 60))
def test_bytes_are_shown_as_they_are_read(size: int) -> None:
    assert BYTES.read(shown(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1K"), (20 << 20, "20M"), (1536 << 10, "1536K"), (1 << 60, "1048576T")],
)
def test_sizes_are_shown(size: int, text: str) -> None:
    assert shown(size) == text


@given(st.integers(0, 100), st.integers(0, 1 << 62))
def test_a_limit_in_percent_is_never_more_than_there_is(number: int, total: int) -> None:
    assert 0 <= Limit(number, True).of(total) <= total


def test_limits_in_bytes() -> None:
    assert Limit(80, True).of(1000) == 800
    assert Limit(100, True).of(7) == 7
    assert Limit(1 << 30, False).of(1000) == 1 << 30


def test_what_is_allowed_is_said() -> None:
    assert NUMBER.allowed == "a number from 1 to 16"
    assert SECONDS.allowed == "a number of seconds from 0 to 600"
    assert CHOICE.allowed == "auto, reflink or copy"
    assert SWITCH.allowed == "yes or no"
    assert BYTES.allowed == "bytes with a suffix K, M, G or T (at least 64K, or 0)"
    assert SHARE.allowed == "0% to 100%, or bytes with a suffix K, M, G or T (at least 1M, or 0)"
