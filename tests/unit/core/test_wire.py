"""The wire: every message both ways, however the bytes are cut; and nothing else gets through."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire_cases import CASES
from tm_fastcopy.core import messages, wire
from tm_fastcopy.core.errors import BadChunk, FastcopyError, NoSpace, ProtocolError
from tm_fastcopy.core.wire import Decoder, Message

every_message = pytest.mark.parametrize("message", CASES, ids=lambda message: type(message).__name__)


def feed(decoder: Decoder, *pieces: bytes) -> List[Message]:
    return [message for piece in pieces for message in decoder.feed(piece)]


def frame(header: Any, blob: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">II", len(raw), len(blob)) + raw + blob


def test_the_table_has_every_message() -> None:
    assert sorted(type(case).__name__ for case in CASES) == sorted(cls.__name__ for cls in Message.__subclasses__())


@every_message
def test_whole(message: Message) -> None:
    decoder = Decoder()
    assert feed(decoder, wire.encode(message)) == [message]
    assert decoder.pending == 0


@every_message
def test_byte_by_byte(message: Message) -> None:
    raw, decoder = wire.encode(message), Decoder()
    for end in range(1, len(raw)):
        assert feed(decoder, raw[end - 1 : end]) == []
        assert decoder.pending == end
    assert feed(decoder, raw[-1:]) == [message]


@every_message
def test_with_a_tail(message: Message) -> None:
    decoder = Decoder()
    assert feed(decoder, wire.encode(message) + wire.encode(CASES[0])[:5]) == [message]
    assert decoder.pending == 5
    assert feed(decoder, wire.encode(CASES[0])[5:]) == [CASES[0]]


def test_many_at_once() -> None:
    assert feed(Decoder(), b"".join(map(wire.encode, CASES))) == CASES


@given(st.data())
def test_any_cut(data: st.DataObject) -> None:
    raw = b"".join(map(wire.encode, CASES))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)])]
    assert feed(Decoder(), *pieces) == CASES


@pytest.mark.parametrize(
    ("header", "blob"), [(wire.MAX_HEADER + 1, 0), (0, wire.MAX_BLOB + 1), (0xFFFFFFFF, 0), (0, 0xFFFFFFFF)]
)
def test_a_length_out_of_bounds_is_refused_when_it_is_announced(header: int, blob: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="more than allowed"):
            feed(Decoder(), struct.pack(">II", header, blob))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_bounds_themselves_are_allowed() -> None:
    assert wire.frame_lengths(struct.pack(">II", wire.MAX_HEADER, wire.MAX_BLOB)) == (wire.MAX_HEADER, wire.MAX_BLOB)


def test_what_is_too_large_cannot_be_sent() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        wire.encode(messages.Put(0, 1, 0, bytes(wire.MAX_BLOB + 1)))
    with pytest.raises(ProtocolError, match="too large"):
        wire.encode(wire.Failure("give-up", "x" * wire.MAX_HEADER))


def test_the_largest_chunk_and_the_largest_page_can_be_sent() -> None:
    put = messages.Put(0, wire.MAX_CHUNK, 0, bytes(wire.MAX_CHUNK))
    page = messages.Offer.make(0, bytes(32 * messages.PAGE_CHUNKS), [(2 * i, 1) for i in range(messages.MAX_RUNS)])
    assert feed(Decoder(), wire.encode(put), wire.encode(page)) == [put, page]


@pytest.mark.parametrize("letter", ["a", "\x00", "\u20ac", "\U0001f4a5"])
def test_an_error_of_any_length_can_be_sent(letter: str) -> None:
    failure = wire.Failure.of(FastcopyError(letter * 100_000))
    assert feed(Decoder(), wire.encode(failure)) == [failure]


STORED = {"m": "Stored", "index": 1}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"Stored"',
        b'{"m":["Stored"],"index":1}',
        b'{"m":"Stored","index":' + b"9" * 5000 + b"}",
        b'{"m":"Stored","index":1e400}',
        b'{"m":"Stored","index":NaN}',
        b'{"m":"Stored","index":1}x',
        b"[" * 20_000,
        {},
        {"index": 1},
        {"m": "NoSuchMessage"},
        {"m": "Message"},
        {"m": "Stored"},
        {**STORED, "more": 1},
        {**STORED, "index": -1},
        {**STORED, "index": 1 << 63},
        {**STORED, "index": 1.0},
        {**STORED, "index": True},
        {**STORED, "index": "1"},
        {**STORED, "index": None},
        {**STORED, "index": [1]},
        {"m": "Commit", "manifest": 1},
        {"m": "Commit", "manifest": None},
        {"m": "Opened", "reflink": 1, "socket": "", "token": ""},
        {"m": "Wants", "extra": 1},
        {"m": "Offer", "first": 0, "count": 1},
        {"m": "Offer", "first": 0, "count": messages.PAGE_CHUNKS + 1},
    ],
    ids=lambda header: repr(header)[:40],
)
def test_what_is_no_message_is_refused(header: Any) -> None:
    with pytest.raises(ProtocolError):
        feed(Decoder(), frame(header))


def test_data_where_none_belongs_is_refused() -> None:
    assert feed(Decoder(), frame(STORED)) == [messages.Stored(1)]
    with pytest.raises(ProtocolError, match="carries no data"):
        feed(Decoder(), frame(STORED, b"x"))


@pytest.mark.parametrize("blob", [b"", bytes(31), bytes(33), bytes(32 + 15)])
def test_a_page_whose_length_does_not_fit_its_count_is_refused(blob: bytes) -> None:
    with pytest.raises(ProtocolError, match="wrong length"):
        feed(Decoder(), frame({"m": "Offer", "first": 0, "count": 1}, blob))


def test_a_message_cannot_be_made_wrong_either() -> None:
    with pytest.raises(ProtocolError):
        messages.Stored(-1)
    with pytest.raises(ProtocolError):
        messages.Commit(b"bytes")  # type: ignore[arg-type]


def test_a_page_with_too_many_runs_loses_only_sparseness() -> None:
    page = messages.Offer.make(0, bytes(32), [(4096 * i, 1) for i in range(messages.MAX_RUNS + 1)])
    assert page.runs == [(0, 4096 * messages.MAX_RUNS + 1)]


def test_expect() -> None:
    assert wire.expect(messages.Stored(1), messages.Stored) == messages.Stored(1)
    with pytest.raises(ProtocolError, match="sent Done where Stored was expected"):
        wire.expect(wire.Done(), messages.Stored)
    with pytest.raises(NoSpace, match=r"^full$"):
        wire.expect(wire.Failure.of(NoSpace("full")), messages.Stored)
    with pytest.raises(BadChunk):
        raise wire.Failure("refetch", "x").error()


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_are_messages_or_protocol_errors(pieces: List[bytes]) -> None:
    try:
        feed(Decoder(), *pieces)
    except ProtocolError:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(CASES), st.dictionaries(st.sampled_from(["m", "first", "count", "index", "blob"]), json_values))
def test_well_formed_frames_with_wrong_fields(message: Message, changes: Any) -> None:
    raw = wire.encode(message)
    length, _ = wire.frame_lengths(raw[:8])
    header = {**json.loads(raw[8 : 8 + length]), **changes}
    try:
        found = feed(Decoder(), frame(header, raw[8 + length :]))
    except ProtocolError:
        return
    assert wire.encode(found[0])
