"""A cache in every bad state: the clone succeeds, the disk is the image, and the log line says in a few words why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bench.images.edge import MIB, random_data
from tests.e2e import look
from tests.e2e.cloud import HOSTS, Cloud, Image, Outcome, Vm, clone_arguments, give, settle
from tm_fastcopy.agent.cache import ENTRY_MTIME

pytestmark = pytest.mark.root
on_every_fs = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
REFLINK = {"host1": True, "host2": True, "host3": False}


def cloned(cloud: Cloud, image: Image, host: str, *words: str, **environment: str) -> Vm:
    """Clone an image for a new VM: it succeeds, and its one log line has *words* in it."""
    vm = cloud.vm(image, host)
    said(cloud.start("clone", clone_arguments(image, vm), **environment).outcome(), *words)
    assert look.same_content(vm.path / "disk.0", image.file)
    assert look.leftovers(vm.path) == []
    cloud.wait_for_quiet(host)
    return vm


def said(outcome: Outcome, *words: str) -> None:
    outcome.succeeded()
    lines = [line for line in outcome.log if ": after " not in line]  # how far it was, if it takes its time
    assert len(lines) == 1, outcome.log
    for word in words:
        assert word in lines[0], outcome.log
    if not words:
        assert "(cache: " not in lines[0], outcome.log


def images(cloud: Cloud, host: str, suffix: str = ".img") -> list[Path]:
    return sorted(path for path in cloud.cache(host).iterdir() if path.name.endswith(suffix))


def drop(vm: Vm) -> None:
    """What the `delete` of a VM leaves: nothing."""
    (vm.path / "disk.0").unlink()


@on_every_fs
def test_a_cache_that_is_too_small(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    cloned(cloud, image, host, "past the cache", "its limit of 8 MiB", FASTCOPY_CACHE_MAX_SIZE="8M")
    assert images(cloud, host) == []
    cloned(cloud, image, host)
    assert len(images(cloud, host)) == 1


@on_every_fs
def test_a_cache_that_holds_one_image_at_a_time(cloud: Cloud, host: str) -> None:
    first, second = cloud.known("random"), cloud.known("like")
    cloned(cloud, first, host)
    cloned(cloud, second, host, "1 image removed to keep its limit", FASTCOPY_CACHE_MAX_SIZE="33M")
    assert len(images(cloud, host)) == 1
    cloned(cloud, second, host)


@on_every_fs
def test_a_cache_full_of_images_that_disks_share(cloud: Cloud, host: str) -> None:
    """Without reflink nothing is shared, so there the old image goes and the new one comes."""
    old, new = cloud.known("random"), cloud.known("odd")
    cloned(cloud, old, host)
    os.sync()
    room = os.statvfs(cloud.cache(host))
    reserve = f"{room.f_bavail * room.f_frsize + 8 * MIB}"
    if REFLINK[host]:
        cloned(cloud, new, host, "past the cache", "reserved", FASTCOPY_CACHE_RESERVE=reserve)
    else:
        cloned(cloud, new, host, "1 image removed to make room", FASTCOPY_CACHE_RESERVE=reserve)
    assert len(images(cloud, host)) == 1


@contextmanager
def filled(cloud: Cloud, host: str, left: int) -> Iterator[None]:
    """Leave only so many bytes of a host's file system free."""
    top = cloud.cache(host).parents[1]
    filler = top / "filler"
    try:
        with filler.open("wb") as file:
            for _ in range(8):  # btrfs finds more room when it has written what it knows, and has less than it says
                os.sync()
                room = os.statvfs(top)
                more = room.f_bavail * room.f_frsize - left
                if more < MIB:
                    break
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)
        yield
    finally:
        filler.unlink()


