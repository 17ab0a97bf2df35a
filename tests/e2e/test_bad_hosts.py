"""Hosts that are not as they should be: unreachable, full, read-only, noisy, without a usable Python.

After each of them a good clone to the same place succeeds, once the cause is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from bench.testbed import processes
from bench.testbed.node import HOME, Node
from tests.e2e import look
from tests.e2e.cloud import DEFAULT, HOSTS, Cloud, Image, Vm, empty, give, settle

pytestmark = pytest.mark.root

on_every_fs = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)


def assert_good(cloud: Cloud, image: Image, vm: Vm) -> None:
    """Assert that a clone works now."""
    cloud.clone(image, vm).succeeded()
    assert look.same_content(vm.path / "disk.0", image.file)
    assert look.leftovers(vm.path) == []


def assert_nothing_there(vm: Vm) -> None:
    """Assert that neither a disk nor a part of one is there."""
    assert not os.path.lexists(vm.path / "disk.0")
    assert look.leftovers(vm.path) == []


# -- not reachable -----------------------------------------------------------------------------------------------


def test_a_host_whose_name_does_not_resolve_is_named(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    wrong = vm.argument().replace("host1", "nohost")
    cloud.run("clone", f"fe:{image.path}", wrong, str(vm.id), str(DEFAULT)).failed("nohost", "ssh")
    cloud.run("mvds", wrong, image.path, str(vm.id), "1").failed("nohost", "ssh")
    assert_good(cloud, image, vm)


def test_a_host_that_refuses_connections_is_named(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    node = cloud.node(vm)
    node.stop_sshd()
    try:
        cloud.clone(image, vm).failed("host1", "refused")
        cloud.mvds(vm, image).failed("host1", "refused")
    finally:
        node.start_sshd()
    assert_nothing_there(vm)
    assert_good(cloud, image, vm)


@pytest.mark.usefixtures("own_process")
def test_a_host_that_knows_no_key_of_ours_is_named(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    keys = cloud.node(vm).path(f"{HOME}/.ssh/authorized_keys")
    keys.rename(keys.with_name("aside"))
    try:
        cloud.clone(image, vm).failed("host1", "Permission denied")
    finally:
        keys.with_name("aside").rename(keys)
    assert_nothing_there(vm)
    assert_good(cloud, image, vm)


# -- full or read-only -------------------------------------------------------------------------------------------


@contextmanager
def filled(directory: Path, leave: int) -> Iterator[None]:
    """Fill a file system but for about `leave` bytes, and empty it again."""
    file = directory / "filler"
    with file.open("wb") as filler:
        while True:
            found = os.statvfs(directory)
            size = filler.seek(0, os.SEEK_END)
            more = found.f_bavail * found.f_frsize - leave
            if more < MIB:
                break
            step = more
            while step >= MIB:
                try:
                    os.posix_fallocate(filler.fileno(), size, step)
                    break
                except OSError:  # btrfs promises more than it has
                    os.ftruncate(filler.fileno(), size)
                    step //= 2
            else:
                break
        os.fsync(filler.fileno())
    try:
        yield
    finally:
        file.unlink()


@on_every_fs
def test_a_full_host_says_how_much_is_missing(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image, host)
    with filled(vm.path.parents[1], 10 * MIB):
        cloud.clone(image, vm).failed("needs 24 MiB", "make room", str(vm.path.name))
        assert_nothing_there(vm)
        cloud.wait_for_quiet(host)
        cache = cloud.cache(host)
        assert [path.name for path in cache.iterdir()] == []
    assert_good(cloud, image, vm)


@on_every_fs
def test_a_full_host_has_no_room_for_a_disk_that_may_not_be_sparse(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image, host, SPARSE="NO", SIZE=400, ORIGINAL_SIZE=24)
    with filled(vm.path.parents[1], 200 * MIB):
        cloud.clone(image, vm).failed("make room")
        assert_nothing_there(vm)
    cloud.clone(image, vm).succeeded()
    assert look.allocated(vm.path / "disk.0") >= 400 * MIB


@on_every_fs
def test_a_disk_that_may_not_be_sparse_is_made_past_a_cache_without_room(cloud: Cloud, host: str) -> None:
    """The first clone of its image there: the disk may not share the entry's blocks, and both do not fit."""
    image = cloud.known("random")
    vm = cloud.vm(image, host, SPARSE="NO")
    reserve = vm.path.parents[1] / "reserve"
    random_data(reserve, 28 * MIB)  # btrfs gives out what a file had, and not all that it says is free
    with filled(reserve.parent, 10 * MIB):
        reserve.unlink()
        cloud.node(vm).run(["sync", "-f", cloud.system], check=True)
        assert "past the cache" in cloud.clone(image, vm).succeeded().stderr
        cloud.wait_for_quiet(host)
        assert [path for path in cloud.cache(host).iterdir() if path.suffix == ".img"] == []
    disk = vm.path / "disk.0"
    assert look.same_content(disk, image.file)
    assert look.allocated(disk) >= image.file.stat().st_size
    assert look.leftovers(vm.path) == []


