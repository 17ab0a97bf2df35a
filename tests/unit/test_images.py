"""The images that tests and bench copy have the structure that they are said to have."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import pytest

from bench import measure
from bench.images import __main__ as command
from bench.images import catalogue, debian, debian_like, edge, mirror, second, staged, tools
from bench.images.edge import BLOCK, GIB, KIB, MIB
from bench.images.extents import data_runs, physical_extents, summary
from bench.images.mutate import Change, mutate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image.raw"


def runs_of(path: Path) -> List[Tuple[int, int]]:
    with path.open("rb") as file:
        return list(data_runs(file.fileno(), path.stat().st_size))


def test_empty_and_one_byte(image: Path) -> None:
    edge.empty(image)
    assert (summary(image).size, summary(image).extents) == (0, 0)
    edge.one_byte(image)
    assert (summary(image).size, summary(image).data, summary(image).extents) == (1, 1, 1)


def test_odd_is_a_multiple_of_nothing(image: Path) -> None:
    edge.odd(image)
    for unit in (512, BLOCK, 64 * KIB, MIB):
        assert image.stat().st_size % unit
    with pytest.raises(ValueError, match="odd size"):
        edge.odd(image, 5 * MIB)


def test_zeros_are_data_and_allocated_and_a_hole_is_neither(image: Path) -> None:
    edge.zeros(image, 5 * MIB + 3)
    found = summary(image)
    assert (found.size, found.data, found.extents) == (5 * MIB + 3, 5 * MIB + 3, 1)
    assert found.allocated >= 5 * MIB
    content = image.read_bytes()
    assert content.count(0) == len(content)

    edge.hole(image, 5 * MIB + 3)
    found = summary(image)
    assert (found.size, found.data, found.extents, found.allocated) == (5 * MIB + 3, 0, 0, 0)


def test_random_data_does_not_compress(image: Path) -> None:
    edge.random_data(image, 9 * MIB + 1)
    content = image.read_bytes()
    assert len(content) == 9 * MIB + 1
    assert len(zlib.compress(content, 1)) >= len(content)
    assert content[:MIB] != content[4 * MIB : 5 * MIB]  # pieces are not repeated


def test_symbols_compress_a_little(image: Path) -> None:
    edge.symbols(image, 5 * MIB + 1)
    content = image.read_bytes()
    assert len(content) == 5 * MIB + 1
    assert len(set(content)) == 100
    assert 0.8 < len(zlib.compress(content, 1)) / len(content) < 0.9


@pytest.mark.parametrize(("size", "count"), [(4 * GIB, 500), (20 * GIB, 500), (80 * KIB, 10), (1 * MIB + 5, 100)])
def test_islands_are_that_many_extents_of_one_block(image: Path, size: int, count: int) -> None:
    offsets = edge.islands(image, size, count)
    assert image.stat().st_size == size
    assert runs_of(image) == [(offset, BLOCK) for offset in offsets]
    assert len(offsets) == count
    with image.open("rb") as file:
        file.seek(offsets[-1])
        assert len(set(file.read(BLOCK))) > 200


def test_islands_have_no_period(image: Path) -> None:
    offsets = edge.islands(image, 1 * GIB, 200)
    assert len({after - before for before, after in zip(offsets, offsets[1:])}) > 100


def test_islands_that_would_touch_are_refused(image: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        edge.islands(image, 10 * BLOCK, 10)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, seed: edge.random_data(path, MIB, seed),
        lambda path, seed: edge.islands(path, MIB, 20, seed),
        lambda path, seed: debian_like.write(path, 3 * MIB, seed),
    ],
)
def test_the_seed_and_nothing_else_decides_the_content(tmp_path: Path, write: Callable[[Path, int], object]) -> None:
    contents = []
    for index, seed in enumerate((1, 1, 2)):
        write(tmp_path / str(index), seed)
        contents.append((tmp_path / str(index)).read_bytes())
    assert contents[0] == contents[1] != contents[2]


# -- the synthetic image


def test_debian_like_holds_what_each_slot_says(image: Path) -> None:
    kinds = debian_like.write(image, 16 * MIB)
    assert set(kinds) == set(debian_like.PATTERN)
    content = image.read_bytes()
    assert len(content) == 16 * MIB
    slots = [content[at : at + MIB] for at in range(0, len(content), MIB)]
    ratios: Dict[str, float] = {}
    for kind, slot in zip(kinds, slots):
        ratios[kind] = len(zlib.compress(slot, 1)) / MIB
    assert ratios["packed"] > 0.99
    assert 0.2 < ratios["text"] < 0.6
    assert 0.2 < ratios["binary"] < 0.6
    assert ratios["zeros"] == ratios["hole"] < 0.01
    assert slots[kinds.index("duplicate")] in slots[: kinds.index("duplicate")]


def test_debian_like_has_holes_where_it_says_and_only_there(image: Path) -> None:
    kinds = debian_like.write(image, 16 * MIB)
    data = [False] * 16
    for offset, length in runs_of(image):
        for slot in range(offset // MIB, (offset + length) // MIB):
            data[slot] = True
    assert data == [kind != "hole" for kind in kinds]


def test_debian_like_of_any_size(image: Path) -> None:
    debian_like.write(image, 2 * MIB + 777)
    assert image.stat().st_size == 2 * MIB + 777


# -- second versions


def test_mutate_changes_what_it_says_and_nothing_else(tmp_path: Path, image: Path) -> None:
    debian_like.write(image, 16 * MIB)
    before = image.read_bytes()
    changes = mutate(image, 7, scattered=40, grown=MIB + 5)
    after = image.read_bytes()
    assert len(after) == 17 * MIB + 5

    by_kind: Dict[str, int] = {}
    for change in changes:
        by_kind[change.kind] = by_kind.get(change.kind, 0) + change.length
    assert by_kind == {
        "contiguous": 2 * MIB,
        "scattered": 40 * BLOCK,
        "zeroed": MIB,
        "punched": MIB,
        "grown": MIB + 5,
    }
    position = 0
    for change in sorted(changes, key=lambda change: change.offset):
        assert change.offset >= position, "changes overlap"
        assert before[position : change.offset] == after[position : change.offset]
        position = change.offset + change.length
        written = after[change.offset : position]
        if change.kind in ("zeroed", "punched"):
            assert not any(written)
        else:
            assert written != before[change.offset : position]
    assert position == len(after)  # `grown` is the last


def test_mutate_punches_holes_and_leaves_zeroed_ranges_allocated(image: Path) -> None:
    edge.random_data(image, 8 * MIB)
    changes = mutate(image, 3, contiguous=0, scattered=0, zeroed=256 * KIB, punched=512 * KIB)
    holes = {change.kind: change for change in changes}
    assert summary(image).data == 8 * MIB - 512 * KIB
    inside = holes["punched"]
    assert all(
        end <= inside.offset or start >= inside.offset + inside.length
        for start, end in ((start, start + length) for start, length in runs_of(image))
    )


def test_mutate_zeroes_and_punches_only_what_was_data(image: Path) -> None:
    edge.islands(image, GIB, 8)
    islands = runs_of(image)
    changes = [mutate(image, seed, contiguous=0, scattered=0, zeroed=BLOCK, punched=BLOCK) for seed in range(4)]
    assert {(change.offset, change.length) for pair in changes for change in pair} <= set(islands)


def test_mutate_is_repeatable(tmp_path: Path) -> None:
    results: List[Tuple[List[Change], bytes]] = []
    for name in ("a", "b"):
        debian_like.write(tmp_path / name, 8 * MIB)
        changes = mutate(tmp_path / name, 5, zeroed=64 * KIB, punched=64 * KIB)
        results.append((changes, (tmp_path / name).read_bytes()))
    assert results[0] == results[1]


def test_mutate_refuses_what_does_not_fit(image: Path) -> None:
    edge.random_data(image, MIB)
    with pytest.raises(ValueError, match="fewer than"):
        mutate(image, 1, contiguous=2 * MIB, zeroed=0, punched=0)
    with pytest.raises(ValueError, match="no room"):
        mutate(image, 1, contiguous=0, zeroed=0, punched=0, scattered=257)
    with pytest.raises(ValueError, match="whole blocks"):
        mutate(image, 1, contiguous=100)
    edge.hole(image, 8 * MIB)
    with pytest.raises(ValueError, match="no run of data"):
        mutate(image, 1, contiguous=0, scattered=0, zeroed=BLOCK)


def test_physical_extents_are_counted_where_the_file_system_tells(image: Path) -> None:
    edge.islands(image, 4 * MIB, 20)
    with image.open("rb") as file:
        found = physical_extents(file.fileno())
    if found is None:
        pytest.skip("no FIEMAP on the file system of the temporary directory")
    assert found == 20


# -- making them


def test_an_image_gets_its_name_only_when_whole(tmp_path: Path) -> None:
    final = tmp_path / "x.raw"
    with pytest.raises(RuntimeError), staged.staged(final) as path:
        path.write_bytes(b"half")
        assert not final.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with staged.staged(final) as path:
        path.write_bytes(b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.raw"]


def test_what_a_killed_build_left_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".one-byte.raw.building").write_bytes(b"left by a crash, and longer")
    assert catalogue.make("one-byte", tmp_path) > 0
    assert (tmp_path / "one-byte.raw").read_bytes() == b"\x01"
    assert not (tmp_path / ".one-byte.raw.building").exists()


def test_an_image_is_made_once(tmp_path: Path) -> None:
    assert catalogue.make("small", tmp_path) > 0
    inode = catalogue.path_of("small", tmp_path).stat().st_ino
    assert catalogue.make("small", tmp_path) == 0.0
    assert catalogue.path_of("small", tmp_path).stat().st_ino == inode
    assert catalogue.make("small", tmp_path, again=True) > 0
    assert catalogue.path_of("small", tmp_path).stat().st_ino != inode


def test_needed_images_come_first_and_once() -> None:
    assert list(catalogue.with_needs(["debian-v2", "debian", "empty"])) == ["debian", "debian-v2", "empty"]
    with pytest.raises(KeyError):
        catalogue.path_of("../x")


def test_the_command_makes_and_lists(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "bench/make-images"), "--dir", str(tmp_path / "new"), "hole", "one-byte"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines() if ".raw" in line] == ["one-byte.raw", "hole.raw"]
    assert "64.0 MiB" in done.stdout


def test_a_missing_program_is_one_sentence_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tools, "_PATH", str(tmp_path))
    assert command._make(["debian"], tmp_path, again=False) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "install the Debian package debootstrap" in error
    assert [entry.name for entry in tmp_path.iterdir() if "raw" in entry.name] == []


@pytest.mark.parametrize("require", [debian.require, second.require])
def test_without_root_the_debian_images_say_so(monkeypatch: pytest.MonkeyPatch, require: Callable[[], None]) -> None:
    monkeypatch.setattr(tools, "program", lambda name: f"/bin/{name}")
    monkeypatch.setattr(debian, "KEYRING", ROOT)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(tools.Unable, match="need root"):
        require()


def test_a_failing_program_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(tools.Unable, match=r"ls failed with exit code 2(.|\n)*no-such-file"):
        tools.run(["/bin/ls", str(tmp_path / "no-such-file")], log)


ONE_LINE = "# deb http://wrong/debian bookworm main\ndeb-src http://wrong/debian sid main\n"
DEB822 = """Types: deb
# a comment
URIs: http://security.example/debian
Suites: bookworm-security
Components: main

