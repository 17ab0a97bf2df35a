"""Scenarios: what is there before an action, what the action is, and what must be there afterwards.

Layouts are in one character a chunk, see `site.content`.
"""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pycdlib

from tests.support import HEADER_SIZE, qemu_img
from tm_fastcopy.core import qcow2

from .arrows import Arrow
from .site import CHUNK, Site, content, write_image

OLD = "AB.aC0AbD"  # a hole, zeros, a chunk that repeats, some that compress
NEW = "AX.aC0AbYE"  # of which the host has the most
SAME_SIZE = "AX.aC.AYD"
QCOW2 = "QB.aC0AbD"
QCOW2_USED = "QX.aC.AYDE"

VM, OTHER_VM = 1, 7
OVER_TREE = ("clone", "ln", "restore")
"""The actions that may replace a tree: there is a moment without any disk."""
_MIB = 1024 * 1024

Spec = Dict[str, Any]
Run = Callable[[Spec, Optional[Arrow]], None]
"""Runs an action of which nothing is expected to fail; if an arrow is given, all processes are killed there."""


def grown(layout: str, size: int) -> bytes:
    """The content of a disk of *size* bytes that begins with an image."""
    data = content(layout)
    return data + bytes(size - len(data))


def nothing(site: Site, run: Run) -> None:
    """The host has never seen an image."""


def _warm(site: Site, run: Run) -> None:
    """Another VM was made of the same image."""
    run(for_vm(OTHER_VM, CLONE_COLD.spec(site)), None)


def _older(site: Site, run: Run) -> None:
    """Another VM was made of an older version."""
    write_image(site.image, OLD)
    _warm(site, run)
    write_image(site.image, NEW)


def _half(site: Site, run: Run) -> None:
    """An earlier clone was killed in the middle, with all processes."""
    run(CLONE_COLD.spec(site), Arrow("lane", "write {staging}", 4))


def _used(site: Site, run: Run) -> None:
    """The host has a disk of the VM, of the image's size."""
    site.put_disk(VM, SAME_SIZE)


def _used_and_grown(site: Site, run: Run) -> None:
    """The host has a disk of the VM that was made larger."""
    site.put_disk(VM, NEW)


def _half_back(site: Site, run: Run) -> None:
    """An earlier mvds was killed in the middle."""
    site.put_disk(VM, NEW)
    run(MVDS.spec(site), Arrow("frontend", "write image staging", 2))


def _new_from_old(site: Site, run: Run) -> None:
    """The host has a disk that was made of another image, and used."""
    site.put_disk(VM, NEW)
    write_image(site.images / "base", OLD)


def _half_saved(site: Site, run: Run) -> None:
    """An earlier cpds was killed in the middle."""
    _new_from_old(site, run)
    run(CPDS.spec(site), Arrow("frontend", "write image staging", 1))


def _brought_back(site: Site, run: Run) -> None:
    """The disk was brought back, and the host may have kept it."""
    _used(site, run)
    run(MVDS.spec(site), None)


def _warm_tree(site: Site, run: Run) -> None:
    """Another VM was made of the same qcow2 image."""
    run(for_vm(OTHER_VM, CLONE_TREE.spec(site)), None)


def _half_tree(site: Site, run: Run) -> None:
    """An earlier clone of a qcow2 image was killed in the middle."""
    run(CLONE_TREE.spec(site), Arrow("lane", "write {staging}", 4))


def _over_tree(site: Site, run: Run) -> None:
    """An earlier attempt left a tree, and a snapshot was made in it; its first file is another than the active one."""
    site.put_tree(VM, QCOW2_USED, "2", beside="01")


def _over_first_tree(site: Site, run: Run) -> None:
    """An earlier attempt left a tree of one file."""
    site.put_tree(VM, QCOW2_USED)


def _used_flat(site: Site, run: Run) -> None:
    """The host has a flat qcow2 disk, as the `ssh` driver leaves it."""
    site.put_disk(VM, QCOW2_USED)


def _old_volatile(site: Site, run: Run) -> None:
    """An earlier attempt made the disk, of another size."""
    site.put_disk(VM, SAME_SIZE)


def _to_grow(site: Site, run: Run) -> None:
    """The host has a disk of the VM."""
    site.put_disk(VM, OLD)


def as_it_is(data: bytes) -> bytes:
    """A disk whose every byte is known."""
    return data


