"""What the bench counts is what a slow and obvious count would give."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Tuple

import pytest

from bench import measure
from bench.images import edge
from bench.images.edge import BLOCK, GIB, KIB, MIB
from bench.images.mutate import mutate
from bench.measure import Table, changed_blocks, changed_chunks, sha256, size_text


@pytest.fixture
def pair(tmp_path: Path) -> Tuple[Path, Path]:
    return tmp_path / "old", tmp_path / "new"


def slowly(old: Path, new: Path, unit: int, count_zeros: bool = True) -> Tuple[int, int]:
    """The same count from whole contents, one unit after another."""
    now = new.read_bytes()
    was = old.read_bytes()[: len(now)].ljust(len(now), b"\0")
    pieces = [now[at : at + unit] for at in range(0, len(now), unit) if now[at : at + unit] != was[at : at + unit]]
    pieces = [piece for piece in pieces if count_zeros or any(piece)]
    return len(pieces), sum(map(len, pieces))


@pytest.mark.parametrize("unit", [BLOCK, 64 * KIB, MIB, 4 * MIB, 8 * MIB])
@pytest.mark.parametrize("count_zeros", [True, False])
@pytest.mark.parametrize("grown", [0, MIB + 123])
def test_changed_chunks_of_a_mutated_image(pair: Tuple[Path, Path], unit: int, count_zeros: bool, grown: int) -> None:
    for path in pair:
        edge.islands(path, 24 * MIB, 60)
        with path.open("r+b") as file:
            file.write(bytes(range(256)) * (6 * MIB // 256))
    mutate(pair[1], 11, contiguous=MIB, scattered=20, zeroed=MIB, punched=MIB, grown=grown)
    expected = slowly(*pair, unit, count_zeros)
    assert changed_chunks(*pair, unit, count_zeros=count_zeros) == expected
    assert expected[0] > 1
    assert changed_blocks(*pair, unit, count_zeros=count_zeros) == expected[1]


def test_the_same_content_is_no_change_whatever_is_a_hole(pair: Tuple[Path, Path]) -> None:
    edge.zeros(pair[0], MIB)
    edge.hole(pair[1], MIB)
    assert changed_chunks(*pair, 64 * KIB) == (0, 0)
    assert changed_chunks(pair[1], pair[0], 64 * KIB) == (0, 0)


def test_a_shorter_and_a_longer_second_version(pair: Tuple[Path, Path]) -> None:
    edge.odd(pair[0], 100_001)
    pair[1].write_bytes(pair[0].read_bytes()[:70_000])
    assert changed_chunks(*pair, BLOCK) == (0, 0)
    assert changed_chunks(pair[1], pair[0], BLOCK) == (8, 100_001 - 17 * BLOCK)
    edge.empty(pair[1])
    assert changed_chunks(*pair, BLOCK) == (0, 0)
    assert changed_blocks(pair[1], pair[0]) == 100_001


@pytest.mark.parametrize("offset", [0, 4 * MIB - 1, 4 * MIB, 5 * MIB + 17, 9 * MIB - 1])
def test_one_byte_costs_one_block(pair: Tuple[Path, Path], offset: int) -> None:
    for path in pair:
        edge.random_data(path, 9 * MIB)
    with pair[1].open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    assert changed_blocks(*pair) == BLOCK
    assert changed_chunks(*pair, MIB) == (1, MIB)


def test_holes_are_not_read(pair: Tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, path in enumerate(pair):
        edge.islands(path, 20 * GIB, 50, seed)
    bytes_read = 0
    read = measure._read

    def counting(fd: int, offset: int, length: int) -> bytes:
        nonlocal bytes_read
        bytes_read += length
        return read(fd, offset, length)

    monkeypatch.setattr(measure, "_read", counting)
    assert changed_blocks(*pair) == 100 * BLOCK
    assert bytes_read == 2 * 100 * BLOCK


def test_a_chunk_size_must_be_positive(pair: Tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        changed_chunks(*pair, 0)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 9 * MIB + 77])
def test_sha256_of_holes_and_data(tmp_path: Path, size: int) -> None:
    path = tmp_path / "image"
    edge.hole(path, size)
    assert sha256(path) == hashlib.sha256(bytes(size)).hexdigest()
    edge.random_data(path, size)
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sha256_between_islands(tmp_path: Path) -> None:
    path = tmp_path / "image"
    edge.islands(path, 33 * MIB + 5, 6)
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (806 * MIB, "806.0 MiB"),
        (4 * GIB, "4.0 GiB"),
        (5000 * GIB, "5000.0 GiB"),
    ],
)
def test_sizes_as_people_read_them(count: int, text: str) -> None:
    assert size_text(count) == text


def test_a_table_is_plain_aligned_text_of_any_width() -> None:
    table = Table("what", "bytes", title="Copies")
    table.add("[red] " + "x" * 300, 5)
    table.add("short", 12_345)
    lines = table.render().splitlines()
    assert lines[0] == "Copies"
    assert len({len(line) for line in lines[1:]}) == 1
    assert "[red] " + "x" * 300 in lines[3]
    assert lines[3].endswith("     5 |") and lines[4].endswith(" 12345 |")
    with pytest.raises(ValueError, match="3 cells under 2"):
        table.add(1, 2, 3)
