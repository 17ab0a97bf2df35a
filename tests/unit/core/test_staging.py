"""Staging: the table of chunks, the file in the making, and writing what came over a lane."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

import pytest

from tests.support import CHUNK, FULL, RecordingFiles, content, keep, make_file, manifest_of, piece, shape
from tm_fastcopy.core.codec import PLAIN, encode
from tm_fastcopy.core.errors import BadChunk, NoSpace, ProtocolError, Refused
from tm_fastcopy.core.files import Files, lock
from tm_fastcopy.core.manifest import ZERO_DIGEST
from tm_fastcopy.core.staging import (
    HERE,
    UNKNOWN,
    WANTED,
    ChunkTable,
    Sink,
    Staging,
    copy_sparse,
    discard,
    need_room,
    store_chunk,
    write_sparse,
)

NAME = ".disk.0.fastcopy.part"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def table() -> Iterator[ChunkTable]:
    """A table for "AB-", cut short by a byte, in which A and B are to come over a lane."""
    made = ChunkTable.create(3 * CHUNK - 1, CHUNK)
    made.offer(0, manifest_of("AB-", 3 * CHUNK - 1).digests)
    made.set_state(0, WANTED)
    made.set_state(1, WANTED)
    made.set_state(2, HERE)
    yield made
    made.close()


# --- the table ---------------------------------------------------------------------------------------------------


def test_a_new_table_knows_nothing() -> None:
    table = ChunkTable.create(3 * CHUNK, CHUNK)
    assert [table.state(i) for i in range(3)] == [UNKNOWN] * 3
    assert table.missing() == 3
    assert table.tee_complete
    table.close()


def test_chunks_have_lengths(table: ChunkTable) -> None:
    assert [table.length(i) for i in range(3)] == [CHUNK, CHUNK, CHUNK - 1]
    for index in (-1, 3, 1 << 62):
        with pytest.raises(ProtocolError, match="there is no chunk"):
            table.length(index)


def test_digests_beyond_the_end_are_refused(table: ChunkTable) -> None:
    before = table.digests()
    for first, count in ((-1, 1), (3, 1), (2, 2), (0, 4), (1 << 60, 1)):
        with pytest.raises(ProtocolError):
            table.offer(first, bytes(32 * count))
    assert table.digests() == before


def test_another_process_sees_the_same_table(table: ChunkTable) -> None:
    other = ChunkTable(os.dup(table.fd), table.size, CHUNK)
    other.set_state(0, HERE)
    assert other.digest(1) == table.digest(1) == manifest_of("B").digest(0)
    assert (table.state(0), table.missing()) == (HERE, 1)
    other.give_up_tee()
    assert not table.tee_complete
    assert table.digests() == manifest_of("AB-", table.size).digests
    other.close()


def test_a_table_that_cannot_be_is_refused() -> None:
    with pytest.raises(Refused):
        ChunkTable.create(1 << 60, CHUNK)
    with pytest.raises(Refused):
        ChunkTable.create(1, 12345)


def test_an_empty_file_has_an_empty_table() -> None:
    table = ChunkTable.create(0, CHUNK)
    assert (table.count, table.missing(), table.digests()) == (0, 0, b"")
    table.close()


# --- the file ----------------------------------------------------------------------------------------------------


def test_a_new_staging_file_is_one_hole(tmp_path: Path, directory: int) -> None:
    staging = Staging.open(Files(), directory, NAME, 3 * CHUNK)
    assert staging is not None and staging.fresh
    assert shape(tmp_path / NAME) == "---"
    assert staging.have(1, 2, CHUNK) == [ZERO_DIGEST] * 2
    assert os.stat(tmp_path / NAME).st_mode & 0o777 == 0o600
    staging.close()


def test_what_an_earlier_action_left_is_taken_over_and_looked_at(tmp_path: Path, directory: int) -> None:
    make_file(tmp_path / NAME, "A-B")
    staging = Staging.open(Files(), directory, NAME, 2 * CHUNK)
    assert staging is not None and not staging.fresh
    assert (tmp_path / NAME).stat().st_size == 2 * CHUNK
    assert staging.have(0, 2, CHUNK) == list(manifest_of("A-"))
    staging.close()


def test_only_one_at_a_time(directory: int) -> None:
    first = Staging.open(Files(), directory, NAME, CHUNK)
    assert first is not None
    assert Staging.open(Files(), directory, NAME, 0) is None
    assert os.fstat(first.fd).st_size == CHUNK
    first.close()
    second = Staging.open(Files(), directory, NAME, CHUNK)
    assert second is not None
    second.close()


def test_whoever_was_handed_the_file_holds_the_lock_too(directory: int) -> None:
    first = Staging.open(Files(), directory, NAME, CHUNK)
    assert first is not None
    handed = os.dup(first.fd)
    first.close()
    assert Staging.open(Files(), directory, NAME, CHUNK) is None
    os.close(handed)


def test_a_planted_link_is_not_followed(tmp_path: Path, directory: int) -> None:
    victim = make_file(tmp_path / "victim", "A")
    (tmp_path / NAME).symlink_to(victim)
    staging = Staging.open(Files(), directory, NAME, 0)
    assert staging is not None and staging.fresh
    assert victim.read_bytes() == content("A") and not (tmp_path / NAME).is_symlink()
    staging.close()


def test_a_disk_that_is_linked_to_the_staging_name_is_not_written(tmp_path: Path, directory: int) -> None:
    victim = make_file(tmp_path / "victim", "A")
    os.link(victim, tmp_path / NAME)
    staging = Staging.open(Files(), directory, NAME, 0)
    assert staging is not None and staging.fresh
    assert victim.read_bytes() == content("A")
    staging.close()


def test_a_fifo_at_the_staging_name_gives_way_and_a_directory_is_named(tmp_path: Path, directory: int) -> None:
    os.mkfifo(tmp_path / NAME)
    staging = Staging.open(Files(), directory, NAME, 0)
    assert staging is not None and staging.fresh
    staging.close()
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(Refused, match="directory"):
        Staging.open(Files(), directory, NAME, 0)


def test_a_file_that_got_its_final_name_before_our_lock_is_not_taken(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(tmp_path / NAME, "A")

    def published_meanwhile(fd: int, wait: bool = False) -> bool:
        os.rename(tmp_path / NAME, tmp_path / "disk.0")
        return True

    monkeypatch.setattr("tm_fastcopy.core.staging.lock", published_meanwhile)
    assert Staging.open(Files(), directory, NAME, 0) is None
    assert (tmp_path / "disk.0").read_bytes() == content("A")


def test_what_another_wrote_before_our_lock_is_not_fresh(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_meanwhile(fd: int, wait: bool = False) -> bool:
        os.pwrite(fd, content("A"), 0)
        return True

    monkeypatch.setattr("tm_fastcopy.core.staging.lock", written_meanwhile)
    staging = Staging.open(Files(), directory, NAME, len(content("A")))
    assert staging is not None and not staging.fresh
    staging.close()


# --- one chunk ---------------------------------------------------------------------------------------------------


def sink_for(tmp_path: Path, table: ChunkTable, files: Files, tee: bool = False) -> Sink:
    """A fresh staging file, and a second one for the cache."""
    opened = [keep(os.open(make_file(tmp_path / name, "---", table.size), os.O_RDWR)) for name in ("disk", "tee")]
    return Sink(files, table, opened[0], True, opened[1] if tee else None)


def test_a_sound_chunk_is_written_at_its_place(tmp_path: Path, table: ChunkTable) -> None:
    sink = sink_for(tmp_path, table, Files(), tee=True)
    store_chunk(sink, 1, CHUNK, *encode(piece("B")))
    assert (tmp_path / "disk").read_bytes() == content("-B-", table.size) == (tmp_path / "tee").read_bytes()
    assert (table.state(0), table.state(1)) == (WANTED, HERE)


@pytest.mark.parametrize("data", [piece("C"), piece("A"), piece("B")[:-1] + b"!", bytes(CHUNK)])
def test_a_bad_chunk_writes_nothing(tmp_path: Path, table: ChunkTable, data: bytes) -> None:
    files = RecordingFiles()
    sink = sink_for(tmp_path, table, files, tee=True)
    with pytest.raises(BadChunk, match="chunk 1 is not what its digest says"):
        store_chunk(sink, 1, CHUNK, PLAIN, data)
    assert files.calls == []
    assert table.state(1) == WANTED


@pytest.mark.parametrize(("index", "length"), [(3, CHUNK), (0, CHUNK - 1), (0, CHUNK + 1), (2, CHUNK), (0, 1 << 40)])
def test_a_chunk_that_does_not_exist_writes_nothing(
    tmp_path: Path, table: ChunkTable, index: int, length: int
) -> None:
    files = RecordingFiles()
    with pytest.raises(ProtocolError):
        store_chunk(sink_for(tmp_path, table, files), index, length, PLAIN, piece("A"))
    assert files.calls == []


@pytest.mark.parametrize("state", [UNKNOWN, HERE])
def test_a_chunk_that_nobody_wants_is_not_written(tmp_path: Path, table: ChunkTable, state: int) -> None:
    """The file may be a VM's disk by now."""
    files = RecordingFiles()
    table.set_state(0, state)
    store_chunk(sink_for(tmp_path, table, files), 0, CHUNK, PLAIN, piece("A"))
    assert files.calls == []


