"""Assembly: carrying out a plan on a real file.  Letters are chunks (see `tests.support`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import CHUNK, NO_SHARING, RecordingFiles, content, make_file, manifest_of, piece, shape
from tm_fastcopy.core.assembly import Assembly
from tm_fastcopy.core.codec import encode
from tm_fastcopy.core.errors import BadChunk
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.manifest import Manifest
from tm_fastcopy.core.plan import Place
from tm_fastcopy.core.staging import ChunkTable, Sink, Staging, store_chunk


class Seeds:
    """Files of this machine, each with the chunks that it is said to have."""

    def __init__(self, path: Path, said: str) -> None:
        self.path = path
        self.fd: Optional[int] = None
        self._places = {d: Place("seed", i) for i, d in enumerate(manifest_of(said)) if any(d)}

    def find(self, digest: bytes) -> Optional[Place]:
        return self._places.get(digest)

    def open(self, source: str) -> int:
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDONLY)
        return self.fd

    def damaged(self, source: str) -> None:
        self.complaints = [*getattr(self, "complaints", []), source]


class Bench:
    """One file in the making below *home*."""

    def __init__(self, home: Path, files: Optional[Files] = None) -> None:
        self.home, self.files = home, files or RecordingFiles()
        self.directory = os.open(home, os.O_RDONLY)
        self.fetched = ""

    def assemble(
        self,
        letters: str,
        size: int = -1,
        page: int = 100,
        seeds: Optional[Seeds] = None,
        check_seeds: bool = False,
        tee: bool = False,
        lose: str = "",
    ) -> Manifest:
        """Do all that an agent does for a file, lanes included; chunks in *lose* never arrive."""
        wanted = manifest_of(letters, size)
        staging = Staging.open(self.files, self.directory, "disk", wanted.size)
        second = Staging.open(self.files, self.directory, "tee", wanted.size) if tee else None
        table = ChunkTable.create(wanted.size, CHUNK)
        assert staging is not None
        try:
            assembly = Assembly(self.files, staging, table, seeds, check_seeds=check_seeds, tee=second)
            missing: List[int] = []
            for first in range(0, wanted.count, page):
                digests = wanted.digests[32 * first : 32 * (first + page)]
                missing += assembly.offer(first, digests, [(0, wanted.size)])
            self.fetched = "".join(letters[index] for index in missing)
            sink = Sink(self.files, table, staging.fd, staging.fresh, second.fd if second else None)
            for index in reversed(missing):  # lanes keep no order
                if letters[index] not in lose:
                    data = piece(letters[index])[: table.length(index)]
                    store_chunk(sink, index, len(data), *encode(data))
            self.reused = assembly.reused
            result = assembly.finish()
            self.tee_complete = table.tee_complete
            return result
        finally:
            table.close()
            for held in (staging, second):
                if held:
                    held.close()
            if seeds and seeds.fd is not None:
                os.close(seeds.fd)
                seeds.fd = None

    def result(self, name: str = "disk") -> bytes:
        return (self.home / name).read_bytes()


@pytest.fixture(params=["sharing as it is", "no sharing"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(tmp_path, RecordingFiles(lacking=NO_SHARING if request.param == "no sharing" else ()))
    yield made
    os.close(made.directory)


@pytest.mark.parametrize(("letters", "size"), [("", -1), ("A", 5), ("AB-A", -1), ("---", -1), ("ABCB", 3 * CHUNK + 7)])
@pytest.mark.parametrize("page", [1, 3, 100])
def test_all_over_lanes(bench: Bench, letters: str, size: int, page: int) -> None:
    assert bench.assemble(letters, size, page) == manifest_of(letters, size)
    assert bench.result() == content(letters, size)
    assert shape(bench.home / "disk") == "".join("-" if letter == "-" else "#" for letter in letters)


def test_what_repeats_is_fetched_once(bench: Bench) -> None:
    bench.assemble("AABAB")
    assert bench.fetched == "AB"
    assert bench.reused == 3 * CHUNK
    assert bench.result() == content("AABAB")


def test_it_goes_on_where_it_was_cut_off(bench: Bench) -> None:
    with pytest.raises(BadChunk, match="2 chunks of the file did not arrive"):
        bench.assemble("ABCDE-", lose="BD")
    bench.assemble("ABCDE-")
    assert bench.fetched == "BD"
    assert bench.result() == content("ABCDE-")


def test_what_another_image_left_is_overwritten(bench: Bench) -> None:
    make_file(bench.home / "disk", "XAXXXBX")
    bench.assemble("-A-BA")
    assert bench.fetched == "B"
    assert bench.result() == content("-A-BA")
    assert shape(bench.home / "disk") == "-#-##"


def test_seeds_give_what_they_have(bench: Bench) -> None:
    seed = make_file(bench.home / "seed", "XABX")
    bench.assemble("ABCA", seeds=Seeds(seed, "XABX"))
    assert bench.fetched == "C"
    assert bench.result() == content("ABCA")


def test_a_seed_that_is_gone_costs_a_fetch(bench: Bench) -> None:
    bench.assemble("AB", seeds=Seeds(bench.home / "no such file", "AB"))
    assert bench.fetched == "AB"
    assert bench.result() == content("AB")
    assert bench.reused == 0


def test_a_seed_that_ends_early_costs_a_fetch(bench: Bench) -> None:
    seed = make_file(bench.home / "seed", "A")
    bench.assemble("AB", seeds=Seeds(seed, "AB"))
    assert bench.result() == content("AB")


def test_a_rotten_seed_costs_a_fetch_when_seeds_are_checked(bench: Bench) -> None:
    seed = make_file(bench.home / "seed", "AX")
    bench.assemble("AB", seeds=Seeds(seed, "AB"), check_seeds=True)
    assert bench.result() == content("AB")


def test_a_copy_within_the_file_is_verified(bench: Bench) -> None:
    """The first A came from a seed that nobody checked; its copy must not spread the rot unseen."""
    seed = make_file(bench.home / "seed", "X")
    with pytest.raises(BadChunk, match="not what it was"):
        bench.assemble("AA", seeds=Seeds(seed, "A"))


def test_a_copy_of_what_never_came_is_an_error(bench: Bench) -> None:
    with pytest.raises(BadChunk, match="chunk 0, of which chunk 1 is a copy"):
        bench.assemble("AAB", lose="A")


def test_a_copy_over_a_short_last_chunk(bench: Bench) -> None:
    letters, size = "--A", 2 * CHUNK + 10
    bench.assemble(letters, size)
    bench.assemble(letters, size)
    assert bench.fetched == ""
    assert bench.result() == content(letters, size)


@pytest.mark.parametrize("left", ["", "A-C-", "XXXX"])
def test_the_tee_is_complete_whatever_the_disk_was_made_of(bench: Bench, left: str) -> None:
    if left:
        make_file(bench.home / "disk", left)
    seed = make_file(bench.home / "seed", "BX")
    bench.assemble("AB-DA", seeds=Seeds(seed, "B"), tee=True)
    assert bench.tee_complete
    assert bench.result("tee") == bench.result() == content("AB-DA")
    assert shape(bench.home / "tee") == "##-##"


def test_a_tee_that_fails_is_given_up(tmp_path: Path) -> None:
    class NoCopies(Files):
        def copy_range(self, target: int, source: int, at: int, length: int, to: int, share: bool = True) -> None:
            raise OSError(28, "full")

    make_file(tmp_path / "disk", "A")
    bench = Bench(tmp_path, NoCopies())
    bench.assemble("AB", tee=True)
    os.close(bench.directory)
    assert not bench.tee_complete
    assert bench.result() == content("AB")


def test_room_is_reserved_only_where_data_will_come(tmp_path: Path) -> None:
    files = RecordingFiles()
    bench = Bench(tmp_path, files)
    make_file(tmp_path / "disk", "A")
    bench.assemble("ABC-D")
    os.close(bench.directory)
    assert [call[2:] for call in files.details if call[0] == "allocate"] == [
        (CHUNK, 2 * CHUNK),
        (4 * CHUNK, CHUNK),
    ]


letters = st.text("ABC-", max_size=7)


@given(letters, letters, letters, st.integers(1, 4), st.booleans(), st.booleans())
def test_whatever_lies_there(
    tmp_path_factory: pytest.TempPathFactory, wanted: str, left: str, seed: str, page: int, share: bool, tee: bool
) -> None:
    home = tmp_path_factory.mktemp("assembly")
    bench = Bench(home, RecordingFiles(lacking=() if share else NO_SHARING))
    if left:
        make_file(home / "disk", left)
    try:
        bench.assemble(wanted, page=page, seeds=Seeds(make_file(home / "seed", seed), seed), tee=tee)
    finally:
        os.close(bench.directory)
    assert bench.result() == content(wanted)
    assert shape(home / "disk") == "".join("-" if letter == "-" else "#" for letter in wanted)
    assert not set(bench.fetched) & set(seed)
    if tee:
        assert bench.result("tee") == content(wanted)
