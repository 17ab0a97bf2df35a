"""Invariants: what must hold on both machines after a crash, and after the action was repeated.

Every function returns sentences, one for each thing that is wrong; none means that all is well.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional, Set

from tm_fastcopy.agent.cache import Cache
from tm_fastcopy.agent.lease import leased
from tm_fastcopy.agent.room import sweep
from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.core.files import Files
from tm_fastcopy.core.hashing import hash_page
from tm_fastcopy.core.listing import RECEIPT, TOKEN
from tm_fastcopy.core.manifest import Manifest
from tm_fastcopy.core.tree import settle
from tm_fastcopy.frontend.image import Image

from .scenarios import OVER_TREE, VM, Scenario
from .site import CHUNK, Site, content, sha, sha_of, tree


class Views:
    """What a guest would see in a VM's disk and in each of its snapshots, by the snapshot's number."""

    def __init__(self, site: Site) -> None:
        disk = site.disk(VM)
        tree = disk.parent / "disk.0.snap"
        names = os.listdir(tree) if tree.is_dir() else []
        numbers = [name for name in names if name.isdigit()]
        others = {name[: -len(".current")]: name for name in names if name.endswith(".current")}
        if disk.is_symlink():
            active = os.path.basename(os.readlink(disk))
            self.disk = self._seen(tree / active)
            self.snapshots = {name: self._seen(tree / name) for name in numbers if name != active}
            for number, name in others.items():
                self.snapshots[number] = self._seen(tree / (tree / name).read_text().split("/")[-1].strip())
        else:
            self.disk = sha_of(disk)
            self.snapshots = {name: sha_of(tree / name) for name in numbers}

    @staticmethod
    def _seen(file: Path) -> Optional[str]:
        """The digest of what a guest sees; None if it sees nothing, or the file is not sound."""
        if subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", file], stderr=subprocess.DEVNULL).returncode:
            return None
        with tempfile.NamedTemporaryFile() as raw:
            subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, raw.name], check=True, timeout=60)
            return sha_of(Path(raw.name))

    def problems(self, before: Views, action: str, number: str, done: bool) -> List[str]:
        """What is wrong, if these were the views *before* an action on a snapshot; *done*: it has reported success."""
        goal = before.snapshots.get(number) if action == "snap_revert" else before.disk
        wrong = [] if self.disk == goal or (self.disk == before.disk and not done) else ["wrong: the disk is another"]
        if self.disk is None:
            wrong.append("lost: there is no disk")
        for name, seen in before.snapshots.items():
            if self.snapshots.get(name) != seen and (action != "snap_delete" or name != number):
                wrong.append(f"lost: snapshot {name} is not what it was")
        if done and (number in self.snapshots) != (action != "snap_delete"):
            wrong.append(f"wrong: snapshot {number} is there, or not, after {action}")
        if action == "snap_create" and done and self.snapshots.get(number) != before.disk:
            wrong.append(f"wrong: snapshot {number} is not the disk as it was")
        return wrong


def _beside(link: Path) -> Dict[str, Optional[str]]:
    """Digests of the files in the tree of a disk or an image."""
    tree = link.with_name(f"{link.name}.snap")
    names = sorted(name for name in os.listdir(tree) if not name.startswith(".")) if tree.is_dir() else []
    return {name: sha_of(tree / name) for name in names}

Survey = Optional[Dict[str, str]]


def survey(directory: Path) -> Survey:
    """What lies in a VM's directory, but for what the product itself puts there by name; None if there is none."""
    if not directory.is_dir():
        return None
    found = {".": oct(directory.stat().st_mode)}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if name == RECEIPT or path.name.startswith(TOKEN):
            continue
        content = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else str(sha_of(path))
        found[name] = f"{path.lstat().st_mode:o} {content}"
    return found


