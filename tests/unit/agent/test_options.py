"""How far the cache may be used, how disks are made, what is said about it, and images of this very machine."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import CHUNK, NO_SHARING, RecordingFiles, content, make_file, manifest_of, shape
from tm_fastcopy.agent.cache import ENTRY_MTIME
from tm_fastcopy.core import identity, messages, wire
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.identity import Identity, boot_id
from tm_fastcopy.core.messages import DEFAULT_OPTIONS
from tm_fastcopy.core.publish import staging_name
from tm_fastcopy.core.receipt import Receipt

from .conversation import Conversation
from .entries import KEY


class Sharing(Files):
    """A file system that can share blocks, as far as anyone can tell who does not look at them."""

    def clone(self, target: int, source: int) -> bool:
        os.ftruncate(target, 0)
        at, size = 0, os.fstat(source).st_size
        while at < size:
            at += os.copy_file_range(source, target, size - at, at, at)
        return True


Talk = Callable[..., Conversation]


@pytest.fixture
def talk(base: Path) -> Iterator[Talk]:
    """Begin a conversation about a new disk, with changed *options*; the one before is ended."""
    begun: List[Conversation] = []

    def work(files: Files | None = None, **options: Any) -> Conversation:
        if begun:
            begun[-1].end()
        begun.append(Conversation(base, name=f"disk.{len(begun)}", action=len(begun) + 1, files=files))
        if options:
            begun[-1].ask(dataclasses.replace(DEFAULT_OPTIONS, **options), wire.Done)
        return begun[-1]

    yield work
    begun[-1].end()


def said(published: Any) -> str:
    assert isinstance(published, messages.Published), published
    how: str = published.how
    return how


def cached(base: Path, letters: str, suffix: str = ".img") -> Path:
    return base.parent / ".fastcopy" / "cache" / (manifest_of(letters).id + suffix)


on_both = pytest.mark.parametrize("files", [Sharing(), RecordingFiles(lacking=NO_SHARING)], ids=["shares", "copies"])


# --- how far the cache is used -----------------------------------------------------------------------------------


@on_both
def test_a_cache_that_is_switched_off_is_neither_read_nor_filled(talk: Talk, base: Path, files: Files) -> None:
    talk(files).push("AB", key=KEY)
    off = talk(files, enable=False)
    assert off.clone("AB") == messages.Missing()
    how = said(off.push("AC", key="f" * 32))
    assert off.fetched == "AC", "nor is it a seed"
    assert how == "lanes, past the cache (cache: switched off)"
    talk(files)
    assert cached(base, "AB").exists() and not cached(base, "AC").exists()


@on_both
@pytest.mark.parametrize(
    ("options", "reason"), [({"limit": CHUNK}, "limit"), ({"reserve": 1 << 60}, "reserved")], ids=["limit", "reserve"]
)
def test_an_image_that_does_not_fit_goes_past_the_cache(
    talk: Talk, base: Path, files: Files, options: Any, reason: str
) -> None:
    one = talk(files, **options)
    how = said(one.push("AB", key=KEY))
    assert "past the cache" in how and reason in how
    assert one.disk.read_bytes() == content("AB")
    talk(files)
    assert not cached(base, "AB").exists()


@on_both
def test_an_older_image_makes_way_for_a_new_one(talk: Talk, base: Path, files: Files) -> None:
    talk(files).push("AB", key=KEY)
    how = said(talk(files, limit=3 * CHUNK, reserve_percent=0).push("CD", key="f" * 32))
    assert "1 image removed to keep its limit" in how and "past" not in how
    talk(files)
    assert not cached(base, "AB").exists() and cached(base, "CD").exists()


def test_an_image_that_cannot_be_named_goes_past_the_cache(talk: Talk) -> None:
    assert "too recently" in said(talk(Sharing()).push("AB"))


@pytest.mark.parametrize("message", [{"limit_percent": 101}, {"min_age": 1 << 40}, {"clone": "x"}, {"verify": "no"}])
def test_options_that_cannot_be_are_no_message(message: Any) -> None:
    with pytest.raises(wire.ProtocolError):
        dataclasses.replace(DEFAULT_OPTIONS, **message)


def test_options_come_before_the_transfer(talk: Talk) -> None:
    one = talk()
    one.begin("AB", key=KEY)
    assert one.refused(DEFAULT_OPTIONS).kind == "protocol"


# --- how disks are made ------------------------------------------------------------------------------------------


def test_reflink_or_nothing_where_blocks_are_shared(talk: Talk) -> None:
    assert said(talk(Sharing(), clone="reflink").push("AB", key=KEY)) == "lanes, reflink"
    assert said(talk(Sharing(), clone="reflink").clone("AB")) == "cache, reflink"


@pytest.mark.parametrize("files", [RecordingFiles(lacking=NO_SHARING), Sharing()], ids=["copies", "limit"])
def test_reflink_or_nothing_where_it_cannot_be(talk: Talk, files: Files) -> None:
    one = talk(files, clone="reflink", limit=CHUNK)
    failure = one.begin("AB", key=KEY)
    assert isinstance(failure, wire.Failure) and failure.kind == "refused"
    assert "FASTCOPY_CLONE=reflink" in failure.text and failure.text.count("\n") == 0
    assert os.listdir(one.disk.parent) == []


def test_reflink_of_a_cached_image_where_it_cannot_be(talk: Talk) -> None:
    copies = RecordingFiles(lacking=NO_SHARING)
    talk(copies).push("AB", key=KEY)
    one = talk(copies, clone="reflink")
    failure = one.clone("AB")
    assert isinstance(failure, wire.Failure) and "cannot be a reflink" in failure.text
    assert not one.disk.exists()


def test_reflink_and_no_holes_contradict_each_other(talk: Talk) -> None:
    one = talk(Sharing(), clone="reflink")
    assert "SPARSE=NO" in one.begin("AB", key=KEY, sparse=False).text


class Counting(Sharing):
    """Counts what shares blocks, or lets the kernel do so."""

    def __init__(self) -> None:
        self.shared: List[str] = []

    def clone(self, target: int, source: int) -> bool:
        self.shared.append("clone")
        return super().clone(target, source)

    def clone_range(self, *arguments: int) -> bool:
        self.shared.append("clone_range")
        return False

    def copy_range(self, *arguments: Any, share: bool = True) -> None:
        self.shared += ["copy_range"] if share and (len(arguments) < 6 or arguments[5]) else []
        super().copy_range(*arguments, share=False) if len(arguments) < 6 else super().copy_range(*arguments)


@pytest.mark.parametrize("enable", [True, False])
def test_a_copy_shares_nothing_and_keeps_holes(talk: Talk, enable: bool) -> None:
    files = Counting()
    cold = talk(files, clone="copy", enable=enable)
    probes = len(files.shared)
    cold.push("A--B", key=KEY)
    warm = talk(files, clone="copy", enable=enable)
    if enable:
        assert said(warm.clone("A--B")) == "cache, copied"
    else:
        warm.push("A--B", key=KEY)
    assert files.shared[probes:] == ["clone"] * (len(files.shared) - probes) and len(files.shared) == 2 * probes
    for one in (cold, warm):
        assert one.disk.read_bytes() == content("A--B") and shape(one.disk) == "#--#"


def rot(path: Path) -> None:
    """Change a byte and leave the time as it was."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, (ENTRY_MTIME, ENTRY_MTIME))