@pytest.mark.parametrize("host", [HOSTS["btrfs"], HOSTS["ext4"]], ids=["btrfs", "ext4"])  # the two difficult ones
def test_no_more_cached_images_go_than_a_disk_needs_room(cloud: Cloud, host: str) -> None:
    oldest, older = (cloud.image(lambda path, seed=seed: random_data(path, 40 * MIB, seed)) for seed in (21, 22))
    settle()
    for image in (oldest, older):
        first = cloud.vm(image, host)
        cloud.clone(image, first).succeeded()
        cloud.wait_for_quiet(host)
        (first.path / "disk.0").unlink()
    cloud.environment["FASTCOPY_CACHE_RESERVE"] = "0%"  # a reserve would let both go
    image = cloud.known("random")
    vm = cloud.vm(image, host)
    cloud.node(vm).run(["sync", "-f", cloud.system], check=True)
    cached = {path.name for path in cloud.cache(host).glob("*.img")}
    assert len(cached) == 2
    with filled(vm.path.parents[1], 12 * MIB):
        assert_good(cloud, image, vm)
        cloud.wait_for_quiet(host)
        assert len(cached & {path.name for path in cloud.cache(host).glob("*.img")}) == 1


def test_a_host_with_room_for_one_copy_only_gets_the_disk(cloud: Cloud) -> None:
    image = cloud.known("random")
    vm = cloud.vm(image, "host3")  # ext4: the cache would be a second copy
    with filled(vm.path.parents[1], 36 * MIB):
        assert_good(cloud, image, vm)
        cloud.wait_for_quiet("host3")
        assert not [path for path in cloud.cache("host3").iterdir() if path.suffix == ".img"]


def test_a_full_image_datastore_keeps_image_and_disk(cloud: Cloud) -> None:
    """Defect B1 of the stock drivers."""
    image = cloud.image(lambda path: random_data(path, 24 * MIB, seed=31))
    vm = cloud.vm(image)
    cloud.clone(image, vm).succeeded()
    disk = vm.path / "disk.0"
    random_data(disk, 24 * MIB, seed=32)
    before = look.sha256(image.file), look.sha256(disk)
    with filled(image.file.parents[1], 10 * MIB):
        cloud.mvds(vm, image).failed("is full", "make room", image.path)
        assert (look.sha256(image.file), look.sha256(disk)) == before
        assert look.leftovers(image.file.parent) == []
    cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, disk)


@on_every_fs
def test_a_read_only_datastore_is_named(cloud: Cloud, host: str) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image, host)
    node = cloud.node(vm)
    node.remount_datastores("ro")
    try:
        cloud.clone(image, vm).failed(vm.directory, "Read-only file system")
    finally:
        node.remount_datastores("rw")
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


@on_every_fs
def test_a_disk_on_a_read_only_datastore_is_brought_back(cloud: Cloud, host: str) -> None:
    image = cloud.image(lambda path: random_data(path, 2 * MIB))
    vm = cloud.vm(image, host)
    cloud.clone(image, vm).succeeded()
    random_data(vm.path / "disk.0", 2 * MIB, seed=3)
    cloud.wait_for_quiet(host)
    node = cloud.node(vm)
    node.remount_datastores("ro")
    try:
        cloud.mvds(vm, image).succeeded()
    finally:
        node.remount_datastores("rw")
    assert look.same_content(image.file, vm.path / "disk.0")