class Places:
    """Both ends of a move, and what was at them before it."""

    def __init__(self, site: Site, scenario: Scenario) -> None:
        self._source, self._target = site.base / str(VM), (site.near if scenario.near else site.other) / str(VM)
        self.moved, self._old = survey(self._source), survey(self._target)

    def after_crash(self) -> List[str]:
        """What is wrong after a crash at any point: the source is whole, or the target is, and neither is torn."""
        here, there = survey(self._source), survey(self._target)
        wrong: List[str] = []
        if here not in (None, self.moved):
            wrong.append("wrong: the source is torn")
        if there not in (None, self.moved, self._old) and len(there or {}) > 1:
            wrong.append("wrong: the target is torn")
        if self.moved not in (here, there):
            wrong.append("lost: neither the source is whole nor the target")
        return wrong

    def after_success(self) -> List[str]:
        """What is wrong after the move has reported success."""
        wrong = [] if survey(self._target) == self.moved else ["lost: the target is not what was moved"]
        wrong += [] if survey(self._source) is None else ["wrong: the source is still there"]
        for place in (self._source.parent, self._target.parent):
            left = [path.name for path in place.iterdir() if path.name.startswith(f".{VM}.")]
            wrong += [f"left behind for ever: {name}" for name in left]
        return wrong


class State:
    """What was there before an action, for comparison."""

    def __init__(self, site: Site, scenario: Scenario) -> None:
        self.site, self.scenario = site, scenario
        self.image = sha_of(site.image)
        self.disk = self._disk()
        self.others = self._others()
        self.places = Places(site, scenario) if scenario.action == "mv" else None
        self.beside = _beside(site.disk(VM) if scenario.action == "clone" else site.image)
        self.views = Views(site) if scenario.about_snapshots else None

    def _views(self, done: bool) -> List[str]:
        assert self.views is not None
        scenario = self.scenario
        wrong = Views(self.site).problems(self.views, scenario.action, str(scenario.snapshot), done)
        return wrong + ([] if self._others() == self.others else ["wrong: another VM's disk has changed"])

    def _disk(self) -> Optional[str]:
        """SHA-256 of what can be known of the disk."""
        try:
            return sha(self.scenario.seen(self.site.disk(VM).read_bytes()))
        except FileNotFoundError:
            return None

    def _others(self) -> Dict[str, Optional[str]]:
        base = self.site.base
        return {name: sha_of(base / name) for name in tree(base) if re.fullmatch(r"[0-9]+/disk\.0", name)
                and not name.startswith(f"{VM}/")}

    def after_crash(self) -> List[str]:
        """What is wrong with the files after a crash at any point."""
        if self.places:
            return self.places.after_crash() + cache_problems(self.site)
        if self.views:
            return self._views(False)
        beside = self._members(False) if self.scenario.members else []
        site, wanted = self.site, sha(self.scenario.result)
        if self.scenario.writes_image:
            allowed: Dict[str, Set[Optional[str]]] = {"disk": {self.disk}, "image": {self.image, wanted}}
        else:
            allowed = {"disk": {wanted, self.disk}, "image": {self.image}}
            if self.scenario.action in OVER_TREE:
                allowed["disk"].add(None)  # over a tree, there is a moment without any
        return beside + self._ends(allowed) + cache_problems(site) + memory_problems(site)

    def after_success(self) -> List[str]:
        """What is wrong with the files after the action has reported success."""
        if self.places:
            return self.places.after_success() + cache_problems(self.site)
        if self.views:
            return self._views(True)
        beside = self._members(True) if self.scenario.members else []
        wanted = sha(self.scenario.result)
        back = self.scenario.writes_image
        allowed: Dict[str, Set[Optional[str]]] = {
            "disk": {self.disk if back else wanted},
            "image": {wanted if back else self.image},
        }
        return beside + self._ends(allowed) + cache_problems(self.site) + memory_problems(self.site)

    def _members(self, done: bool) -> List[str]:
        """What is wrong with the files beside the disk or image that the action makes."""
        made = self.site.disk(VM) if self.scenario.action == "clone" else self.site.image
        for link in (self.site.disk(VM), self.site.image):
            if link.parent.is_dir():  # whoever comes next finishes first what was cut off
                parent = os.open(link.parent, os.O_RDONLY)
                settle(Files(), parent, link.name)
                os.close(parent)
        wanted = {name: sha(content(layout)) for name, layout in self.scenario.members}
        now = _beside(made)
        if now == wanted or (now == self.beside and not done):
            return []
        return ["wrong: the files of the tree are neither the old nor the new ones"]

    def _ends(self, allowed: Dict[str, Set[Optional[str]]]) -> List[str]:
        now = {"disk": self._disk(), "image": sha_of(self.site.image)}
        wrong = [
            f"lost: there is no {name}" if now[name] is None else f"wrong: the {name} is neither old nor new"
            for name in now
            if now[name] not in allowed[name]
        ]
        return wrong + ([] if self._others() == self.others else ["wrong: another VM's disk has changed"])