def as_swap(data: bytes) -> bytes:
    """What is known of swap: it has a UUID of its own each time."""
    return b"%s %d" % (data[4086:4096], len(data))


def as_qcow2(data: bytes) -> bytes:
    """What is known of a qcow2 disk with a file system: whose UUID is another each time."""
    if len(data) < HEADER_SIZE:
        return b"too short"
    return b"qcow2 %d" % qcow2.parse(data[: 1 << 16], len(data), "disk").size


def as_context(data: bytes) -> bytes:
    """The file in a context, which has the time in it."""
    iso, found = pycdlib.PyCdlib(), io.BytesIO()
    try:
        iso.open_fp(io.BytesIO(data))
        iso.get_file_from_iso_fp(found, rr_path="/context.sh")
    except pycdlib.pycdlibexception.PyCdlibException as error:
        return repr(error).encode()
    return found.getvalue()


def _furnished(site: Site, run: Run) -> None:
    """The VM has everything that a VM has; the target has nothing."""
    site.put_household(VM, OLD)


def _furnished_over(site: Site, run: Run) -> None:
    """An earlier attempt left a directory at every target."""
    _furnished(site, run)
    for base in (site.other, site.near):
        (base / str(VM) / "deep").mkdir(parents=True)
        (base / str(VM) / "deep" / "stale").write_bytes(b"stale")
        write_image(base / str(VM) / "disk.0", SAME_SIZE)


def _half_moved(site: Site, run: Run) -> None:
    """An earlier move was killed in the middle, with all processes."""
    _furnished(site, run)
    run(MV_RESUMED.spec(site), Arrow("target's lane", "write staged file", 4))


def _restorable(site: Site, run: Run) -> None:
    """The VM has a disk with snapshots, and OpenNebula's datastore driver has a backup of it."""
    _over_tree(site, run)
    backup, store = site.one / "backup", site.one / "var/remotes/datastore"
    (store / "fake").mkdir(parents=True)
    raw = Path(f"{backup}.raw")
    write_image(raw, OLD)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, backup)
    raw.unlink()
    _program(store / "fake/ls", """echo '{"0": "fake://disk"}'""")
    _program(store / "downloader.sh", f"cat {shlex.quote(str(backup))}")


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@dataclass(frozen=True)
class Scenario:
    """One action from one state.

    *image* is the image's layout before it ("": none), *result* the content that the action makes, *disk* what oned
    says of the disk's size and original size, in MiB, *mode* the image's permissions where the action replaces it.
    *prepare* makes the rest of the state.  *seen* gives, of a disk's bytes, what is compared.  *size* (MiB), *fs* and
    *sparse* are for disks that have no image.  *keeps*: the host keeps what is brought back; one scenario has that to
    walk.  *near*: the target of a move is another datastore of the same host.
    """

    name: str
    action: str
    image: str
    result: bytes = field(repr=False)
    prepare: Callable[[Site, Run], None]
    disk: Tuple[Optional[int], Optional[int]] = (None, None)
    mode: int = 0o660
    format: str = "raw"
    lacking: Tuple[str, ...] = ()
    arrows: str = ""
    in_tree: bool = False
    inline: int = 0
    snapshot: int = -1
    members: Tuple[Tuple[str, str], ...] = ()
    """The files of the tree that the action carries: name and layout."""
    least: int = 11
    """Arrows that there must be, or the walk has lost its way."""
    seen: Callable[[bytes], bytes] = as_it_is
    size: int = 0
    fs: str = ""
    sparse: bool = True
    keeps: bool = False
    near: bool = False

    @property
    def about_snapshots(self) -> bool:
        """Whether the action is on snapshots: then `result` says nothing, and `invariants.Views` what must hold."""
        return self.action.startswith("snap_")

    @property
    def writes_image(self) -> bool:
        """Whether it is the image that the action makes, and not the disk."""
        return self.action in ("mvds", "cpds")

    def _argv(self, site: Site) -> List[str]:
        source, disk, end = f"fe:{site.image}", f"host:{site.disk(VM)}", [str(VM), "0"]
        target, number = (f"host:{site.near}", "3") if self.near else (f"other:{site.other}", "2")
        if self.about_snapshots:
            return [disk, str(self.snapshot), *end]
        return {
            "clone": [source, disk, str(VM), "1"],
            "ln": [source, disk, str(VM), "1"],
            "mvds": [disk, source, str(VM), "1"],
            "restore": [f"host:{site.base}/{VM}", str(VM), "5", "-1", "-1"],
            "cpds": [disk, source, "-1", str(VM), "1"],
            "mkimage": [str(self.size), self.format, disk, *end],
            "mkswap": [str(self.size), disk, *end],
            "resize": [disk, str(self.size), *end],
            "context": [f"{__file__}:context.sh", disk, *end],
            "mv": [f"host:{site.base}/{VM}", f"{target}/{VM}", str(VM), number],
        }[self.action]

    def spec(self, site: Site) -> Spec:
        """What the processes need to know of it."""
        return {
            "action": self.action,
            "argv": self._argv(site),
            "one_location": str(site.one),
            "base": str(site.base),
            "images": str(site.images),
            "host_mount": str(site.host),
            "front_mount": str(site.front),
            "other_base": str(site.other),
            "near_base": str(site.near),
            "apart": True,
            "disk": self.disk,
            "source": str(site.images / "base"),
            "cache": "yes" if self.keeps or not self.writes_image else "no",
            "format": self.format,
            "fs": self.fs,
            "sparse": self.sparse,
            "lacking": self.lacking,
            "lanes": 1,
            "inline": self.inline,
            "chunk": CHUNK,
            "log": None,
            "plan": None,
            "mutant": "",
        }


