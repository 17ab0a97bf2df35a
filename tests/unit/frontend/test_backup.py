"""Backups through OpenNebula's datastore drivers, played by shell scripts, and the programs that run beside us."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from bench.testbed.processes import alive
from tests.support import qemu_img
from tm_fastcopy.core.errors import FastcopyError, NoSpace, Refused
from tm_fastcopy.frontend import backup as module
from tm_fastcopy.frontend import programs
from tm_fastcopy.frontend.backup import Backups, Documents, parse_list
from tm_fastcopy.frontend.qemu_img import drop_bitmaps, to_raw

IMAGE = "<IMAGE><ID>5</ID><SIZE>7</SIZE><VMS><ID>1</ID></VMS><DATASTORE_ID>102</DATASTORE_ID></IMAGE>"
STORE = "<DATASTORE><ID>102</ID><DS_MAD>RSYNC</DS_MAD></DATASTORE>"
VM = "<VM><ID>1</ID><NAME>it's &lt;one&gt;</NAME></VM>"


class FakeOned:
    """Answers with these documents."""

    def __init__(self, **documents: str) -> None:
        self.documents = {"one.vm.info": VM, "one.image.info": IMAGE, "one.datastore.info": STORE}
        self.documents.update({f"one.{name}.info": text for name, text in documents.items()})
        self.asked: List[Tuple[Any, ...]] = []

    def ask(self, *words: Any) -> ElementTree.Element:
        self.asked.append(words)
        return ElementTree.fromstring(self.documents[words[0]])


def documents(oned: FakeOned) -> Documents:
    return Documents.ask(oned, 1, 5)  # type: ignore[arg-type]


@pytest.fixture
def remotes(tmp_path: Path) -> Path:
    """A place with a blank and an apostrophe in its name."""
    (tmp_path / "it's re motes/datastore/rsync").mkdir(parents=True)
    return tmp_path / "it's re motes"


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# --- documents and lists -----------------------------------------------------------------------------------------


def test_the_datastore_is_asked_with_its_secrets() -> None:
    oned = FakeOned()
    found = documents(oned)
    assert ("one.datastore.info", 102, True) in oned.asked
    assert (found.driver, found.size) == ("rsync", 7 << 20)


def test_the_backup_of_another_vm_is_refused() -> None:
    for vms in ("", "<ID>2</ID>", "<ID>1</ID><ID>2</ID>"):
        with pytest.raises(Refused, match="image 5 is no backup of VM 1"):
            documents(FakeOned(image=f"<IMAGE><VMS>{vms}</VMS></IMAGE>"))


@pytest.mark.parametrize("name", ["", "../fs", "rsync;true", "a b", "x" * 65])
def test_a_driver_is_only_ever_a_name(name: str) -> None:
    with pytest.raises(Refused, match="no name of one"):
        documents(FakeOned(datastore=f"<DATASTORE><DS_MAD>{name}</DS_MAD></DATASTORE>")).driver  # noqa: B018


def test_the_driver_is_given_all_documents_and_the_increment(remotes: Path) -> None:
    program(remotes / "datastore/rsync/ls", 'cat > "${0%/*}/given"; echo "$@" >&2\n'
            """echo '{"0": "rsync://102/0:ab/var/x/disk.0.0", "tpm": "rsync://102/0:ab/disk.tpm.0"}'""")  # fmt: skip
    found = asyncio.run(Backups(remotes, {}).disks(documents(FakeOned()), 3))
    assert found == {"0": "rsync://102/0:ab/var/x/disk.0.0", "tpm": "rsync://102/0:ab/disk.tpm.0"}
    given = ElementTree.parse(remotes / "datastore/rsync/given").getroot()
    assert given.tag == "DS_DRIVER_ACTION_DATA"
    assert [item.tag for item in given] == ["DATASTORE", "VM", "IMAGE"]
    assert given.findtext("VM/NAME") == "it's <one>"


BAD: Dict[str, str] = {
    "": "did not print a list", "[]": "did not print a list", '{"0": 1}': "names no address",
    '{"0": "/etc/passwd"}': "names no address", '{"0": "--help"}': "names no address",
    '{"0": "rsync://a b"}': "names no address", '{"0": "rsync://a\\nb"}': "names no address",
    '{"0": "rsync+rbd://x"}': "Ceph", json.dumps({"0": "rsync://" + "x" * 9000}): "names no address",
    json.dumps({str(n): "rsync://x" for n in range(60000)}): "did not print a list",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_what_is_no_list_of_disks_is_a_sentence(text: str) -> None:
    with pytest.raises(FastcopyError, match=BAD[text]):
        parse_list(text.encode(), "ls")


# --- fetching ----------------------------------------------------------------------------------------------------


def fetch(remotes: Path, script: str) -> bytes:
    program(remotes / "datastore/downloader.sh", script)
    with tempfile.TemporaryFile() as file:
        asyncio.run(Backups(remotes, {"ONE_AUTH": "there"}).fetch("rsync://x/y?$(z)", file, "disk 0"))
        file.seek(0)
        return file.read()


def test_an_address_is_one_word_and_the_environment_is_the_calls(remotes: Path) -> None:
    assert fetch(remotes, 'printf "%s|" "$@" "$ONE_AUTH"') == b"--nodecomp|rsync://x/y?$(z)|-|there|"


def test_a_download_that_fails_is_its_last_words(remotes: Path) -> None:
    with pytest.raises(FastcopyError, match=r"disk 0 cannot be fetched: .*downloader.sh failed: .*Error copying$"):
        fetch(remotes, "echo half; echo; echo Error copying >&2; exit 255")


def test_a_full_front_end_is_what_a_failed_download_says(remotes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda fd: 3 << 20)
    with pytest.raises(NoSpace, match=r"no room on the front-end for disk 0 \(3 MiB free\)"):
        fetch(remotes, "exit 1")


# --- programs ----------------------------------------------------------------------------------------------------


def run(*argv: str, **arguments: Any) -> bytes:
    with tempfile.TemporaryFile() as output:
        asyncio.run(programs.run(argv, {"PATH": "/usr/bin:/bin"}, output, **arguments))
        output.seek(0)
        return output.read()


def test_a_program_reads_its_input_to_the_end() -> None:
    assert run("cat", input=b"x" * 300000) == b"x" * 300000


def test_how_a_program_fails_is_one_sentence() -> None:
    with pytest.raises(FastcopyError, match="/is/not/there cannot be run: No such file"):
        run("/is/not/there")
    with pytest.raises(FastcopyError, match=r"sh failed: it ended with status 3$"):
        run("sh", "-c", "exit 3")
    with pytest.raises(FastcopyError, match=r"sh failed: a b$"):
        run("sh", "-c", "printf 'a\n\n  b\n' >&2; exit 3")


@pytest.mark.parametrize("child", ["exec sleep 60", "trap '' TERM; while :; do sleep 0.1; done"], ids=["heeds", "deaf"])
def test_a_program_without_progress_is_ended_with_its_children(
    child: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program itself ends at once; its child later, or only when it is killed."""
    monkeypatch.setattr(programs, "_LOOK", 0.05)
    monkeypatch.setattr(programs, "_ENDING", 2.0)
    pid = tmp_path / "pid"
    begun = lambda: (pid.exists() and pid.stat().st_size > 0) or object()  # noqa: E731 - until then all is progress
    with pytest.raises(FastcopyError, match="no progress for"):
        run("sh", "-c", 'sh -c "$1" "$0"; true', str(pid), f'echo $$ > "$0"; {child}', stall=0.5, progress=begun)
    assert not alive(int(pid.read_text()))