# -- a cache that cannot be used ---------------------------------------------------------------------------------


def _closed(root: Path) -> None:
    (root / ".fastcopy/cache").chmod(0o500)


def _another_users(root: Path) -> None:
    os.chown(root / ".fastcopy/cache", 0, 0)


def _a_file(root: Path) -> None:
    empty(root, keep=("0", "100", "lost+found"))
    (root / ".fastcopy").write_bytes(b"")


def _a_broken_link(root: Path) -> None:
    empty(root, keep=("0", "100", "lost+found"))
    (root / ".fastcopy").symlink_to("/nonexistent")


def _rubbish(root: Path) -> None:
    for path in (root / ".fastcopy/cache").iterdir():
        path.write_bytes(b"rubbish")


def _emptied_images(root: Path) -> None:
    for path in (root / ".fastcopy/cache").glob("*.img"):
        os.truncate(path, 0)


SPOILED: dict[str, Callable[[Path], None]] = {
    "closed": _closed,
    "another user's": _another_users,
    "a file": _a_file,
    "a broken link": _a_broken_link,
    "full of rubbish": _rubbish,
    "emptied images": _emptied_images,
}


@pytest.mark.parametrize(
    ("fs", "spoiled"), [*(("xfs", name) for name in SPOILED), *(("ext4", name) for name in list(SPOILED)[-2:])]
)
def test_a_cache_that_cannot_be_used_is_gone_past(cloud: Cloud, fs: str, spoiled: str) -> None:
    host = HOSTS[fs]
    image = cloud.known("odd")
    first, vm = cloud.vm(image, host), cloud.vm(image, host)
    cloud.clone(image, first).succeeded()
    cloud.wait_for_quiet(host)
    SPOILED[spoiled](vm.path.parents[1])
    assert_good(cloud, image, vm)
    assert look.same_content(first.path / "disk.0", image.file)
    cloud.wait_for_quiet(host)
    empty(vm.path.parents[1], keep=("0", "100", "lost+found"))
    assert_good(cloud, image, cloud.vm(image, host))


# -- the agent's own files ---------------------------------------------------------------------------------------


