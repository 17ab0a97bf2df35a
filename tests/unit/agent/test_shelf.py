"""The disk that stays as a seed: what is kept of it, when, and what keeps it from being kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from tests.support import CHUNK, NO_SHARING, RecordingFiles, content, make_file, manifest_of
from tm_fastcopy.agent import shelf
from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.shelf import Note
from tm_fastcopy.core import image_messages, messages, wire
from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.paths import open_base

from .conversation import Conversation
from .test_live import Sharing

LETTERS = "AB-CD"
NOTE = Note(manifest_of(LETTERS), True, messages.DEFAULT_OPTIONS)


@pytest.fixture
def disk(base: Path) -> Path:
    """Disk 0 of VM 42, which has rested."""
    (base / "42").mkdir()
    return make_file(base / "42" / "disk.0", LETTERS)


@pytest.fixture
def talk(base: Path) -> Iterator[Callable[..., Conversation]]:
    begun: List[Conversation] = []

    def work(files: Files, **arguments: Any) -> Conversation:
        begun.append(Conversation(base, create=False, files=files, **arguments))
        return begun[-1]

    yield work
    for one in begun:
        if not getattr(one, "ended", False):
            one.end()


def end(one: Conversation) -> None:
    one.ended = True  # type: ignore[attr-defined]
    one.end()


def bring_back(one: Conversation, chunk: int = CHUNK, manifest: str = "", **options: Any) -> None:
    """What the front-end asks for in mvds."""
    one.ask(messages.OpenSource(one.format), messages.Source)
    count = -(-len(content(LETTERS)) // chunk)
    one.ask(messages.Scan(0, 1, chunk), messages.Offer)
    one.ask(messages.Scan(1, count - 1, chunk), messages.Offer)
    one.ask(messages.CacheOptions(**{**vars(messages.DEFAULT_OPTIONS), **options}), wire.Done)
    one.ask(image_messages.Keep(manifest or manifest_of(LETTERS).id), wire.Done)
    one.ask(messages.CloseSource(), wire.Done)


def remove(base: Path, files: Files, name: str = "disk.0") -> None:
    """What the front-end asks for in delete, to the end of the conversation."""
    one = Conversation.__new__(Conversation)
    from tm_fastcopy.agent.lanes import LaneDoor
    from tm_fastcopy.agent.session import Session

    one.door = LaneDoor()
    session = Session(files, lambda: True, one.door)
    assert session.handle(messages.Remove(str(base), 42, name, 0, 5)) == wire.Done()
    session.end()
    one.door.remove()


def cached(base: Path, suffix: str) -> List[str]:
    return sorted(path.name for path in (base.parent / ".fastcopy/cache").glob(f"*{suffix}"))


def assert_kept(base: Path) -> None:
    name = manifest_of(LETTERS).id
    assert cached(base, "") == [f"{name}.img", f"{name}.manifest"]
    image = base.parent / ".fastcopy/cache" / f"{name}.img"
    assert image.read_bytes() == content(LETTERS)
    assert image.stat().st_mode & 0o777 == 0o440


def test_a_reflink_is_kept_when_all_is_over(base: Path, disk: Path, talk: Any) -> None:
    one = talk(Sharing())
    bring_back(one)
    assert cached(base, ".img") == []
    disk.unlink()  # oned had it removed meanwhile
    end(one)
    assert_kept(base)


def test_where_blocks_cannot_be_shared_the_removed_disk_is_the_image(base: Path, disk: Path, talk: Any) -> None:
    files = RecordingFiles(lacking=NO_SHARING)
    one = talk(files)
    bring_back(one)
    end(one)
    assert cached(base, ".img") == [] and len(cached(base, ".kept")) == 1
    inode = disk.stat().st_ino
    remove(base, files, "")
    assert_kept(base)
    assert (base.parent / ".fastcopy/cache" / f"{manifest_of(LETTERS).id}.img").stat().st_ino == inode
    assert not disk.parent.exists()


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize(
    "wrong",
    [{"manifest": "ab" * 32}, {"enable": False}, {"limit": 1}, {"reserve": 1 << 60}, {"chunk": 2 * CHUNK}],
    ids=str,
)
def test_what_does_not_belong_or_fit_there_is_not_kept(
    base: Path, disk: Path, talk: Any, wrong: Any, sharing: bool
) -> None:
    files = Sharing() if sharing else RecordingFiles(lacking=NO_SHARING)
    one = talk(files)
    bring_back(one, **wrong)
    end(one)
    remove(base, files)
    assert [name for name in cached(base, "") if not name.endswith(".kept")] == []
    assert not disk.exists()


@pytest.mark.parametrize("sharing", [True, False])
def test_a_disk_that_was_written_since_is_not_kept(base: Path, disk: Path, talk: Any, sharing: bool) -> None:
    files = Sharing() if sharing else RecordingFiles(lacking=NO_SHARING)
    one = talk(files)
    bring_back(one)
    with disk.open("r+b") as file:
        file.write(b"!")
    end(one)
    remove(base, files)
    assert cached(base, ".img") == [] and cached(base, ".part") == []


@pytest.mark.parametrize("sharing", [True, False])
def test_a_disk_that_had_not_rested_is_read_once_more(
    base: Path, disk: Path, talk: Any, sharing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write within one tick of the clock leaves no trace in the times: here one that sets them back."""
    files = Sharing() if sharing else RecordingFiles(lacking=NO_SHARING)
    looked: List[bool] = []
    honest = shelf._is
    monkeypatch.setattr(shelf, "_is", lambda fd, manifest: looked.append(honest(fd, manifest)) or looked[-1])
    one = talk(files)
    bring_back(one)
    end(one)
    remove(base, files)
    assert looked == [True]
    assert_kept(base)