def for_vm(vm: int, spec: Spec) -> Spec:
    """The same action for another VM."""
    argv = [word.replace(f"/{VM}/disk", f"/{vm}/disk") for word in spec["argv"]]
    return {**spec, "argv": [*argv[:2], str(vm), argv[3]]}


CLONE_COLD = Scenario("clone cold", "clone", OLD, content(OLD), nothing)
CLONE_GROWN = Scenario("clone grown", "clone", OLD, grown(OLD, 2 * _MIB), nothing, (2, 1))
CLONE_WARM = Scenario("clone warm", "clone", OLD, content(OLD), _warm)
CLONE_NEXT = Scenario("clone next version", "clone", NEW, content(NEW), _older)
CLONE_RESUMED = Scenario("clone resumed", "clone", OLD, content(OLD), _half)
LN_AGAIN = Scenario("ln after mvds", "ln", OLD, content(SAME_SIZE), _brought_back)
MVDS = Scenario("mvds", "mvds", OLD, content(SAME_SIZE), _used, keeps=True)
MVDS_GROWN = Scenario("mvds grown", "mvds", OLD, content(NEW), _used_and_grown)
MVDS_READ_ONLY = Scenario("mvds to a read-only image", "mvds", OLD, content(NEW), _used_and_grown, mode=0o440)
MVDS_FIRST = Scenario("mvds without an image", "mvds", "", content(NEW), _used_and_grown)
MVDS_RESUMED = Scenario("mvds resumed", "mvds", OLD, content(NEW), _half_back)
CPDS = Scenario("cpds", "cpds", "", content(NEW), _new_from_old)
CPDS_OVER = Scenario("cpds over an image", "cpds", NEW + "Z", content(NEW), _new_from_old, mode=0o640)
CPDS_RESUMED = Scenario("cpds resumed", "cpds", "", content(NEW), _half_saved)

# All that makes a tree of the file, without what another scenario has walked.
_TREES = "tree|make_link|[a-z_]+ (disk|disk staging|disk staging -> .*|VM directory)$"