class FullTee(Files):
    """A file system on which nothing can be written to one descriptor."""

    def __init__(self) -> None:
        self.full = -1

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        if fd == self.full:
            raise OSError(FULL, "full")
        super().write(fd, data, offset)


def test_a_cache_that_cannot_be_written_is_given_up_and_the_disk_goes_on(tmp_path: Path, table: ChunkTable) -> None:
    files = FullTee()
    sink = sink_for(tmp_path, table, files, tee=True)
    assert sink.tee is not None
    files.full = sink.tee
    store_chunk(sink, 0, CHUNK, PLAIN, piece("A"))
    assert not table.tee_complete
    store_chunk(sink, 1, CHUNK, PLAIN, piece("B"))
    assert (tmp_path / "disk").read_bytes() == content("AB-", table.size)
    assert table.missing() == 0


def test_a_disk_that_cannot_be_written_is_an_error_and_the_chunk_stays_wanted(
    tmp_path: Path, table: ChunkTable
) -> None:
    files = FullTee()
    sink = sink_for(tmp_path, table, files, tee=True)
    files.full = sink.fd
    with pytest.raises(OSError):
        store_chunk(sink, 0, CHUNK, PLAIN, piece("A"))
    assert table.state(0) == WANTED


# --- holes -------------------------------------------------------------------------------------------------------


