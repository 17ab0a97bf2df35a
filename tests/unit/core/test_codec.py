"""How a chunk's bytes travel, and what a peer cannot make us do with them."""

from __future__ import annotations

import struct
import threading
import tracemalloc
from typing import List

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.support import CHUNK, piece
from tm_fastcopy.core.codec import PLAIN, ZSTD, decode, encode
from tm_fastcopy.core.errors import BadChunk

TEXT = (b"the words of a log file, again and again " * 2000)[:CHUNK]


def test_what_shrinks_is_compressed() -> None:
    codec, payload = encode(TEXT)
    assert codec == ZSTD
    assert len(payload) < CHUNK // 10
    assert decode(codec, payload, CHUNK) == TEXT


def test_what_does_not_shrink_is_sent_as_it_is() -> None:
    data = piece("A")
    assert encode(data) == (PLAIN, data)
    assert decode(PLAIN, data, CHUNK) == data


def test_a_sample_that_shrinks_may_be_wrong() -> None:
    """Only the middle compresses: the whole is sent plain after all."""
    data = piece("A") + bytes(8 * 1024) + piece("B")
    assert encode(data)[0] == PLAIN


@given(st.binary(max_size=300), st.integers(1, 200))
def test_nothing_grows_and_all_comes_back(data: bytes, times: int) -> None:
    whole = data * times
    codec, payload = encode(whole)
    assert len(payload) <= len(whole)
    assert decode(codec, payload, len(whole)) == whole


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK + 1, 1 << 40])
@pytest.mark.parametrize("codec", [PLAIN, ZSTD])
def test_a_lie_about_the_length_is_found(codec: int, length: int) -> None:
    payload = TEXT if codec == PLAIN else zstandard.compress(TEXT)
    with pytest.raises(BadChunk):
        decode(codec, payload, length)


@pytest.mark.parametrize("payload", [b"", b"\x28\xb5\x2f\xfd", b"no zstd at all", zstandard.compress(TEXT)[:-10]])
def test_what_cannot_be_read_is_a_bad_chunk(payload: bytes) -> None:
    with pytest.raises(BadChunk):
        decode(ZSTD, payload, CHUNK)


@pytest.mark.parametrize("codec", [2, 255, 1 << 40])
def test_an_unknown_codec_is_a_bad_chunk(codec: int) -> None:
    with pytest.raises(BadChunk, match="unknown encoding"):
        decode(codec, TEXT, CHUNK)


def bombs() -> List[bytes]:
    """64 MiB of zeros in a few KiB: honest, silent about the length, and with a forged length."""
    zeros = bytes(64 << 20)
    honest = zstandard.ZstdCompressor(write_content_size=True).compress(zeros)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    single = honest[4] >> 5 & 1
    at = 5 if single else 6
    assert struct.unpack_from("<I", honest, at)[0] == len(zeros)
    forged = honest[:at] + struct.pack("<I", CHUNK) + honest[at + 4 :]
    assert zstandard.frame_content_size(forged) == CHUNK
    return [honest, silent, forged]


@pytest.mark.parametrize("bomb", bombs(), ids=["honest", "silent", "forged"])
def test_a_bomb_allocates_no_more_than_a_chunk(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadChunk):
            decode(ZSTD, bomb, CHUNK)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_threads_do_not_share_a_compressor() -> None:
    wrong: List[int] = []

    def work(letter: str) -> None:
        data = (piece(letter, 1000) * 70)[:CHUNK]
        for i in range(50):
            codec, payload = encode(data)
            if decode(codec, payload, CHUNK) != data:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "ABCD"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
