"""The context that we make, read by other programs, beside the one that stock xorriso makes of the same files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tm_fastcopy.core.errors import Refused, SourceChanged
from tm_fastcopy.frontend import iso
from tm_fastcopy.frontend.contents import Contents

Make = Callable[[Sequence[str]], Path]


def run(*argv: object) -> str:
    """Run a program; what it prints."""
    done = subprocess.run([*map(str, argv)], check=True, capture_output=True, timeout=60)
    return done.stdout.decode()


def no_web(address: str) -> int:
    raise AssertionError(address)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def work(words: Sequence[str]) -> Path:
        contents = Contents.of(words, no_web)
        path = tmp_path / "context.iso"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            iso.write(contents, fd)
        finally:
            os.close(fd)
            contents.close()
        return path

    return work


def stock(source: Path, path: Path) -> Path:
    """The image that the stock driver makes of a directory, with its options."""
    run("xorriso", "-as", "mkisofs", "-quiet", "-o", path, "-V", "CONTEXT", "-J", "-R", source)
    return path


def extracted(image: Path, place: Path, names: str = "any") -> Path:
    """What libisofs reads in an image: by Rock Ridge ("any") or by Joliet ("norock")."""
    run("xorriso", "-osirrox", "on", "-read_fs", names, "-indev", image, "-extract", "/", place)
    return place


def tree(top: Path, links: bool = True) -> dict[str, object]:
    """Everything below a directory: content of files, texts of links."""
    found: dict[str, object] = {}
    for where, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = Path(where, name)
            key = str(path.relative_to(top))
            if path.is_symlink():
                if links:
                    found[key] = os.readlink(path)
            else:
                found[key] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a context may hold: usual files, names that ISO 9660 does not know, long ones, a tree, an empty file."""
    top = tmp_path / "source"
    (top / "deep/er/est").mkdir(parents=True)
    (top / "empty directory").mkdir()
    (top / "context.sh").write_text("ETH0_IP='192.0.2.1'\nSSH_PUBLIC_KEY='a'\\''b'\n")
    (top / "token.txt").write_bytes(b"secret\n")
    (top / "empty").write_bytes(b"")
    (top / "a name with blanks, ümläut & 'quotes'.tar.gz").write_bytes(os.urandom(70_000))
    (top / ".hidden").write_text("hidden")
    (top / "UPPER.TXT").write_text("upper")
    for number in range(12):
        (top / f"very_long_name_that_begins_alike_{number}.conf").write_text(str(number))
    (top / ("x" * 150 + ".conf")).write_text("long")
    (top / ("x" * 151 + ".conf")).write_text("longer")
    (top / "deep/er/est/file").write_bytes(os.urandom(2048))
    (top / "deep/link").symlink_to("er/est/file")
    return top


def words_of(top: Path) -> list[str]:
    """What oned would pass for everything in a directory."""
    return [str(path) for path in sorted(top.iterdir())]


def test_programs_find_in_it_what_they_find_in_the_stock_one(make: Make, source: Path, tmp_path: Path) -> None:
    ours, theirs = make(words_of(source)), stock(source, tmp_path / "stock.iso")
    for image in (ours, theirs):
        assert run("blkid", "-p", "-s", "LABEL", "-s", "TYPE", "-o", "value", image) == "CONTEXT\niso9660\n"
        header = run("isoinfo", "-d", "-i", image)
        assert "Volume id: CONTEXT\n" in header
        assert "Joliet with UCS level 3 found" in header and "Rock Ridge signatures version 1 found" in header
    listed = [set(run("isoinfo", "-R", "-f", "-i", image).splitlines()) for image in (ours, theirs)]
    assert listed[0] == listed[1] and "/context.sh" in listed[0]
    for option in ("-R", "-J"):
        text = run("isoinfo", option, "-x", "/context.sh", "-i", ours)
        assert text == (source / "context.sh").read_text()
    found = run("xorriso", "-indev", ours, "-find", "/", "-type", "f", "-exec", "report_lba")
    assert "'/deep/er/est/file'" in found
    assert ours.stat().st_size < theirs.stat().st_size


def test_the_same_is_read_by_every_set_of_names(make: Make, source: Path, tmp_path: Path) -> None:
    ours, theirs = make(words_of(source)), stock(source, tmp_path / "stock.iso")
    rock_ridge = extracted(ours, tmp_path / "rock ridge")
    assert tree(rock_ridge) == tree(source)
    for name in ("context.sh", "deep", "deep/er/est/file"):
        assert (rock_ridge / name).stat().st_mode == (source / name).stat().st_mode
    files = tree(source, links=False)
    joliet = tree(extracted(ours, tmp_path / "joliet", "norock"))
    stock_joliet = tree(extracted(theirs, tmp_path / "stock joliet", "norock"))
    assert {name: found for name, found in joliet.items() if len(name) <= 60} == {
        name: found for name, found in stock_joliet.items() if len(name) <= 60 and name in files
    }
    assert sorted(map(str, joliet.values())) == sorted(map(str, files.values()))  # also those of long names, cut
    plain = [run("isoinfo", "-f", "-i", image).splitlines() for image in (ours, theirs)]  # ISO 9660 alone
    assert len(plain[0]) == len(set(plain[0])) == len(plain[1])
    assert [len(name) for name in plain[0]] == [len(name) for name in plain[1]]
    assert run("isoinfo", "-x", "/CONTEXT.SH;1", "-i", ours) == (source / "context.sh").read_text()


def test_names_that_oned_gives_and_what_comes_later_wins(make: Make, source: Path) -> None:
    words = [
        f"{source}/context.sh",
        f"{source}/token.txt:'init", "script.sh'",  # the name of an image of a files datastore, with a blank
        f"{source}/empty:renamed",
        f"{source}/UPPER.TXT:context.sh",
        f"{source}/deep/",
    ]  # fmt: skip
    image = make(words)
    listed = set(run("isoinfo", "-R", "-f", "-i", image).splitlines())
    assert listed == {
        "/context.sh", "/init script.sh", "/renamed", "/deep", "/deep/er", "/deep/er/est", "/deep/er/est/file",
        "/deep/link",
    }  # fmt: skip
    assert run("isoinfo", "-R", "-x", "/context.sh", "-i", image) == "upper"


def test_a_file_that_changes_while_it_is_read(make: Make, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = iso._add

    def add(*arguments: object) -> None:
        plain(*arguments)  # type: ignore[arg-type]
        (source / "context.sh").write_text("another")

    monkeypatch.setattr(iso, "_add", add)
    with pytest.raises(SourceChanged, match=r"context\.sh was written"):
        make([f"{source}/context.sh"])


def test_a_thousand_files_and_no_more(make: Make, tmp_path: Path) -> None:
    top = tmp_path / "many"
    top.mkdir()
    for number in range(999):
        (top / f"file with the number {number}").write_text(str(number))
    image = make([str(top)])
    listed = run("isoinfo", "-J", "-f", "-i", image).splitlines()
    assert len(set(listed)) == 1000
    assert run("isoinfo", "-R", "-x", "/many/file with the number 998", "-i", image) == "998"
    (top / "one more").write_text("")
    with pytest.raises(Refused, match="more than 1000 files"):
        make([str(top)])