def test_verified_before_the_reflink(talk: Talk, base: Path) -> None:
    talk(Sharing()).push("AB", key=KEY)
    assert said(talk(Sharing(), verify="always").clone("AB")) == "cache, verified, reflink"
    rot(cached(base, "AB"))
    assert said(talk(Sharing()).clone("AB")) == "cache, reflink", "which is what the scrub is for"
    one = talk(Sharing(), verify="always")
    assert one.clone("AB") == messages.Missing()
    assert cached(base, "AB", ".bad").exists() and not cached(base, "AB").exists()
    how = said(one.push("AB", key=KEY))
    assert how.startswith("lanes, reflink (cache: image ") and "damaged chunk" in how
    assert one.disk.read_bytes() == content("AB")
    again = talk(Sharing(), verify="always")
    assert said(again.clone("AB")) == "cache, verified, reflink"


# --- what was wrong is said --------------------------------------------------------------------------------------


def test_a_damaged_copy_is_quarantined_and_said(talk: Talk, base: Path) -> None:
    copies = RecordingFiles(lacking=NO_SHARING)
    talk(copies).push("AB", key=KEY)
    talk(copies)
    rot(cached(base, "AB"))
    one = talk(copies)
    assert one.clone("AB") == messages.Missing() and not one.disk.exists()
    how = said(one.push("AB", key=KEY))
    assert "damaged chunk" in how and cached(base, "AB", ".bad").exists()
    assert one.disk.read_bytes() == content("AB")