def test_who_is_cancelled_ends_the_program_first() -> None:
    async def main() -> bool:
        with tempfile.TemporaryFile() as output:
            task = asyncio.ensure_future(programs.run(["sh", "-c", "echo $$; exec sleep 60"], os.environ, output))
            while not os.fstat(output.fileno()).st_size:
                await asyncio.sleep(0.01)
            output.seek(0)
            pid = int(output.read())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return alive(pid)

    assert asyncio.run(main()) is False


# --- what becomes of it ------------------------------------------------------------------------------------------


def test_a_raw_disk_has_what_the_guest_saw_and_its_holes(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 65536 + bytes(5 << 20) + b"y" * 512)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "qcow2")
    with (tmp_path / "qcow2").open("rb") as source, tempfile.TemporaryFile(dir=tmp_path) as target:
        asyncio.run(to_raw(source.fileno(), target.fileno(), os.environ, "disk 0"))
        assert target.read() == (tmp_path / "raw").read_bytes()
        assert os.fstat(target.fileno()).st_blocks * 512 < 1 << 20


def test_bitmaps_are_removed(tmp_path: Path) -> None:
    path, names = tmp_path / "qcow2", ("one-1-0", "--help")
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    for name in names:
        qemu_img("bitmap", "--add", "-f", "qcow2", "--", path, name)
    assert all(f"name: {name}\n" in qemu_img("info", path) for name in names)
    with path.open("r+b") as file:
        asyncio.run(drop_bitmaps(file.fileno(), os.environ, "disk 0"))
    assert not any(f"name: {name}\n" in qemu_img("info", path) for name in names)


def test_what_qemu_img_says_names_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"nothing")
    with (tmp_path / "bad").open("r+b") as file, pytest.raises(FastcopyError) as caught:
        asyncio.run(drop_bitmaps(file.fileno(), os.environ, "disk 0"))
    assert "/proc/" not in str(caught.value) and "disk 0 cannot be made a disk" in str(caught.value)