Types: deb
URIs: http://other.example/tool
Suites: bookworm
Components: main

Types: deb deb-src
Enabled: yes
URIs: https://mirror.example/debian/
Suites: bookworm
 bookworm-updates
Components: main
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("debian.sources", DEB822, "https://mirror.example/debian"),
        ("debian.sources", DEB822.replace("Enabled: yes", "Enabled: no"), mirror.DEFAULT),
        ("a.list", ONE_LINE, mirror.DEFAULT),
        ("a.list", ONE_LINE + "deb http://a.example/debian bookworm contrib\n", mirror.DEFAULT),
        ("a.list", "deb http://a.example/ubuntu jammy main\n", mirror.DEFAULT),
        ("a.list", "deb [arch=amd64 signed-by=/k] http://a.example/debian sid main # x\n", "http://a.example/debian"),
        ("a.list.bak", "deb http://a.example/debian sid main\n", mirror.DEFAULT),
    ],
)
def test_the_mirror_is_the_machines_own(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text)
    assert mirror.debian_mirror(tmp_path) == expected


def test_tidy_leaves_a_template(tmp_path: Path) -> None:
    for name in ("etc/ssh/ssh_host_rsa_key", "etc/ssh/sshd_config", "tmp/x/y", "var/lib/apt/lists/m_Packages"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "etc/resolv.conf").symlink_to("/nowhere/at/all")
    debian.prepare(tmp_path)
    assert os.access(tmp_path / "usr/sbin/policy-rc.d", os.X_OK)
    debian.tidy(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["etc/machine-id", "etc/resolv.conf", "etc/ssh/sshd_config"]
    assert measure.sha256(tmp_path / "etc/resolv.conf").startswith("e3b0c442")  # nothing in it