CLONE_TREE = Scenario("clone qcow2", "clone", QCOW2, content(QCOW2), nothing, format="qcow2")
CLONE_TREE_WARM = Scenario("clone qcow2 warm", "clone", QCOW2, content(QCOW2), _warm_tree, format="qcow2")
CLONE_TREE_RESUMED = Scenario("clone qcow2 resumed", "clone", QCOW2, content(QCOW2), _half_tree, format="qcow2")
CLONE_OVER_TREE = Scenario(
    "clone qcow2 over a tree", "clone", QCOW2, content(QCOW2), _over_tree, format="qcow2", arrows=_TREES
)
CLONE_WITHOUT_EXCHANGE = Scenario(
    "clone qcow2 over a tree without exchange",
    "clone", QCOW2, content(QCOW2), _over_tree, format="qcow2", lacking=("exchange",), arrows=_TREES,
)
CLONE_OVER_FIRST = Scenario(
    "clone qcow2 over a tree of one file, without exchange",
    "clone", QCOW2, content(QCOW2), _over_first_tree, format="qcow2", lacking=("exchange",), arrows=_TREES,
)
CLONE_OVER_FLAT = Scenario(
    "clone qcow2 over a flat one", "clone", QCOW2, content(QCOW2), _used_flat, format="qcow2", arrows=_TREES
)
MVDS_TREE = Scenario("mvds qcow2", "mvds", QCOW2, content(QCOW2_USED), _over_first_tree, format="qcow2")
MVDS_FLAT = Scenario("mvds flat qcow2", "mvds", QCOW2, content(QCOW2_USED), _used_flat, format="qcow2")
CLONE_INLINE = Scenario("clone without lanes", "clone", OLD, content(OLD), nothing, inline=1 << 24)
MVDS_INLINE = Scenario("mvds without lanes", "mvds", OLD, content(NEW), _used_and_grown, inline=1 << 24)
MVDS_INTO_TREE = Scenario(
    "mvds qcow2 into a tree", "mvds", QCOW2, content(QCOW2_USED), _over_first_tree, format="qcow2", in_tree=True
)
RESTORE = Scenario("restore", "restore", "", content(OLD), _restorable, arrows=_TREES)

MKIMAGE = Scenario("mkimage", "mkimage", "", bytes(_MIB), _old_volatile, size=1, sparse=False)
MKIMAGE_QCOW2 = Scenario(
    "mkimage qcow2 with a file system", "mkimage", "", b"qcow2 %d" % (8 * _MIB), nothing,
    format="qcow2", seen=as_qcow2, size=8, fs="ext4",
)
MKSWAP = Scenario("mkswap", "mkswap", "", b"SWAPSPACE2 %d" % (2 * _MIB), nothing, seen=as_swap, size=2)
RESIZE = Scenario("resize", "resize", "", grown(OLD, 2 * _MIB), _to_grow, size=2, sparse=False)
CONTEXT = Scenario(
    "context", "context", "", Path(__file__).read_bytes(), nothing, inline=1 << 24, seen=as_context
)
VOLATILE = [MKIMAGE, MKIMAGE_QCOW2, MKSWAP, RESIZE, CONTEXT]

_INLINE = 1 << 24  # bytes that go without a lane: six files, and a lane for each would take most of the time
_PLACES = "VM directory|system datastore"  # what gives directories their names; other scenarios have walked the rest

MV = Scenario("mv", "mv", "", b"", _furnished, inline=_INLINE)
MV_OVER = Scenario(
    "mv over a directory",
    "mv", "", b"", _furnished_over, arrows=f"{_PLACES}|note|(sync|remove)_directory staged", inline=_INLINE,
)
MV_WITHOUT_EXCHANGE = Scenario(
    "mv over a directory without exchange",
    "mv", "", b"", _furnished_over, lacking=("exchange",), arrows=f"{_PLACES}|old", inline=_INLINE,
)
MV_RESUMED = Scenario("mv resumed", "mv", "", b"", _half_moved, arrows="(create|truncate|allocate|write) staged")
MV_RENAMED = Scenario("mv by renaming", "mv", "", b"", _furnished_over, near=True)
MV_COPIED = Scenario(
    "mv by copying", "mv", "", b"", _furnished_over, lacking=("move",), near=True, arrows=f"{_PLACES}|departed"
)
MOVES = [MV, MV_OVER, MV_WITHOUT_EXCHANGE, MV_RESUMED, MV_RENAMED, MV_COPIED]

def _with_copies(site: Site, run: Run) -> None:
    """The host has a raw disk with snapshots 0 and 1."""
    site.put_disk(VM, NEW)
    copies = site.disk(VM).parent / "disk.0.snap"
    copies.mkdir()
    for number, layout in enumerate((OLD, SAME_SIZE)):
        write_image(copies / str(number), layout)


def _with_overlays(site: Site, run: Run) -> None:
    """The host has a qcow2 disk, 3, that rests on snapshot 1, as snapshot 2 does; and that one on snapshot 0."""
    site.put_overlays(VM, {"0": "", "1": "0", "2": "1", "3": "1"}, "3")


def _with_two_overlays(site: Site, run: Run) -> None:
    """The host has a qcow2 disk with one snapshot."""
    site.put_overlays(VM, {"0": "", "1": "0"}, "1")


_MEMBERS = (("0", QCOW2), ("1", "QC.aC0AbD"), ("2", QCOW2_USED))
_COPIES = (("0", OLD), ("4", "ACb"))


