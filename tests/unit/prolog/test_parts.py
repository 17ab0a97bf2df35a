"""Small parts of the bench: finding OpenNebula, reading fio, the drivers' commands, pictures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict

import pytest

from bench.comparison import machine, nfs, opennebula
from bench.comparison.drivers import Disk, all_drivers
from bench.comparison.site import change, data_bytes, drop, pictures
from bench.guest_io import Speed, speed_of
from bench.images.edge import BLOCK, MIB, random_data
from bench.measure import changed_blocks
from bench.testbed import LabError, tree


@pytest.fixture
def ruby(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.usefixtures("ruby")
@pytest.mark.parametrize("below", [".", "src", "src/tm_mad", "src/tm_mad/ssh"])
def test_a_checkout_is_found_from_anywhere_in_it(tmp_path: Path, below: str) -> None:
    touch(tmp_path / "src/tm_mad/one_tm.rb")
    (tmp_path / "src/tm_mad/ssh").mkdir()
    assert opennebula.find(tmp_path / below, tmp_path / "root") == tmp_path.resolve()


@pytest.mark.usefixtures("ruby")
def test_an_installed_opennebula_is_found_by_itself_or_by_its_remotes(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    assert opennebula.find(None, root) is None
    touch(root / opennebula.INSTALLED)
    (root / "var/lib/one/remotes").mkdir(parents=True)
    assert opennebula.find(None, root) == root
    assert opennebula.find(root / "var/lib/one/remotes", root) == root


def test_what_is_no_opennebula_and_a_missing_ruby_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="belongs to no OpenNebula"):
        opennebula.find(tmp_path, tmp_path / "root")
    touch(tmp_path / "src/tm_mad/one_tm.rb")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LabError, match="need Ruby: install"):
        opennebula.find(tmp_path, tmp_path / "root")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("x.rb:1:in `require': cannot load such file -- treetop (LoadError)", "treetop"),
        ("xml_utils.rb:144: nokogiri gem not installed. (RuntimeError)", "nokogiri"),
        ("something else", None),
    ],
)
def test_the_library_that_ruby_misses_is_named(text: str, name: str) -> None:
    assert opennebula.file_not_found(text) == name


def test_the_release_is_read_from_the_checkout(tmp_path: Path) -> None:
    touch(tmp_path / "src/oca/ruby/opennebula/version.rb", "module OpenNebula\n    VERSION = '7.2.0'\nend\n")
    assert machine.opennebula_version(tmp_path) == "7.2.0"
    assert machine.opennebula_version(tmp_path / "src") is None


def test_an_installed_opennebula_goes_into_the_labs_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "link_gems", lambda one: None)
    one, root = tmp_path / "one", tmp_path / "root"
    tree.create(one)
    for name in ("usr/lib/one/mads/one_tm.rb", "usr/lib/one/sh/scripts_common.sh", "usr/lib/one/ruby/opennebula.rb",
                 "var/lib/one/remotes/tm/ssh/clone", "etc/one/tmrc"):  # fmt: skip
        touch(root / name, name)
    tree.add_stock(one, root)
    assert (one / "lib/mads/one_tm.rb").exists() and (one / "lib/ruby/opennebula.rb").exists()
    assert (one / "var/remotes/tm/ssh/clone").read_text() == "var/lib/one/remotes/tm/ssh/clone"
    assert (one / "etc/tmrc").read_text() == "etc/one/tmrc"


def test_fio_is_read() -> None:
    percentile: Dict[str, Any] = {"50.000000": 250_000, "99.000000": 5_000_000}
    write = {"iops": 12345.6, "clat_ns": {"percentile": percentile}}
    assert speed_of({"jobs": [{"write": write}]}) == Speed(12345.6, 0.25, 5.0)
    for bad in ({}, {"jobs": []}, {"jobs": [{"write": {}}]}, None):
        with pytest.raises(ValueError, match=r"fio|unpack"):
            speed_of(bad)


class _Lab:
    one_location = Path("/one")


def test_every_stock_driver_is_called_as_one_tm_calls_it() -> None:
    disk = Disk("host1", "/ds/211/7/disk.0", 7)
    for driver in all_drivers(kernel_nfs=False):
        if driver.name == "ssh-pipeline":
            continue
        (clone,) = driver.clone(_Lab(), "/ds/210/x", disk)  # type: ignore[arg-type]
        assert clone.argv == (
            f"/one/var/remotes/tm/{driver.tm}/clone", "fe:/ds/210/x", "host1:/ds/211/7/disk.0", "7",
            str(driver.image_store),
        )  # fmt: skip
        (link,) = driver.link(_Lab(), "/ds/210/x", disk)  # type: ignore[arg-type]
        assert link.argv == (f"/one/var/remotes/tm/{driver.tm}/ln", *clone.argv[1:])
        (back,) = driver.write_back(_Lab(), disk, "/ds/210/x")  # type: ignore[arg-type]
        assert back.argv[1:3] == ("host1:/ds/211/7/disk.0", "/ds/210/x")


def test_the_restated_driver_links_a_persistent_image_as_it_clones_one() -> None:
    (restated,) = [one for one in all_drivers(kernel_nfs=False) if one.name == "ssh-pipeline"]
    disk = Disk("host1", "/ds/211/7/disk.0", 7)
    assert restated.link(_Lab(), "/x", disk) == restated.clone(_Lab(), "/x", disk)  # type: ignore[arg-type]


def test_only_a_kernel_mount_is_compared_and_what_is_restated_says_so() -> None:
    found = {one.name: one.contestant for one in all_drivers(kernel_nfs=False)}
    assert not found["shared"].headline and "user-space NFS client" in found["shared"].label
    assert "restated" in found["ssh-pipeline"].label and "flatters" in found["ssh-pipeline"].note
    assert {one.name: one.contestant for one in all_drivers(kernel_nfs=True)}["shared"].headline


def test_the_cp_of_the_nfs_clients_takes_only_what_is_shared(tmp_path: Path) -> None:
    """Anything else goes to the real cp."""
    script = tmp_path / "cp"
    script.write_text(nfs._CP.format(images="/ds/240", systems="/ds/241", address="10.0.0.1", options="version=3"))
    programs = tmp_path / "bin"
    touch(programs / "nfs-cp", "#!/bin/sh\necho nfs-cp \"$@\"\n").chmod(0o755)

    def run(*words: str) -> str:
        environment = {"PATH": f"{programs}:/usr/bin:/bin"}
        done = subprocess.run(["sh", script, *words], env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    shared = run("/ds/240/x", "/ds/241/7/disk.0")
    assert shared == "nfs-cp nfs://10.0.0.1/ds/240/x?version=3 nfs://10.0.0.1/ds/241/7/disk.0?version=3"
    touch(tmp_path / "a", "text")
    assert run(str(tmp_path / "a"), str(tmp_path / "b")) == ""
    assert (tmp_path / "b").read_text() == "text"


@pytest.mark.parametrize("how", ["contiguous", "scattered"])
def test_a_guest_changes_the_same_twentieth_on_every_copy(tmp_path: Path, how: str) -> None:
    original = tmp_path / "original"
    random_data(original, 4 * MIB)
    for name in ("one", "two"):
        shutil.copy(original, tmp_path / name)
        change(tmp_path / name, how, data_bytes(original))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert changed_blocks(original, tmp_path / "one") == 4 * MIB // 20 // BLOCK * BLOCK


def test_pictures_exist_for_all_scenarios(tmp_path: Path) -> None:
    from bench.comparison.scenarios import scenarios

    for real in (False, True):
        known = pictures(tmp_path, real)
        for one in scenarios().values():
            for case in one.cases:
                assert set(case.images) <= set(known)


def test_dropping_the_cache_of_what_is_no_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path / "link", tmp_path / "gone", tmp_path):
        drop(path)