@pytest.mark.parametrize("sharing", [True, False])
def test_content_that_is_not_what_was_read_never_becomes_an_image(
    base: Path, disk: Path, talk: Any, sharing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Sharing() if sharing else RecordingFiles(lacking=NO_SHARING)
    one = talk(files)
    bring_back(one)
    identity = shelf.Identity.of(disk.stat())
    with disk.open("r+b") as file:
        file.seek(2 * CHUNK)  # what was a hole
        file.write(b"!")
    os.utime(disk, ns=(identity.mtime_ns, identity.mtime_ns))
    monkeypatch.setattr(shelf.Identity, "of", classmethod(lambda cls, status: identity))
    end(one)
    remove(base, files)
    assert cached(base, ".img") == [] and cached(base, ".part") == []


@pytest.mark.parametrize("during", ["_is", "fit"])
def test_a_guest_that_still_writes_while_its_disk_becomes_an_image_is_noticed(
    base: Path, disk: Path, talk: Any, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RecordingFiles(lacking=NO_SHARING)
    one = talk(files)
    bring_back(one)
    end(one)
    honest = getattr(shelf, during)
    with disk.open("r+b", buffering=0) as guest:

        def work(*arguments: Any) -> Any:
            found = honest(*arguments)
            os.pwrite(guest.fileno(), b"!", 0)
            return found

        monkeypatch.setattr(shelf, during, work)
        remove(base, files)
        assert os.pread(guest.fileno(), 1, 0) == b"!"
    fd = open_base(str(base))
    cache, _ = Cache.open(files, fd, str(base))
    os.close(fd)
    assert cache is not None and cache.image(manifest_of(LETTERS).id) is None
    cache.close()


def test_a_disk_with_a_second_name_is_left_to_it(base: Path, disk: Path, talk: Any) -> None:
    files = RecordingFiles(lacking=NO_SHARING)
    os.link(disk, base / "other")
    one = talk(files)
    bring_back(one)
    end(one)
    remove(base, files)
    assert cached(base, ".img") == [] and (base / "other").read_bytes() == content(LETTERS)


def test_an_image_that_is_there_already_is_not_kept_twice(base: Path, disk: Path, talk: Any) -> None:
    for action in (1, 2):
        files = Sharing()
        one = talk(files, action=action)
        bring_back(one)
        end(one)
        assert_kept(base)
    assert "rename" not in files.calls


def test_a_note_and_what_is_none() -> None:
    raw = NOTE.encode()
    assert Note.decode(raw) == NOTE
    for bad in (b"", b"\n", raw[:-1], b"{}" + raw[raw.index(b"\n") :], raw.replace(b'"version": 1', b'"version": 2'),
                raw.replace(b'"enable": true', b'"enable": 7'), b"[1]\n", bytes(len(raw))):  # fmt: skip
        with pytest.raises((ValueError, FastcopyError)):
            Note.decode(bad)