def _cut_short(bundle: Path) -> None:
    module = next(bundle.glob("tm_fastcopy/core/publish.py"))
    os.truncate(module, module.stat().st_size // 2)


def _without_a_library(bundle: Path) -> None:
    next(bundle.glob("blake3/*.so")).unlink()


def _with_a_library_of_zeros(bundle: Path) -> None:
    library = next(bundle.glob("blake3/*.so"))
    library.write_bytes(bytes(library.stat().st_size))


def kept(directory: Path) -> list[Path]:
    """What agents have left there for later ones; each has a directory for its socket beside it while it runs."""
    return [path for path in directory.iterdir() if not path.name.startswith("lanes-")]


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("damage", [_cut_short, _without_a_library, _with_a_library_of_zeros])
def test_damaged_files_of_the_agent_are_an_error_once(cloud: Cloud, damage: Callable[[Path], None]) -> None:
    cloud.end_daemons()  # and with them the agents that were kept, which have read their files long ago
    image = cloud.known("odd")
    vm = cloud.vm(image)
    processes.wait_for(lambda: not cloud.agents("host1"), 30, "the agents to end")
    bundles = cloud.node(vm).path(f"{HOME}/.cache/fastcopy")
    (bundle,) = kept(bundles)
    damage(bundle)
    cloud.clone(image, vm).failed("host1", "were damaged", "repeat the action")
    assert not vm.path.exists()
    assert_good(cloud, image, vm)
    assert kept(bundles) == [bundle]


# -- Python and shells -------------------------------------------------------------------------------------------

SHIM = """#!/bin/sh
# A python3 of another version: what follows -c is run after the version was changed.
for code; do :; done
exec {real}/python3 -I -S -c '
import sys
sys.version_info = ({version}, 0, "final", 0)
exec(sys.argv[1])' "$code"
"""


@contextmanager
def other_programs(node: Node, python: str) -> Iterator[None]:
    """Give a host a /usr/bin without python3, or with `python` as python3."""
    real, shown = Path("/run/lab/real"), Path("/run/lab/shown")
    for path in (real, shown):
        node.path(path).mkdir(parents=True)
    node.run(["mount", "--bind", "/usr/bin", real], user="root", check=True)
    for path in sorted(node.path(real).iterdir()):
        if not path.name.startswith("python"):
            (node.path(shown) / path.name).symlink_to(real / path.name)
    if python:
        shim = node.path(shown) / "python3"
        shim.write_text(python.replace("{real}", str(real)))
        shim.chmod(0o755)
    node.run(["mount", "--bind", shown, "/usr/bin"], user="root", check=True)
    try:
        yield
    finally:
        node.run([real / "umount", "-l", "/usr/bin"], user="root", check=True)
        node.run(["umount", "-l", real], user="root", check=True)
        node.run(["rm", "-r", "/run/lab"], user="root", check=True)


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("", ["no python3", "3.9", "install"]),
        (SHIM.replace("{version}", "3, 6"), ["3.6", "3.9", "install"]),
        (SHIM.replace("{version}", "2, 7"), ["2.7", "3.9"]),
        (SHIM.replace("{version}", "3, 99"), ["3.99", "wheels"]),
        ("#!/bin/sh\nexit 1\n", ["python3"]),
        ("#!/nonexistent\n", ["python3"]),
        ("#!/bin/sh\nyes no python here\n", ["prints"]),
    ],
    ids=["none", "3.6", "2.7", "3.99", "fails", "broken", "talks"],
)
@pytest.mark.usefixtures("own_process")
def test_a_host_without_a_usable_python_is_named(cloud: Cloud, python: str, words: list[str]) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    with other_programs(cloud.node(vm), python):
        cloud.clone(image, vm).failed("host1", *words)
        cloud.wait_for_quiet("host1")
    assert not vm.path.exists()
    assert_good(cloud, image, vm)


NOISE = {
    "a word": "hello\n",
    "no final newline": "hello",
    "1 KB": "welcome to this host\n" * 50,
    "1 KB in a line": "w" * 1024 + "\n",
    "40 KB": "welcome to this host\n" * 2000,
    "40 KB in a line": "w" * 40_000,
    "our own words": "FASTCOPY-\nNEEDLESS to say\n BUNDLE\n",
}


@contextmanager
def noise(node: Node, text: str) -> Iterator[None]:
    """Have a host's login shell print something, on both its outputs."""
    home = node.path(HOME)
    (home / "noise").write_text(text)
    (home / ".bashrc").write_text("cat ~/noise\ncat ~/noise >&2\n")
    for name in ("noise", ".bashrc"):
        give(home / name, 0o644)
    try:
        yield
    finally:
        (home / ".bashrc").unlink()
        (home / "noise").unlink()


@pytest.mark.parametrize("said", NOISE)
@pytest.mark.usefixtures("own_process")
def test_a_login_shell_that_prints_does_not_matter(cloud: Cloud, said: str) -> None:
    """Defect A10 of the stock drivers."""
    image = cloud.image(lambda path: random_data(path, 2 * MIB))
    vm = cloud.vm(image)
    with noise(cloud.node(vm), NOISE[said]):
        assert_good(cloud, image, vm)
        random_data(vm.path / "disk.0", 2 * MIB, seed=3)
        cloud.mvds(vm, image).succeeded()
    assert look.same_content(image.file, vm.path / "disk.0")


@pytest.mark.usefixtures("own_process")
def test_a_login_shell_that_prints_without_end_is_named(cloud: Cloud) -> None:
    image = cloud.known("odd")
    vm = cloud.vm(image)
    with noise(cloud.node(vm), "welcome to this host\n" * 20_000):
        cloud.clone(image, vm).failed("host1", "login shell", "quiet")
    assert not vm.path.exists()
    assert_good(cloud, image, vm)
