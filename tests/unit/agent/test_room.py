"""Making room, keeping within limits, sweeping.  Free space is simulated: a file system of so many chunks, used up by
images.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Dict

import pytest

from tests.support import CHUNK, RecordingFiles, make_file
from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.lease import EXPIRY, Lease
from tm_fastcopy.agent.room import fit, make_room, sweep
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.messages import DEFAULT_OPTIONS
from tm_fastcopy.core.publish import staging_name

from .entries import add


def pretend(monkeypatch: pytest.MonkeyPatch, free: Callable[[], int], size: int = 0) -> None:
    """Have every file system say that so many bytes are free, of so many."""
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_bavail=free(), f_blocks=size, f_frsize=1))


@pytest.fixture
def capacity(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give the cache's file system a size, in chunks."""

    def give(chunks: int) -> None:
        def free() -> int:
            images = Path(cache.path).glob("*.img")
            return chunks * CHUNK - sum(image.stat().st_size for image in images)

        pretend(monkeypatch, free, chunks * CHUNK)

    return give


def left(cache: Cache) -> set[str]:
    return {entry.id for entry in cache.entries()}


def test_nothing_is_evicted_while_there_is_room(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(10)
    a, b = add(cache, "AA"), add(cache, "BB")
    assert make_room(Files(), cache, 6 * CHUNK) == 6 * CHUNK
    assert left(cache) == {a, b}


def test_only_as_much_is_evicted_as_is_needed(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(6)
    add(cache, "AA", used=10.0)
    b, c = add(cache, "BB", used=30.0), add(cache, "CC", used=20.0)
    assert make_room(Files(), cache, CHUNK) == 2 * CHUNK
    assert left(cache) == {b, c}
    assert make_room(Files(), cache, 3 * CHUNK) == 4 * CHUNK
    assert left(cache) == {b}


def test_what_is_about_to_be_cloned_stays(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(4)
    a, _ = add(cache, "AA", used=10.0), add(cache, "BB", used=20.0)
    assert make_room(Files(), cache, 2 * CHUNK, keep=a) == 2 * CHUNK
    assert left(cache) == {a}


def test_nothing_is_evicted_for_what_cannot_be_had(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(4)
    kept = {add(cache, "AA", used=10.0), add(cache, "BB", used=20.0)}
    assert make_room(Files(), cache, 5 * CHUNK) < 5 * CHUNK
    assert left(cache) == kept


def test_a_lease_from_the_future_or_of_an_agent_that_is_gone_counts_for_nothing(
    cache: Cache, capacity: Callable[[int], None]
) -> None:
    capacity(4)
    for name, seconds in (("gone", 0.0), ("future", 86_400.0)):
        path = Path(cache.path) / f"{name}.lease"
        path.write_bytes(b"%20d" % (10 * CHUNK))
        os.utime(path, (time.time() + seconds,) * 2)
    assert make_room(Files(), cache, 4 * CHUNK) == 4 * CHUNK


def test_leased_room_is_not_free(cache: Cache, capacity: Callable[[int], None]) -> None:
    """Defect A7 of the stock drivers."""
    capacity(4)
    add(cache, "AA")
    held = Lease(Files(), cache, 2 * CHUNK)
    assert make_room(Files(), cache, CHUNK) == 2 * CHUNK
    assert left(cache) == set()
    held.release()


def test_an_image_that_shares_its_blocks_frees_nothing_and_the_rest_is_tried(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, lambda: 7)
    add(cache, "AA")
    assert make_room(Files(), cache, 8) == 7


def test_it_ends_when_nothing_is_freed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda: 7)
    add(cache, "AA", used=10.0)
    kept = {add(cache, "BB", used=20.0), add(cache, "CC", used=30.0)}
    assert make_room(Files(), cache, 8) == 7
    assert left(cache) == kept


# --- sweeping ----------------------------------------------------------------------------------------------------


def scratch(cache: Cache, name: str, age: float) -> Path:
    path = make_file(Path(cache.path) / name, "A")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_what_a_cut_off_transfer_left_is_removed(cache: Cache) -> None:
    old = scratch(cache, staging_name("x.img"), EXPIRY + 10)
    young = scratch(cache, staging_name("y.img"), EXPIRY - 10)
    kept = [add(cache, "A"), add(cache, "B")]
    sweep(Files(), cache, time.time())
    assert not old.exists()
    assert young.exists()
    assert left(cache) == set(kept)


def test_what_somebody_still_writes_stays_however_old(cache: Cache) -> None:
    """Defect A6 of the stock drivers."""
    path = scratch(cache, staging_name("x.img"), EXPIRY * 100)
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    sweep(Files(), cache, time.time())
    assert path.exists()
    os.close(holder)


def test_foreign_files_and_links_stay(cache: Cache, tmp_path: Path) -> None:
    foreign = scratch(cache, "notes.part", EXPIRY * 100)
    victim = make_file(tmp_path / "victim", "A")
    os.utime(victim, (0, 0))
    (Path(cache.path) / staging_name("x.img")).symlink_to(victim)
    sweep(Files(), cache, time.time())
    assert foreign.exists() and victim.exists()


def test_make_room_sweeps_before_it_evicts(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    old = scratch(cache, staging_name("x.img"), EXPIRY + 10)
    pretend(monkeypatch, lambda: 0 if old.exists() else CHUNK)
    kept = add(cache, "A")
    assert make_room(Files(), cache, CHUNK) == CHUNK
    assert left(cache) == {kept}


def quarantined(cache: Cache, letters: str, age: float = 0.0) -> Path:
    """An image in quarantine since *age* seconds."""
    manifest_id = add(cache, letters)
    cache.quarantine(manifest_id, "is bad")
    return Path(cache.path) / f"{manifest_id}.bad"


def test_what_is_in_quarantine_goes_before_what_is_good(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, kept = quarantined(cache, "A"), add(cache, "B")
    pretend(monkeypatch, lambda: 0 if bad.exists() else CHUNK)
    assert make_room(Files(), cache, CHUNK) == CHUNK
    assert left(cache) == {kept}


@pytest.mark.parametrize(("days", "stays"), [(0, True), (6, True), (8, False)])
def test_what_was_in_quarantine_for_a_week_goes_by_itself(cache: Cache, days: int, stays: bool) -> None:
    bad = quarantined(cache, "A")
    sweep(Files(), cache, time.time() + days * 86_400)
    assert bad.exists() == stays


def test_a_pinned_image_stays_whoever_needs_the_room(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(4)
    a, b = add(cache, "AA", used=10.0), add(cache, "BB", used=20.0)
    cache.pin(a, True)
    assert make_room(Files(), cache, 2 * CHUNK) == 2 * CHUNK
    assert left(cache) == {a}
    assert make_room(Files(), cache, 3 * CHUNK) == 2 * CHUNK
    cache.pin(a, False)
    assert make_room(Files(), cache, 3 * CHUNK) == 4 * CHUNK
    assert b not in left(cache) and cache.notes


def test_an_image_that_cannot_be_removed_is_tried_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda: 0)
    kept = {add(cache, "A"), add(cache, "B")}
    cache.files = RecordingFiles(failing={"unlink": errno.EROFS})
    assert make_room(Files(), cache, CHUNK) == 0
    assert left(cache) == kept


# --- limits ------------------------------------------------------------------------------------------------------

OPTIONS = dataclasses.replace(DEFAULT_OPTIONS, limit_percent=0, reserve_percent=0)


def fits(cache: Cache, chunks: int, needed: int = -1, **options: int) -> str:
    image = chunks * CHUNK
    changed = dataclasses.replace(OPTIONS, **options)
    return fit(Files(), cache, changed, image, image if needed < 0 else needed * CHUNK)


def test_without_limits_an_image_fits_that_the_file_system_holds(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(4)
    a = add(cache, "AA")
    assert fits(cache, 2) == "" and left(cache) == {a}
    assert fits(cache, 3) == "" and left(cache) == set()


@pytest.mark.parametrize(
    "options", [{"limit": 4 * CHUNK}, {"limit_percent": 40}, {"limit": 4 * CHUNK, "limit_percent": 90}]
)
def test_the_oldest_go_for_the_limit(cache: Cache, capacity: Callable[[int], None], options: Dict[str, int]) -> None:
    """Defect C2 of the stock drivers."""
    capacity(10)
    add(cache, "AA", used=10.0)
    b = add(cache, "BB", used=20.0)
    assert fits(cache, 1, **options) == "" and left(cache) == {b}
    assert cache.notes == ["1 image removed to keep its limit"]
    reason = fits(cache, 5, **options)
    assert "limit" in reason and left(cache) == {b}, "nothing is lost for what does not fit"


def test_pinned_and_young_images_stay_for_the_limit(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(10)
    now = time.time()
    a, b = add(cache, "AA", used=now - 500), add(cache, "BB", used=now - 100)
    cache.pin(a, True)
    assert "limit" in fits(cache, 1, limit=4 * CHUNK, min_age=200)
    assert left(cache) == {a, b}
    assert fits(cache, 1, limit=4 * CHUNK, min_age=50) == ""
    assert left(cache) == {a}


@pytest.mark.parametrize("options", [{"reserve": 3 * CHUNK}, {"reserve_percent": 30}])
def test_the_reserve_is_not_filled(cache: Cache, capacity: Callable[[int], None], options: Dict[str, int]) -> None:
    capacity(10)
    a, b = add(cache, "AA", used=10.0), add(cache, "BB", used=20.0)
    assert fits(cache, 3, **options) == "" and left(cache) == {a, b}
    assert fits(cache, 3, needed=4, **options) == "" and left(cache) == {b}
    assert "reserved" in fits(cache, 8, **options) and left(cache) == {b}


def test_young_images_stay_for_the_reserve_and_go_for_a_disk(cache: Cache, capacity: Callable[[int], None]) -> None:
    capacity(4)
    kept = {add(cache, "AA", used=time.time())}
    assert "reserved" in fits(cache, 2, reserve=CHUNK, min_age=1000) and left(cache) == kept
    assert make_room(Files(), cache, 3 * CHUNK) == 4 * CHUNK


def test_what_is_in_quarantine_or_in_the_making_counts_for_the_limit(
    cache: Cache, capacity: Callable[[int], None]
) -> None:
    capacity(10)
    scratch(cache, staging_name("x.img"), 0.0)
    bad = quarantined(cache, "A")
    assert fits(cache, 2, limit=4 * CHUNK) == "" and bad.exists()
    assert fits(cache, 3, limit=4 * CHUNK) == "" and not bad.exists()
    assert "limit" in fits(cache, 4, limit=4 * CHUNK)
