"""Listings of a VM's directory, and the notes and names by which a moved one arrives and departs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, List

import pytest

from tests.support import RecordingFiles
from tm_fastcopy.core.arriving import (
    Note,
    aside_name,
    finish_giving_up,
    give_up,
    moved_name,
    publish_directory,
    read_note,
    write_note,
)
from tm_fastcopy.core.errors import ProtocolError, Refused, Superseded
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.listing import RECEIPT, TOKEN, Entry, decode, encode, listing, own_link, tree_id
from tm_fastcopy.core.publish import staging_name
from tm_fastcopy.core.receipt import Receipt

NOTE = Note("host1:/var/lib/one/datastores/0/42", 3, "ab" * 32)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def seen(path: Path) -> List[Entry]:
    fd = opened(path)
    try:
        return listing(fd, str(path))
    finally:
        os.close(fd)


# --- listings ------------------------------------------------------------------------------------------------------


def test_what_is_listed_and_what_is_left_out(tmp_path: Path) -> None:
    tree = tmp_path / "disk.1.snap"
    tree.mkdir()
    (tree / "0").write_bytes(b"abc")
    (tree / "disk.1.snap").symlink_to(".")
    (tree / ".0.fastcopy.part").write_bytes(b"staged")
    (tmp_path / "disk.1").symlink_to("disk.1.snap/0")
    (tmp_path / "disk.2").symlink_to(f"{tmp_path}/disk.2.snap/7")  # as older drivers made it
    (tmp_path / RECEIPT).write_text("note")
    (tmp_path / f"{TOKEN}{'0' * 32}").write_text("")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "monitor.sock"))
        entries = seen(tmp_path)
    assert [(entry.path, entry.kind, entry.text) for entry in entries] == [
        ("", "d", ""),
        ("disk.1", "l", "disk.1.snap/0"),
        ("disk.1.snap", "d", ""),
        ("disk.1.snap/0", "f", ""),
        ("disk.1.snap/disk.1.snap", "l", "."),
        ("disk.2", "l", "disk.2.snap/7"),
    ]
    assert entries[3].size == 3
    assert decode(encode(entries)) == entries


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("disk.1", "/etc/passwd"), ("disk.1", "../43/disk.1.snap/0"), ("disk.1", "disk.2.snap/0"), ("disk.1", "vm.xml"),
        ("disk.1", "disk.1.snap/0/../x"), ("vm.xml", "disk.1.snap/0"), ("disk.1.snap/x", "."), ("tpm/disk.1", "."),
    ],
)  # fmt: skip
def test_any_other_link_is_refused(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).symlink_to(text)
    with pytest.raises(Refused, match="symbolic link out of its own layout"):
        seen(tmp_path)
    assert own_link(path, text, str(tmp_path)) == ""


def test_a_device_a_pipe_and_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused, match="fifo is neither a file nor a directory"):
        seen(tmp_path)
    (tmp_path / "fifo").unlink()
    for name in "abc":
        (tmp_path / name).touch()
    monkeypatch.setattr("tm_fastcopy.core.listing.MAX_ENTRIES", 3)
    with pytest.raises(Refused, match="more than 3 files"):
        seen(tmp_path)


GOOD: List[Any] = [["", "d", 0o755, 0, 0, 0, ""], ["a", "f", 0o644, 5, 5, 1, ""]]


def changed(row: int, column: int, value: Any) -> bytes:
    rows = [list(entry) for entry in GOOD]
    rows[row][column] = value
    return json.dumps(rows).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"[1]", b"[" * 100_000, json.dumps(GOOD[1:]).encode(), json.dumps(GOOD * 2).encode(),
        json.dumps([GOOD[0]] * 5000).encode(), json.dumps([GOOD[0], ["disk.1", "l", 0o777, 0, 0, 0, "/etc"]]).encode(),
        *(changed(1, 0, path) for path in ("/a", "a/", "..", "a/../b", "b/a", "", "a\0", RECEIPT, ".a.fastcopy.part")),
        changed(1, 0, 5), changed(1, 0, "a/" * 20 + "a"), changed(1, 1, "x"), changed(1, 2, 0o4755), changed(1, 3, -1),
        changed(1, 3, 1 << 62), changed(1, 3, True), changed(1, 6, "text"), changed(1, 1, "l"),
    ],
)  # fmt: skip
def test_what_is_no_listing_is_refused(raw: bytes) -> None:
    assert len(decode(json.dumps(GOOD).encode())) == 2
    with pytest.raises(ProtocolError):
        decode(raw)


def test_the_id_of_a_tree_is_that_of_all_that_is_in_it() -> None:
    entries = [Entry(*row) for row in GOOD]
    first = tree_id(entries, {"a": "m"})
    assert first == tree_id(entries[::-1], {"a": "m"}) and len(first) == 64
    later = [entries[0], entries[1]._replace(mtime_ns=7, data=0)]  # what a copy may have otherwise
    assert tree_id(later, {"a": "m"}) == first
    others = [
        tree_id(entries, {"a": "n"}),
        tree_id(entries[:1], {}),
        *(tree_id([entries[0], entries[1]._replace(**change)], {"a": "m"})  # type: ignore[arg-type]
          for change in ({"path": "b"}, {"mode": 0o600}, {"size": 6}, {"kind": "l"}, {"text": "x"})),
    ]  # fmt: skip
    assert first not in others and len(set(others)) == len(others)


# --- arriving and departing ----------------------------------------------------------------------------------------


def stage(base: Path) -> Path:
    staged = base / staging_name("42")
    staged.mkdir()
    (staged / "disk.0").write_bytes(b"new")
    return staged


def publish(files: Files, base: Path, staged: Path) -> Receipt:
    fds = opened(base), opened(staged)
    try:
        return publish_directory(files, *fds, "42", f"{base}/42", NOTE)
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("there", ["nothing", "empty", "full", "full, no exchange"])
def test_a_directory_gets_its_name_and_the_old_one_goes(tmp_path: Path, there: str) -> None:
    files = RecordingFiles(lacking=("exchange",) if "no exchange" in there else ())
    if there != "nothing":
        (tmp_path / "42").mkdir()
    if there.startswith("full"):
        (tmp_path / "42" / "stale").write_text("stale")
    receipt = publish(files, tmp_path, stage(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["42"]
    assert sorted(os.listdir(tmp_path / "42")) == [RECEIPT, "disk.0"]
    assert (receipt.path, receipt.manifest) == (f"{tmp_path}/42/{RECEIPT}", NOTE.manifest)
    assert receipt.inode == (tmp_path / "42" / RECEIPT).stat().st_ino
    changes = "".join({"rename": "r", "exchange": "x", "sync_directory": "s"}.get(call, "") for call in files.calls)
    order = {"full": "ssxs", "full, no exchange": "ssxrsrs"}
    assert changes == order.get(there, "ssrs")
    fd = opened(tmp_path / "42")
    assert read_note(fd) == NOTE
    os.close(fd)


def test_what_is_staged_by_another_is_not_published(tmp_path: Path) -> None:
    staged = stage(tmp_path)
    fds = opened(tmp_path), opened(staged)
    staged.rename(tmp_path / "taken")
    with pytest.raises(Superseded):
        publish_directory(Files(), *fds, "42", f"{tmp_path}/42", NOTE)
    for fd in fds:
        os.close(fd)
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("text", ["", "x", "{}", "[]", '{"version": 2}', '{"version": 1, "source": "a", "seq": "x"}'])
def test_a_note_that_cannot_be_understood_is_none(tmp_path: Path, text: str) -> None:
    fd = opened(tmp_path)
    write_note(Files(), fd, NOTE)
    assert read_note(fd) == NOTE
    (tmp_path / RECEIPT).write_text(text)
    assert read_note(fd) is None
    os.close(fd)


def test_a_directory_goes_on_its_receipt_and_on_no_other(tmp_path: Path) -> None:
    (tmp_path / "42" / "tpm").mkdir(parents=True)
    (tmp_path / "42" / "tpm").chmod(0o500)
    (tmp_path / moved_name("42")).mkdir()
    (tmp_path / moved_name("42") / "left").write_text("by a crash")
    fd, good = opened(tmp_path), Receipt(f"/x/42/{RECEIPT}", "m", 1, 2, 3)
    for wrong in (Receipt(good.path, "n", 1, 2, 3), Receipt("/x/42/disk.0", "m", 1, 2, 3)):
        with pytest.raises(Refused, match="something else"):
            give_up(Files(), fd, "42", "42", "m", wrong)
    assert (tmp_path / "42" / "tpm").exists()
    give_up(Files(), fd, "42", "42", "m", good)
    assert os.listdir(tmp_path) == []
    finish_giving_up(Files(), fd, "42", "42")
    os.close(fd)
    assert aside_name("42") != moved_name("42")