def _with_members(site: Site, run: Run) -> None:
    """The host has a qcow2 disk of three files."""
    site.put_members(site.disk(VM), dict(_MEMBERS), "2")


def _image_with_members(site: Site, run: Run) -> None:
    """The image is one of three files; the host has an older tree, whose link says another number."""
    site.put_members(site.image, dict(_MEMBERS), "2")
    _over_first_tree(site, run)


def _with_copies_to_carry(site: Site, run: Run) -> None:
    """The host has a raw disk with two snapshots."""
    site.put_disk(VM, SAME_SIZE)
    site.put_members(site.disk(VM), dict(_COPIES), "")


def _image_with_copies(site: Site, run: Run) -> None:
    """The image is a raw one with two snapshots."""
    site.put_members(site.image, dict(_COPIES), "")


# How each file is made, others have walked: these are the steps that make a tree of them.
_NAMES = "^(create|make_|rename|exchange|unlink|remove_|sync)[a-z_]* "
_TO_FRONT = _NAMES + ".*(image|tree)"
_TO_HOST = _NAMES + ".*(tree|disk|disk staging|VM directory)"
TREES = [
    Scenario(
        "mvds with snapshots", "mvds", QCOW2, content(QCOW2_USED), _with_members, format="qcow2", in_tree=True,
        inline=1 << 24, members=_MEMBERS, arrows=_TO_FRONT,
    ),
    Scenario(
        "mvds with snapshots over a flat image, without exchange", "mvds", QCOW2, content(QCOW2_USED), _with_members,
        format="qcow2", lacking=("exchange",), inline=1 << 24, members=_MEMBERS,
        arrows="^(rename|exchange|make_link|unlink) .*(tree|image -)", least=5,
    ),
    Scenario(
        "mvds raw with snapshots", "mvds", OLD, content(SAME_SIZE), _with_copies_to_carry, inline=1 << 24,
        members=_COPIES, arrows=_TO_FRONT,
    ),
    Scenario(
        "clone with snapshots", "clone", QCOW2, content(QCOW2_USED), _image_with_members, format="qcow2", in_tree=True,
        inline=1 << 24, members=_MEMBERS, arrows=_TO_HOST,
    ),
    Scenario(
        "clone raw with snapshots", "clone", OLD, content(OLD), _image_with_copies, inline=1 << 24, members=_COPIES,
        arrows=_TO_HOST,
    ),
]  # fmt: skip

SNAPSHOTS = [
    Scenario("first snapshot of a raw disk", "snap_create", "", b"", _used, snapshot=0, least=7),
    Scenario("back to a snapshot, raw", "snap_revert", "", b"", _with_copies, snapshot=0, least=7),
    Scenario("a snapshot removed, raw", "snap_delete", "", b"", _with_copies, snapshot=1, least=2),
    Scenario("snapshot of a tree", "snap_create", "", b"", _with_two_overlays, format="qcow2", snapshot=1, least=9),
    Scenario(
        "snapshot of a tree under another number",
        "snap_create", "", b"", _with_two_overlays, format="qcow2", snapshot=4, least=12,
    ),
    Scenario("back to a snapshot, tree", "snap_revert", "", b"", _with_overlays, format="qcow2", snapshot=0, least=6),
    Scenario("a snapshot removed, tree", "snap_delete", "", b"", _with_overlays, format="qcow2", snapshot=1, least=9),
]

SCENARIOS = [
    *MOVES,
    CLONE_COLD,
    CLONE_GROWN,
    CLONE_WARM,
    CLONE_NEXT,
    CLONE_RESUMED,
    LN_AGAIN,
    MVDS,
    MVDS_GROWN,
    MVDS_READ_ONLY,
    MVDS_FIRST,
    MVDS_RESUMED,
    CPDS,
    CPDS_OVER,
    CPDS_RESUMED,
    CLONE_TREE,
    CLONE_TREE_WARM,
    CLONE_TREE_RESUMED,
    CLONE_OVER_TREE,
    CLONE_WITHOUT_EXCHANGE,
    CLONE_OVER_FIRST,
    CLONE_OVER_FLAT,
    MVDS_TREE,
    MVDS_FLAT,
    MVDS_INTO_TREE,
    CLONE_INLINE,
    MVDS_INLINE,
    *VOLATILE,
    RESTORE,
    *SNAPSHOTS,
    *TREES,
]