@on_every_fs
def test_a_full_file_system(cloud: Cloud, host: str) -> None:
    """There is room for the disk only without the old image, which nothing shares any more."""
    old = cloud.image(lambda path: random_data(path, 64 * MIB, seed=8))
    settle()
    drop(cloned(cloud, old, host))
    with filled(cloud, host, 12 * MIB):
        cloned(cloud, cloud.known("random"), host, "removed to make room")


@on_every_fs
def test_a_full_file_system_with_room_for_the_disk(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    with filled(cloud, host, 40 * MIB):
        cloned(cloud, image, host, "past the cache", "reserved")
    assert images(cloud, host) == []


@on_every_fs
def test_a_hit_on_a_full_file_system(cloud: Cloud, host: str) -> None:
    """Where there is no reflink, there is room for the disk only without the cached image.

    Defect A1 of the stock drivers.
    """
    image = cloud.known("random")
    cloned(cloud, image, host)
    with filled(cloud, host, 12 * MIB):
        cloned(cloud, image, host, "cache, reflink" if REFLINK[host] else "no room for the disk beside the image")


@on_every_fs
def test_a_read_only_cache(cloud: Cloud, host: str) -> None:
    """Defect A2 of the stock drivers."""
    image = cloud.known("random")
    cloned(cloud, image, host)
    cloud.cache(host).chmod(0o500)
    try:
        cloned(cloud, image, host, "past the cache", "cannot be written")
    finally:
        cloud.cache(host).chmod(0o700)
    cloned(cloud, image, host)


@on_every_fs
@pytest.mark.parametrize("suffix", [".manifest", ".source"])
def test_a_corrupt_index(cloud: Cloud, host: str, suffix: str) -> None:
    image = cloud.known("random")
    cloned(cloud, image, host)
    for path in images(cloud, host, suffix):
        path.write_bytes(b"\x00rubbish")
    if suffix == ".source":  # it is asked only when the front-end does not know the image by heart
        memory = cloud.lab.fe.path(cloud.lab.one_location / "var/fastcopy/manifests")
        for path in memory.iterdir():
            path.unlink()
    cloned(cloud, image, host, "damaged")
    cloned(cloud, image, host)


def flip(image: Path, quietly: bool) -> None:
    """Change a byte of a cached image; *quietly* as a disk does that rots: its time stays."""
    with image.open("r+b") as file:
        file.seek(5 * MIB)
        byte = file.read(1)
        file.seek(5 * MIB)
        file.write(bytes([byte[0] ^ 1]))
        os.fsync(file.fileno())
    if quietly:
        os.utime(image, (ENTRY_MTIME, ENTRY_MTIME))


@on_every_fs
def test_a_flipped_byte_that_was_written(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    cloned(cloud, image, host)
    flip(images(cloud, host)[0], quietly=False)
    cloned(cloud, image, host, "was written to")
    assert len(images(cloud, host, ".bad")) == len(images(cloud, host)) == 1
    cloned(cloud, image, host)


@on_every_fs
def test_a_flipped_byte_that_rotted_is_found_by_a_look(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    cloned(cloud, image, host)
    cloned(cloud, image, host, FASTCOPY_VERIFY="always")
    flip(images(cloud, host)[0], quietly=True)
    cloned(cloud, image, host, "has a damaged chunk", FASTCOPY_VERIFY="always")
    assert len(images(cloud, host, ".bad")) == len(images(cloud, host)) == 1
    cloned(cloud, image, host, FASTCOPY_VERIFY="always")


SCRUB = """
import asyncio, sys
from pathlib import Path
from tm_fastcopy.frontend.agents import AgentPool
from tm_fastcopy.frontend.bundle import Bundles
from tm_fastcopy.frontend.process_link import SshDialer
from tm_fastcopy.frontend.upkeep import CacheUpkeep
async def main(host, base):
    agents = AgentPool(SshDialer(), Bundles(Path("/nonexistent")), keep=False)
    async with CacheUpkeep.open(agents, host, base) as cache:
        async for done in cache.scrub():
            print("scrubbed", done.read, done.damaged, done.finished)
        for row in await cache.entries():
            print("entry", row.bad, row.size, row.allocated, row.exclusive, row.extents, row.scrubbed > 0)
    await agents.dismiss()
asyncio.run(main(*sys.argv[1:]))
"""


def scrub(cloud: Cloud, host: str) -> list[list[str]]:
    """Scrub a host's cache from the front-end, and list it; the lines above, in words."""
    cloud.end_daemons()  # one of another test may be scrubbing it just now
    python = cloud.lab.one_location / "lib/fastcopy/venv/bin/python3"
    done = cloud.lab.fe.run([python, "-I", "-c", SCRUB, host, cloud.system], check=True)
    return [line.split() for line in done.stdout.decode().splitlines()]


@on_every_fs
def test_a_flipped_byte_that_rotted_is_found_by_the_scrub(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    size = image.file.stat().st_size
    vm = cloned(cloud, image, host)
    before = scrub(cloud, host)
    assert before[0] == ["scrubbed", str(size), "0", "True"]
    allocated, exclusive, extents = (int(word) for word in before[1][3:6])
    assert before[1][:3] == ["entry", "False", str(size)] and before[1][6] == "True"
    assert size <= allocated < size + MIB and 1 <= extents < 50
    assert exclusive < MIB if REFLINK[host] else exclusive == allocated
    flip(images(cloud, host)[0], quietly=True)
    after = scrub(cloud, host)
    assert after[0][2:] == ["1", "True"] and [line[1] for line in after[1:]] == ["True"]
    drop(vm)
    cloned(cloud, image, host, "chunks sent 24.0 MiB")
    assert len(images(cloud, host)) == 1


# -- how disks are made -------------------------------------------------------------------------------------------


@on_every_fs
def test_a_copy_shares_no_block_and_keeps_its_holes(cloud: Cloud, host: str) -> None:
    image = cloud.known("like")
    for word in ("lanes, copied" if REFLINK[host] else "lanes, tee", "cache, copied"):
        vm = cloned(cloud, image, host, word, FASTCOPY_CLONE="copy")
        assert look.shared_bytes(vm.path / "disk.0") == 0
        assert look.allocated(vm.path / "disk.0") < 31 * MIB


@on_every_fs
def test_a_reflink_or_nothing(cloud: Cloud, host: str) -> None:
    image = cloud.known("random")
    if REFLINK[host]:
        for word in ("lanes, reflink", "cache, reflink"):
            vm = cloned(cloud, image, host, word, FASTCOPY_CLONE="reflink")
            assert look.shared_bytes(vm.path / "disk.0") == image.file.stat().st_size
        return
    vm = cloud.vm(image, host)
    outcome = cloud.start("clone", clone_arguments(image, vm), FASTCOPY_CLONE="reflink").outcome()
    outcome.failed("cannot be a reflink", "FASTCOPY_CLONE=reflink")
    assert os.listdir(vm.path) == []


def test_an_image_beside_the_disk_is_cloned_where_it_lies(cloud: Cloud) -> None:
    """The front-end is its own host: one XFS file system, no cache."""
    image = cloud.image(lambda path: random_data(path, 24 * MIB, seed=9))
    cloud.lab.fe.path(cloud.system).mkdir(exist_ok=True)
    give(cloud.lab.fe.path(cloud.system), 0o750)
    number = cloud.vm(image).id
    disk = f"{cloud.system}/{number}/disk.0"
    outcome = cloud.run("clone", f"fe:{image.path}", f"fe:{disk}", str(number), "0")
    assert "image on this machine, reflink, chunks sent 0.0 MiB" in outcome.succeeded().log[0]
    made = cloud.lab.fe.path(disk)
    assert look.same_content(made, image.file)
    assert look.shared_bytes(made) == image.file.stat().st_size
    look.is_disk(made, 0o640)
    made.unlink()
