"""The cache: what counts as an image in it, and that nothing in it can fail an action."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import CHUNK, RecordingFiles, content, make_file, manifest_of
from tm_fastcopy.agent.cache import ENTRY_MTIME, Cache, CacheSeeds
from tm_fastcopy.core.errors import Refused
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.plan import Place

from .entries import KEY, add


def home(cache: Cache) -> Path:
    return Path(cache.path)


def holds(cache: Cache, manifest_id: str) -> bool:
    fd = cache.image(manifest_id)
    if fd is not None:
        os.close(fd)
    return fd is not None


def opened(base: Path, files: Files | None = None) -> str:
    """"" if a cache can be opened for *base*, otherwise the reason why not."""
    fd = os.open(base, os.O_RDONLY)
    found, reason = Cache.open(files or Files(), fd, str(base))
    os.close(fd)
    if found:
        found.close()
    return reason


# --- where it is -------------------------------------------------------------------------------------------------


def test_it_lies_beside_the_datastores(cache: Cache, base: Path) -> None:
    assert home(cache) == base.parent / ".fastcopy" / "cache"
    assert home(cache).stat().st_mode & 0o777 == 0o700
    assert os.listdir(cache.path) == []


def test_it_is_found_through_a_link_too(cache: Cache, base: Path, tmp_path: Path) -> None:
    add(cache, "A")
    (tmp_path / "link").symlink_to(base)
    fd = os.open(tmp_path / "link", os.O_RDONLY)
    other, _ = Cache.open(Files(), fd, str(tmp_path / "link"))
    os.close(fd)
    assert other is not None and holds(other, manifest_of("A").id)
    other.close()


@pytest.mark.parametrize("planted", [".fastcopy", ".fastcopy/cache"])
def test_a_planted_link_is_not_followed(base: Path, tmp_path: Path, planted: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = base.parent / planted
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "elsewhere")
    assert "not followed" in opened(base)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_in_its_place_is_a_reason(base: Path) -> None:
    (base.parent / ".fastcopy").write_text("")
    assert "not a directory" in opened(base)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_file_system_that_fails_is_a_reason(base: Path, number: int) -> None:
    assert os.strerror(number) in opened(base, RecordingFiles(failing={"make_directory": number}))


def as_nobody(work: Callable[[], bool]) -> bool:
    """Run *work* in a child that is no longer root; say whether it returned True."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach."""
    made = Path(tempfile.mkdtemp(prefix="fastcopy-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.root
@pytest.mark.parametrize("prepared", [False, True])
def test_a_directory_that_cannot_be_written_is_a_reason(public: Path, prepared: bool) -> None:
    base = public / "datastores" / "100"
    base.mkdir(parents=True)
    if prepared:
        (public / "datastores" / ".fastcopy" / "cache").mkdir(parents=True)
    assert as_nobody(lambda: opened(base) != "")
    assert opened(base) == ""


# --- what counts -------------------------------------------------------------------------------------------------


def test_an_image_is_found_by_its_id(cache: Cache) -> None:
    manifest_id = add(cache, "AB-")
    fd = cache.image(manifest_id)
    assert fd is not None
    assert os.pread(fd, 4 * CHUNK, 0) == content("AB-")
    os.close(fd)
    assert [entry.id for entry in cache.entries()] == [manifest_id]


@pytest.mark.parametrize("lost", ["img", "manifest"])
def test_it_counts_only_with_both_files(cache: Cache, lost: str) -> None:
    manifest_id = add(cache, "AB", KEY)
    (home(cache) / f"{manifest_id}.{lost}").unlink()
    assert not holds(cache, manifest_id)
    assert cache.ready(KEY) == ""
    assert cache.entries() == []


@pytest.mark.parametrize("size", [0, CHUNK, 2 * CHUNK - 1, 2 * CHUNK + 1])
def test_an_image_of_the_wrong_size_is_not_used(cache: Cache, size: int) -> None:
    manifest_id = add(cache, "AB")
    os.truncate(home(cache) / f"{manifest_id}.img", size)
    assert not holds(cache, manifest_id)


def test_a_damaged_manifest_does_not_count(cache: Cache) -> None:
    manifest_id = add(cache, "AB", KEY)
    path = home(cache) / f"{manifest_id}.manifest"
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    assert not holds(cache, manifest_id)
    assert cache.ready(KEY) == ""


def test_another_images_manifest_does_not_count(cache: Cache) -> None:
    manifest_id = add(cache, "AB")
    (home(cache) / f"{manifest_id}.manifest").write_bytes(manifest_of("BA").encode())
    assert not holds(cache, manifest_id)


@pytest.mark.parametrize("manifest_id", ["", "..", "../x", "ab", "AB" * 32, "ab" * 32 + "/", "ab" * 32 + "\n"])
def test_an_id_that_is_none_is_never_looked_up(cache: Cache, manifest_id: str) -> None:
    assert cache.manifest(manifest_id) is None
    assert not holds(cache, manifest_id)


def test_foreign_files_are_left_alone(cache: Cache) -> None:
    mine = add(cache, "A")
    for name in ("README", "x.img", "x.manifest", "lost+found", mine.upper() + ".manifest", mine + ".manifest.old"):
        (home(cache) / name).write_text("")
    assert [entry.id for entry in cache.entries()] == [mine]


def test_a_planted_link_is_no_image(cache: Cache, tmp_path: Path) -> None:
    manifest_id = add(cache, "A", KEY)
    secret = make_file(tmp_path / "secret", "B")
    (home(cache) / f"{manifest_id}.img").unlink()
    (home(cache) / f"{manifest_id}.img").symlink_to(secret)
    assert not holds(cache, manifest_id)


def test_what_was_used_last_comes_first(cache: Cache) -> None:
    a, b, c = add(cache, "A", used=30.0), add(cache, "B", used=10.0), add(cache, "C", used=20.0)
    assert [entry.id for entry in cache.entries()] == [a, c, b]
    assert holds(cache, b)
    assert next(entry.id for entry in cache.entries()) == b


def test_a_removed_image_stops_counting_before_it_is_gone(cache: Cache) -> None:
    manifest_id = add(cache, "A")
    cache.files = RecordingFiles()
    cache.remove(manifest_id)
    assert [details[2] for details in cache.files.details] == [f"{manifest_id}.manifest", f"{manifest_id}.img"]
    assert cache.entries() == []


def test_a_manifest_is_whole_before_it_has_its_name(cache: Cache) -> None:
    cache.files = files = RecordingFiles()
    cache.add_manifest(manifest_of("A"), KEY)
    assert files.calls == ["unlink", "create", "write", "sync"] * 2 + ["rename"] * 2 + ["sync_directory"]
    assert [details[3] for details in files.details[8:10]] == [f"{manifest_of('A').id}.manifest", f"{KEY}.source"]


def test_an_entry_that_is_being_published_can_be_seen_until_it_is_ready(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step: whoever looks must never believe that there is nothing to wait for."""
    monkeypatch.setattr("tm_fastcopy.agent.cache._PUBLISHING", 3600.0)  # an fsync may take long
    image, manifest = make_file(home(cache) / "image", "A"), manifest_of("A")
    seen: List[str] = []

    class Looking(Files):
        def _look(self) -> None:
            now = time.time()
            seen.append("publishing" if cache.publishing(KEY, now) else "ready" if cache.ready(KEY) else "nothing")

    def look_after(name: str) -> Any:
        def changed(self: Looking, *arguments: Any) -> Any:
            result = getattr(Files, name)(self, *arguments)
            self._look()
            return result

        return changed

    for name in ("unlink", "create", "write", "sync", "rename"):
        setattr(Looking, name, look_after(name))
    os.utime(image, (ENTRY_MTIME, ENTRY_MTIME))
    image.rename(home(cache) / f"{manifest.id}.img")
    cache.files = Looking()
    cache.add_manifest(manifest, KEY)
    assert seen == ["publishing"] * 9 + ["ready"]


def test_a_manifest_that_cannot_be_written_leaves_nothing(cache: Cache) -> None:
    cache.files = RecordingFiles(failing={"write": errno.ENOSPC})
    with pytest.raises(OSError):
        cache.add_manifest(manifest_of("A"), KEY)
    assert os.listdir(cache.path) == []


# --- by source ---------------------------------------------------------------------------------------------------


def test_a_source_is_ready_when_its_image_is_here(cache: Cache) -> None:
    manifest_id = add(cache, "AB", KEY)
    assert cache.ready(KEY) == manifest_id
    assert cache.ready("f" * 32) == ""


@pytest.mark.parametrize("key", ["", "..", "../" + KEY, KEY.upper(), KEY + "0", KEY + "\n"])
def test_a_key_that_is_none_is_never_looked_up(cache: Cache, key: str) -> None:
    add(cache, "AB", KEY)
    assert cache.ready(key) == ""


@pytest.mark.parametrize("said", [b"", b"\xff\xfe", b"../../etc/passwd\n", b"x" * 1000, b"ab" * 32])
def test_a_source_that_names_nonsense_is_not_ready(cache: Cache, said: bytes) -> None:
    (home(cache) / f"{KEY}.source").write_bytes(said)
    assert cache.ready(KEY) == ""


# --- as seeds ----------------------------------------------------------------------------------------------------


def test_every_chunk_of_every_image_is_a_seed(cache: Cache) -> None:
    first, second = add(cache, "AB"), add(cache, "-C")
    seeds = CacheSeeds(cache, CHUNK)
    assert seeds.find(manifest_of("B").digest(0)) == Place(first, 1)
    assert seeds.find(manifest_of("C").digest(0)) == Place(second, 1)
    assert seeds.find(manifest_of("D").digest(0)) is None
    assert seeds.find(manifest_of("-").digest(0)) is None
    assert os.pread(seeds.open(second), CHUNK, CHUNK) == content("C")
    assert seeds.open(second) == seeds.open(second)
    seeds.close()


def test_images_of_another_chunk_size_are_no_seeds(cache: Cache) -> None:
    add(cache, "AB")
    assert CacheSeeds(cache, 2 * CHUNK).find(manifest_of("A").digest(0)) is None


def test_a_seed_that_was_evicted_cannot_be_opened(cache: Cache) -> None:
    manifest_id = add(cache, "AB")
    seeds = CacheSeeds(cache, CHUNK)
    cache.remove(manifest_id)
    with pytest.raises(KeyError):
        seeds.open(manifest_id)


def test_the_index_of_seeds_is_bounded(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tm_fastcopy.agent.cache._MAX_SEEDS", 2)
    add(cache, "AB", used=20.0)
    add(cache, "C", used=10.0)
    seeds = CacheSeeds(cache, CHUNK)
    assert seeds.find(manifest_of("A").digest(0)) is not None
    assert seeds.find(manifest_of("C").digest(0)) is None


# --- what is wrong ------------------------------------------------------------------------------------------------


def files_of(cache: Cache) -> List[str]:
    return sorted(path.suffix for path in home(cache).iterdir())


def test_an_image_that_was_written_to_is_quarantined_and_said_so(cache: Cache) -> None:
    manifest_id = add(cache, "AB", KEY)
    os.utime(home(cache) / f"{manifest_id}.img")
    assert cache.ready(KEY) == ""
    assert files_of(cache) == [".bad", ".source"]
    assert cache.quarantined() == [manifest_id] and cache.entries() == []
    assert cache.notes == [f"image {manifest_id[:8]} was written to"]


def test_the_same_image_can_come_again(cache: Cache) -> None:
    manifest_id = add(cache, "AB", KEY)
    cache.quarantine(manifest_id, "is bad")
    assert add(cache, "AB", KEY) == manifest_id
    assert cache.ready(KEY) == "", "not in the conversation that found it bad: it may be the old one still"
    later = Cache(Files(), os.dup(cache.fd), cache.path)
    assert later.ready(KEY) == manifest_id
    later.close()


def test_an_image_that_cannot_be_quarantined_is_not_used_all_the_same(cache: Cache) -> None:
    manifest_id = add(cache, "AB")
    cache.files = RecordingFiles(failing={"unlink": errno.EROFS, "rename": errno.EROFS})
    cache.quarantine(manifest_id, "is bad")
    assert files_of(cache) == [".img", ".manifest"]
    assert not holds(cache, manifest_id)


def test_quarantine_takes_the_manifest_away_first(cache: Cache) -> None:
    manifest_id = add(cache, "A")
    cache.files = files = RecordingFiles()
    cache.quarantine(manifest_id, "is bad")
    assert files.calls == ["unlink", "rename"]


@pytest.mark.parametrize("damage", ["manifest", "source"])
def test_a_damaged_index_is_said(cache: Cache, damage: str) -> None:
    manifest_id = add(cache, "AB", KEY)
    (home(cache) / (f"{manifest_id}.manifest" if damage == "manifest" else f"{KEY}.source")).write_bytes(b"rubbish")
    assert cache.ready(KEY) == ""
    assert len(cache.notes) == 1 and "damaged" in cache.notes[0]


def test_what_is_only_not_there_is_not_worth_a_word(cache: Cache) -> None:
    manifest_id = add(cache, "AB", KEY)
    cache.remove(manifest_id)
    assert cache.ready(KEY) == "" and not holds(cache, manifest_id)
    assert cache.notes == []


def test_what_is_said_is_bounded_and_said_once(cache: Cache) -> None:
    for text in ("a", "b", "a", *"cdefgh"):
        cache.note(text)
    assert cache.notes == ["a", "b", "c", "d"]


# --- pins ---------------------------------------------------------------------------------------------------------


def test_an_image_is_pinned_and_unpinned(cache: Cache) -> None:
    manifest_id, other = add(cache, "A", used=2.0), add(cache, "B", used=1.0)
    cache.pin(manifest_id, True)
    cache.pin(manifest_id, True)
    assert [entry.pinned for entry in cache.entries()] == [True, False]
    assert cache.pinned(manifest_id) and not cache.pinned(other)
    cache.pin(manifest_id, False)
    cache.pin(manifest_id, False)
    assert not cache.pinned(manifest_id)


@pytest.mark.parametrize("manifest_id", ["", "..", "../x", "ab" * 32, "AB" * 32])
def test_only_an_image_can_be_pinned(cache: Cache, manifest_id: str) -> None:
    with pytest.raises(Refused, match="no image"):
        cache.pin(manifest_id, True)
    assert os.listdir(cache.path) == []