def test_zero_blocks_of_a_fresh_file_stay_holes(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "----")
    fd = os.open(path, os.O_RDWR)
    write_sparse(Files(), fd, 0, content("-A-B"), fresh=True)
    os.close(fd)
    assert path.read_bytes() == content("-A-B")
    assert shape(path) == "-#-#"


def test_zero_blocks_punch_what_lay_there(tmp_path: Path) -> None:
    path = make_file(tmp_path / "file", "XXXXX")
    fd = os.open(path, os.O_RDWR)
    write_sparse(Files(), fd, CHUNK, content("-A-"), fresh=False)
    os.close(fd)
    assert path.read_bytes() == content("X-A-X")
    assert shape(path) == "#-#-#"


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("before", "fresh"), [("-----", True), ("XXXXX", False)])
def test_a_copy_has_the_holes_of_its_source(tmp_path: Path, before: str, fresh: bool, share: bool) -> None:
    source = os.open(make_file(tmp_path / "source", "-A--B-"), os.O_RDONLY)
    path = make_file(tmp_path / "target", before)
    target = os.open(path, os.O_RDWR)
    copy_sparse(Files(), target, source, 0, 4 * CHUNK, CHUNK, fresh, share)
    os.close(target)
    os.close(source)
    assert path.read_bytes() == content(before[0] + "-A--")
    assert shape(path) == shape(make_file(tmp_path / "expected", before[0] + "-A--"))


def test_a_source_that_ends_early_is_an_error(tmp_path: Path) -> None:
    source = os.open(make_file(tmp_path / "source", "AB"), os.O_RDONLY)
    target = os.open(make_file(tmp_path / "target", "--"), os.O_RDWR)
    with pytest.raises(OSError, match="ended early"):
        Files().copy_range(target, source, CHUNK, 2 * CHUNK, 0)
    os.close(target)
    os.close(source)


def test_room_is_asked_for_with_both_figures() -> None:
    need_room("/d/42/disk.0", 100, 100)
    with pytest.raises(NoSpace, match=r"/d/42/disk\.0 needs 3 MiB and the file system has 1 MiB free"):
        need_room("/d/42/disk.0", 2 * 2**20 + 1, 2**20)


# --- discarding --------------------------------------------------------------------------------------------------


def test_what_was_staged_is_discarded(tmp_path: Path, directory: int) -> None:
    assert discard(Files(), directory, NAME)  # there is nothing
    make_file(tmp_path / NAME, "A")
    assert discard(Files(), directory, NAME)
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_is_at_stays(tmp_path: Path, directory: int) -> None:
    staging = Staging.open(Files(), directory, NAME, CHUNK)
    assert staging is not None
    assert not discard(Files(), directory, NAME)
    assert (tmp_path / NAME).exists()
    staging.close()
    assert discard(Files(), directory, NAME)


def test_what_got_its_name_meanwhile_is_not_discarded(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(tmp_path / NAME, "A")

    def publish(fd: int) -> bool:
        os.rename(tmp_path / NAME, tmp_path / "disk.0")
        make_file(tmp_path / NAME, "B")  # and the next one is at work
        return lock(fd)

    monkeypatch.setattr("tm_fastcopy.core.staging.lock", publish)
    assert discard(Files(), directory, NAME)
    assert (tmp_path / "disk.0").read_bytes() == content("A")
    assert (tmp_path / NAME).read_bytes() == content("B")