def cache_problems(site: Site) -> List[str]:
    """Everything that has a final name in the cache is whole, and every entry that counts is what it says."""
    if not site.cache.is_dir():
        return []
    problems: List[str] = []
    for path in site.cache.iterdir():
        stem, _, suffix = path.name.partition(".")
        if suffix == "img" and stem:
            data = path.read_bytes()
            fd = os.open(path, os.O_RDONLY)
            digests = hash_page(fd, len(data), CHUNK, 0, -(-len(data) // CHUNK)).digests
            os.close(fd)
            if Manifest(len(data), CHUNK, digests).id != stem:
                problems.append("wrong: a cache image is not what its name says")
        elif suffix == "manifest" and stem:
            try:
                manifest = Manifest.decode(path.read_bytes())
            except FastcopyError as error:
                problems.append(f"wrong: a cache manifest cannot be read: {error}")
                continue
            if manifest.id != stem or not (site.cache / f"{stem}.img").exists():
                problems.append("wrong: a cache manifest makes an entry count that is not there")
        elif suffix == "source" and stem and not (site.cache / f"{path.read_text().strip()}.manifest").exists():
            problems.append("wrong: a source key names an image that is not there")
    return problems


def memory_problems(site: Site) -> List[str]:
    """The front-end remembers no wrong manifest of the image as it is now, and nothing that cannot be read."""
    problems: List[str] = []
    if site.memory.is_dir():
        for path in site.memory.iterdir():
            try:
                path.name.startswith(".") or Manifest.decode(path.read_bytes())
            except FastcopyError as error:
                problems.append(f"wrong: a remembered manifest cannot be read: {error}")
    if not site.image.exists() or problems or len(_beside(site.image)) > 1:
        return problems
    image = Image.open(str(site.image), [str(site.images)], "qcow2" if site.in_tree else "raw")
    try:
        path = site.memory / image.identity.key("")
        if path.exists():
            known = Manifest.decode(path.read_bytes())
            page = hash_page(image.fd, image.size, known.chunk_size, 0, -(-image.size // known.chunk_size))
            if (known.size, known.digests) != (image.size, page.digests):
                problems.append("wrong: the front-end remembers another manifest than the image has")
    finally:
        image.close()
    return problems


_KEPT = re.compile(
    r"(host|front)/ds/[0-9]/\.monitor|host/ds/3/1/.*|front/ds/2/1/.*"  # of a move: `Places` has looked at it
    r"|host/ds/0/[0-9]+/disk\.0(\.snap/0)?"
    r"host/ds/0/\.monitor|host/ds/0/[0-9]+/disk\.0(\.snap/[0-9]+(\.current)?)?"
    r"|host/ds/\.fastcopy/cache/([0-9a-f]{64}\.(img|manifest)|[0-9a-f]{32}\.(source|kept))"
    r"|front/images/(image(\.snap/[0-9]+)?|base)"
    r"|front/one/(auth|backup|var/remotes/.*|var/fastcopy/manifests/\.?[0-9a-f]{32}(\.[0-9]+)?)"
)


def left_over(site: Site) -> List[str]:
    """Files of ours that would stay for ever.

    Leases and what was staged under another name may stay until somebody needs the room: that comes first.
    """
    if site.cache.is_dir():
        fd = os.open(site.cache, os.O_RDONLY | os.O_DIRECTORY)
        cache = Cache.__new__(Cache)
        cache.files, cache.fd, cache.path = Files(), fd, str(site.cache)
        later = time.time() + 3600
        sweep(cache.files, cache, later)
        leased(cache.files, cache, later)
        os.close(fd)
    for machine in (site.host, site.front):  # the next move an hour later does this
        for path in (machine / "ds").rglob(TOKEN + "*"):
            path.unlink()
    found = [f"host/ds/{name}" for name in tree(site.host / "ds")]
    for top in ("images", "one", "ds"):
        found += [f"front/{top}/{name}" for name in tree(site.front / top)]
    lonely = [
        name for name in found
        if name.endswith(".img") and name.startswith("host/ds/.fastcopy") and name[:-3] + "manifest" not in found
    ]
    return [f"left behind for ever: {name}" for name in found if not _KEPT.fullmatch(name) or name in lonely]
