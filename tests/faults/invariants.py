"""Invariants: what must hold on both machines after a crash, and after the action was repeated.

Every function returns sentences, one for each thing that is wrong; none means that all is well.
"""

from __future__ import annotations

import os
import re
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
from tm_fastcopy.frontend.image import Image

from .scenarios import OVER_TREE, VM, Scenario
from .site import CHUNK, Site, sha, sha_of, tree

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
        site, wanted = self.site, sha(self.scenario.result)
        if self.scenario.writes_image:
            allowed: Dict[str, Set[Optional[str]]] = {"disk": {self.disk}, "image": {self.image, wanted}}
        else:
            allowed = {"disk": {wanted, self.disk}, "image": {self.image}}
            if self.scenario.action in OVER_TREE:
                allowed["disk"].add(None)  # over a tree, there is a moment without any
        return self._ends(allowed) + cache_problems(site) + memory_problems(site)

    def after_success(self) -> List[str]:
        """What is wrong with the files after the action has reported success."""
        if self.places:
            return self.places.after_success() + cache_problems(self.site)
        wanted = sha(self.scenario.result)
        back = self.scenario.writes_image
        allowed: Dict[str, Set[Optional[str]]] = {
            "disk": {self.disk if back else wanted},
            "image": {wanted if back else self.image},
        }
        return self._ends(allowed) + cache_problems(self.site) + memory_problems(self.site)

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
    if not site.image.exists() or problems:
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
    r"|host/ds/\.fastcopy/cache/([0-9a-f]{64}\.(img|manifest)|[0-9a-f]{32}\.(source|kept))"
    r"|front/images/(image(\.snap/0)?|base)"
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
