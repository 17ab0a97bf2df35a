"""A driver that cheats is caught: whatever it leaves out, and whenever it says that it is done."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from bench.comparison import checks
from bench.comparison.method import Bench, situations
from bench.comparison.scenarios import Case
from bench.comparison.values import Cell, Report
from bench.jobs import WrongContent
from tests.unit.prolog.stage import HONEST, SIZE, Shell, make_site

CHEATS = {
    "leaves a hole": (HONEST + '; fallocate --punch-hole --offset 65536 --length 4096 "$disk"', "4096 bytes"),
    "changes one byte": (
        HONEST + '; printf "\\0\\1" | dd of="$disk" bs=1 seek=70000 conv=notrunc 2>/dev/null',
        "4096 bytes",
    ),
    "leaves out the end": (f'head -c {SIZE - 1} "$image" >"$disk"', f"had {SIZE - 1} bytes"),
    "only makes the file as large": (f'truncate --size {SIZE} "$disk"', f"{SIZE} bytes of the disk"),
    "adds a byte": (HONEST + '; printf x >>"$disk"', f"had {SIZE + 1} bytes"),
    "makes no disk": ("true", "there was no disk"),
    "makes a directory": ('mkdir "$disk"', "the disk"),
    "links to the image": ('ln -s "$image" "$disk"', "no regular file"),
    "gives the image a second name": ('ln "$image" "$disk"', "has 2 names"),
    "links to a directory that is shared": (
        'mkdir -p "${image%/*}/x"; cp "$image" "${image%/*}/x/disk.0"; rmdir "${disk%/*}"; '
        'ln -s "${image%/*}/x" "${disk%/*}"',
        "no regular file",
    ),
    "makes a disk that nobody can read": (HONEST + '; chmod 000 "$disk"', "mode 0000"),
    "makes a disk that nobody can write": (HONEST + '; chmod 440 "$disk"', "mode 0440"),
    "fails": (HONEST + "; echo no room left >&2; exit 3", "exit code 3: no room left"),
}


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: Shell, after: str = "", rounds: int = 2) -> Cell:
    """Measure one driver; `after` is done by it once its entry point has ended, in the harness's sync."""
    lab, site = make_site(tmp_path, monkeypatch, [driver])

    def later() -> None:
        import subprocess

        disk = Path(lab.datastores, str(driver.system_store), str(driver.calls[-1]), "disk.0")
        image = Path(lab.datastores, str(driver.image_store), "system")
        if after:
            subprocess.run(["bash", "-ec", after], env={"disk": str(disk), "image": str(image)}, check=True)

    lab.hosts["host1"].on_sync.append(later)
    report = Report("", "", {}, {}, {}, [driver.contestant])
    told: List[str] = []
    bench = Bench(site, [driver], rounds, report, lambda what, left: told.append(what), 60.0)
    bench.run(situations([Case("cold")], ["xfs"], ["none"]))
    (cell,) = report.cells
    return cell


def test_an_honest_driver_is_not_accused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = run(tmp_path, monkeypatch, Shell("honest", HONEST, 10))
    assert (len(cell.runs), cell.failures, cell.sound) == (2, [], True)
    assert cell.data == SIZE


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_wrong_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheat: str) -> None:
    script, words = CHEATS[cheat]
    cell = run(tmp_path, monkeypatch, Shell("cheat", script, 10))
    assert cell.runs == []
    assert len(cell.failures) == 2
    assert all(words in failure for failure in cell.failures), cell.failures


def test_a_disk_that_is_completed_after_the_exit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its name and its size early, and is right by the time that it is read."""
    early = Shell("early", f'head -c 65536 "$image" >"$disk"; truncate --size {SIZE} "$disk"', 10)
    cell = run(tmp_path, monkeypatch, early, after='dd if="$image" of="$disk" conv=notrunc 2>/dev/null')
    assert cell.runs == []
    assert all("still being written when the entry point had ended" in failure for failure in cell.failures)


def test_a_disk_that_is_replaced_after_the_exit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = run(tmp_path, monkeypatch, Shell("late", HONEST, 10), after='cp "$image" "$disk.2"; mv "$disk.2" "$disk"')
    assert cell.runs == []


def test_an_image_that_the_driver_changes_excuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks are compared with a copy that no driver can reach, not with the image in the datastore."""
    cell = run(tmp_path, monkeypatch, Shell("forger", ': >"$image"; cp "$image" "$disk"', 10))
    assert cell.runs == []
    assert all("the disk had 0 bytes" in failure for failure in cell.failures)


def test_what_fails_only_sometimes_is_still_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Shell("odd", HONEST + '; test $((vm % 3)) -ne 0 || truncate --size 1 "$disk"', 10)
    cell = run(tmp_path, monkeypatch, odd, rounds=4)
    assert cell.runs and cell.failures
    assert not cell.sound


def test_a_disk_of_another_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Shell("stranger", HONEST, 10)
    driver.owner += 1
    cell = run(tmp_path, monkeypatch, driver)
    assert cell.runs == [] and "cannot read and write it" in cell.failures[0]


def test_two_disks_that_are_one_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    (tmp_path / "other").touch()
    seen = [checks.Seen.of(tmp_path / name) for name in ("disk", "other", "disk")]
    checks.check_apart("x", seen[:2])
    with pytest.raises(WrongContent, match="two of 3 disks are the same file"):
        checks.check_apart("x", seen)


@pytest.mark.parametrize("link", ["ln -s", "ln"])
def test_what_a_cheat_has_linked_to_is_not_emptied_with_its_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    run(tmp_path, monkeypatch, Shell("cheat", f'{link} "$image" "$disk"', 10))
    assert (tmp_path / "datastores/10/system").stat().st_size == SIZE
    assert list((tmp_path / "datastores/11").iterdir()) == []
