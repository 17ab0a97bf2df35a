"""The command line: help that shows examples, words that are refused in one sentence, and shell completion."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

from tm_fastcopy import cli
from tm_fastcopy.commands import cache, completion, hosts, push, status
from tm_fastcopy.core.errors import FastcopyError, Refused
from tm_fastcopy.frontend.inquiry import Answer
from tm_fastcopy.frontend.progress import Snapshot

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def self_contained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A front-end of nobody but us."""
    (tmp_path / "one/var").mkdir(parents=True)
    monkeypatch.setenv("ONE_LOCATION", str(tmp_path / "one"))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"fastcopy {command}" in said[said.index("examples:") :]
    assert max(map(len, said[: said.index("examples:")].splitlines())) < 80


@pytest.mark.parametrize(
    "argv", [[], ["explode"], ["cancel"], ["push", "one"], ["cache", "ls"], ["completion", "fish"], ["status", "x"]]
)
def test_words_that_are_not_understood_end_with_2(argv: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "usage: fastcopy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["cancel", "seven"], ["'seven'", "VM"]),
        (["cancel", "7"], ["nothing runs for VM 7", "fastcopy status"]),
        (["cancel", "7", "1", "--keep"], ["nothing runs for disk.1 of VM 7"]),
        (["push", "/nonexistent/image", "host1:/datastores/0/7/disk.0"], ["no such file", "/nonexistent"]),
        (["push", "image", "host1"], ["HOST:/PATH"]),
        (["push", "image", "host1:/tmp/disk.0"], ["HOST:DATASTORE/VM/disk.N", "nowhere else"]),
        (["push", "image", "host1:/datastores/0/7/passwd"], ["not a VM's disk"]),
        (["push", "--", "image", "-oProxyCommand=x:/datastores/0/7/disk.0"], ["HOST:/PATH"]),
        (["cache", "pin", "host1:/datastores/0", "xyz"], ["beginning of a digest"]),
        (["cache", "scrub", "host1:/datastores/0", "--rate", "fast"], ["--rate", "suffix"]),
        (["cache", "ls", "host1"], ["credentials for oned"]),
        (["doctor"], ["no OpenNebula front-end", "oned.conf"]),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    argv: List[str], words: List[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONE_AUTH", "/nonexistent/auth")
    assert cli.main(argv) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"fastcopy {argv[0]}: ")
    for word in words:
        assert word.lower() in line.lower(), line


def test_nothing_that_runs_is_said_in_words_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "Nothing is being transferred, and no daemon runs.\n"
    assert cli.main(["status", "--json"]) == 0
    assert capsys.readouterr().out.split() == ['{', '"daemons":', '[],', '"transfers":', '[]', '}']


ROW = {
    "vm": 42, "disk": "disk.0", "host": "host1", "directory": "/d/0/42", "action": "clone", "phase": "transfer",
    "done": 300 << 20, "total": 1200 << 20, "rate": 50.0 * (1 << 20), "left": 18.0, "age": 6.1,
}  # fmt: skip


def test_a_transfer_is_a_line_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = {**ROW, "vm": None, "disk": "", "phase": "turn", "total": 0, "left": None}
    from tm_fastcopy.commands import show

    show.console().print(status.picture([Answer({"pid": 1}, [ROW, waiting])]))  # type: ignore[list-item]
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["VM", "DISK", "HOST", "ACTION", "PHASE", "DONE", "RATE", "LEFT", "AGE"]
    for word in ("42", "disk.0", "host1", "clone", "transfer", "300 MiB of 1.2 GiB", "50.0 MiB/s", "18 s", "6 s"):
        assert word in first
    assert second.split() == ["(all)", "host1", "clone", "turn", "6", "s"]


def test_what_stands_beside_the_bar() -> None:
    assert push.shown(Snapshot(0, 0, 0.0)) == ""
    assert push.shown(Snapshot(1 << 20, 4 << 20, 1 << 20)) == "1.0 MiB of 4.0 MiB  1.0 MiB/s  3 s left"


def test_hosts_and_datastores_are_read() -> None:
    assert hosts.host_and_bases("host1:/datastores/100/", {}) == ("host1", ["/datastores/100"])
    for bad in ("-oX", "", ":100", "a b"):
        with pytest.raises(Refused):
            hosts.host_and_bases(bad, {})


def test_an_image_is_named_by_what_is_enough_of_its_digest() -> None:
    from tm_fastcopy.core.cache_messages import EntryRow

    one, other = (EntryRow(name * 32, 1, 1, 1, 1, 0, 0, False, False) for name in ("ab", "ac"))
    found = [{"path": "/c", "base": "/d/0", "entries": [one]}]
    assert cache._one("abab", "host1", found) == ("/d/0", one)
    with pytest.raises(FastcopyError, match="no image abab in /c on host1"):
        cache._one("abab", "host1", [{**found[0], "entries": []}])
    with pytest.raises(FastcopyError, match="beginning of 2 images"):
        cache._one("a", "host1", [{**found[0], "entries": [one, other]}])


def test_the_completion_file_is_up_to_date() -> None:
    text = completion.script(cli.parser())
    assert (CHECKOUT / completion.FILE).read_text() == text, "run `make reference`"


def complete(*words: str) -> List[str]:
    """What bash offers after these words."""
    script = completion.script(cli.parser())
    run = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fastcopy; printf "%s\\n" "${COMPREPLY[@]}"'
    argv = ["bash", "--norc", "-c", f"{script}\n{run}", "bash", *words]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=20, check=True, cwd=CHECKOUT / "docs")
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="completion is for bash, which is not here")
def test_bash_completes() -> None:
    assert complete("fastcopy", "ca") == ["cancel", "cache"]
    assert complete("fastcopy", "status", "--w") == ["--watch"]
    assert complete("fastcopy", "cache", "un") == ["unpin"]
    assert complete("fastcopy", "cache", "scrub", "--r") == ["--rate"]
    assert complete("fastcopy", "push", "DES") == ["DESIGN.md"]


def test_images_in_a_cache_have_the_names_that_the_front_end_remembers(tmp_path: Path) -> None:
    from tests.support import make_file, manifest_of
    from tm_fastcopy.commands.names import remembered
    from tm_fastcopy.core.identity import Identity
    from tm_fastcopy.frontend.oned import ImageRecord

    file = make_file(tmp_path / "image", "AB")
    store = tmp_path / "manifests"
    store.mkdir()
    (store / Identity.of(file.stat()).key("")).write_bytes(manifest_of("AB").encode())
    images = [ImageRecord(7, "debian", str(file)), ImageRecord(8, "gone", "/nonexistent"), ImageRecord(9, "rbd", "a/b")]
    assert remembered(images, store, {file.stat().st_size}) == {manifest_of("AB").id: "7 (debian)"}
    assert remembered(images, store, {1}) == {}
    file.write_bytes(b"another content, and so nothing that is remembered")
    assert remembered(images, store, {file.stat().st_size}) == {}