def test_a_damaged_seed_is_quarantined_and_said(talk: Talk, base: Path) -> None:
    talk(Sharing()).push("ABCD", key=KEY)
    rot(cached(base, "ABCD"))
    one = talk(Sharing())
    how = said(one.push("ABXD", key="f" * 32))
    assert "damaged chunk" in how
    assert not cached(base, "ABCD").exists() and cached(base, "ABCD", ".bad").exists()
    assert one.disk.read_bytes() == content("ABXD")


@pytest.mark.parametrize("suffix", [".manifest", ".img"])
def test_a_damaged_index_is_said(talk: Talk, base: Path, suffix: str) -> None:
    talk(Sharing()).push("AB", key=KEY)
    path = cached(base, "AB", suffix)
    path.chmod(0o600)
    path.write_bytes(b"rubbish")
    one = talk(Sharing())
    assert one.clone("AB") == messages.Missing()
    how = said(one.push("AB", key=KEY))
    assert "(cache: " in how and one.disk.read_bytes() == content("AB")
    assert said(talk(Sharing()).clone("AB")) == "cache, reflink"


class Unwritable(Sharing):
    """A cache in which no image can be begun."""

    def create(self, directory: int, name: str, mode: int = 0o600) -> int:
        if name.endswith(".img.fastcopy.part") or name.endswith(".lease"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return super().create(directory, name, mode)


def test_a_cache_that_cannot_be_written_is_said(talk: Talk) -> None:
    one = talk(Unwritable())
    how = said(one.push("AB", key=KEY))
    assert how == "lanes, past the cache (cache: it cannot be written (Read-only file system))"
    assert one.disk.read_bytes() == content("AB")


# --- an image of this machine ------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "datastores" / "1").mkdir(parents=True)
    return make_file(tmp_path / "datastores" / "1" / "image", "AB-C")


def local_clone(image: Path, **changes: Any) -> messages.CloneLocal:
    found = Identity.of(image.stat())
    place = boot_id(), str(image.parent), image.name
    message = messages.CloneLocal(*place, *found, "", found.size, 0o640, True, "raw", 0)
    return dataclasses.replace(message, **changes)


@on_both
@pytest.mark.parametrize("size", [4, 6])
def test_it_is_cloned_where_it_lies(talk: Talk, base: Path, image: Path, files: Files, size: int) -> None:
    one = talk(files)
    published = one.ask(local_clone(image, size=size * CHUNK, manifest=manifest_of("AB-C").id), messages.Published)
    assert said(published).startswith("image on this machine, ")
    receipt = Receipt.decode(published.receipt)
    assert (receipt.manifest, receipt.size) == (manifest_of("AB-C").id, size * CHUNK)
    assert one.disk.read_bytes() == content("AB-C") + bytes((size - 4) * CHUNK)
    assert not list((base.parent / ".fastcopy" / "cache").iterdir()), "it needs no cache"


def test_a_copy_of_it_is_sparse_and_its_own(talk: Talk, image: Path) -> None:
    one = talk(RecordingFiles(lacking=NO_SHARING))
    assert said(one.ask(local_clone(image))) == "image on this machine, copied"
    assert shape(one.disk) == "##-#"
    full = talk(Sharing())
    assert said(full.ask(local_clone(image, sparse=False))) == "image on this machine, copied"
    assert full.disk.stat().st_blocks * 512 >= 4 * CHUNK


ANOTHER = {
    "machine": {"boot": "00000000-0000-0000-0000-000000000000"},
    "no machine": {"boot": ""},
    "inode": {"inode": 1},
    "device": {"device": 1},
    "length": {"length": 1},
    "time": {"mtime_ns": 1},
    "change": {"ctime_ns": 1},
    "no file": {"rest": "other"},
    "no directory": {"base": "/nonexistent"},
    "above": {"rest": "../1/image"},
    "itself": {"rest": "."},
}


@pytest.mark.parametrize("what", ANOTHER)
def test_another_file_is_not_taken_for_it(talk: Talk, image: Path, what: str) -> None:
    one = talk(Sharing())
    assert one.ask(local_clone(image, **ANOTHER[what])) == messages.Missing()
    assert not one.disk.exists()


@pytest.mark.parametrize("where", ["file", "directory"])
def test_no_link_is_followed_to_it(talk: Talk, image: Path, where: str) -> None:
    message = local_clone(image)
    if where == "file":
        (image.parent / "link").symlink_to(image)
        message = dataclasses.replace(message, rest="link")
    else:
        (image.parent.parent / "1/sub").symlink_to(image.parent)
        message = dataclasses.replace(message, rest="sub/image")
    assert talk(Sharing()).ask(message) == messages.Missing()


def test_a_machine_that_has_no_boot_id_is_nobodys(talk: Talk, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "BOOT_ID", "/nonexistent")
    assert boot_id() == ""
    one = talk(Sharing())
    assert one.opened.boot == ""
    assert one.ask(local_clone(image)) == messages.Missing()


def test_an_image_that_is_written_meanwhile_gives_no_disk(talk: Talk, image: Path) -> None:
    class Late(Sharing):
        def clone(self, target: int, source: int) -> bool:
            done = super().clone(target, source)
            os.utime(image, (image.stat().st_mtime + 1,) * 2)  # another time at each call: opening tries one, too
            return done

    one = talk(Late())
    failure = one.refused(local_clone(image))
    assert failure.kind == "source-changed" and str(image) in failure.text
    assert not one.disk.exists() and os.listdir(one.disk.parent) == []


def test_an_image_on_another_file_system_is_left_to_the_cache(
    talk: Talk, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Path("/dev/shm") / f"fastcopy-test-{os.getpid()}"
    if elsewhere.parent.stat().st_dev == image.stat().st_dev:
        elsewhere = Path("/proc/self/status")
    else:
        elsewhere.write_bytes(content("A"))
    try:
        message = local_clone(elsewhere, length=elsewhere.stat().st_size, size=CHUNK)
        one = talk()
        half = make_file(one.disk.parent / staging_name(one.disk.name), "X")
        assert one.ask(message) == messages.Missing()
        assert not one.disk.exists() and half.exists(), "what can be resumed stays"
    finally:
        if elsewhere.parent.name == "shm":
            elsewhere.unlink()


def test_a_disk_that_is_being_read_is_not_replaced_by_it(base: Path, image: Path) -> None:
    (base / "42").mkdir()
    make_file(base / "42" / "disk.0", "X")
    one = Conversation(base, create=False)
    assert "not opened for writing" in one.refused(local_clone(image)).text
    one.end()


