"""The removal of a disk that becomes an image of the cache, where blocks cannot be shared: killed at every arrow."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from tests.support import NO_SHARING

from .arrows import Plan, arrows_in
from .invariants import cache_problems, left_over
from .order import broken_rules
from .scenarios import MVDS, OLD, SAME_SIZE, VM
from .site import Site, content, sha, sha_of
from .walk import Harness

WANTED = sha(content(SAME_SIZE))


def brought_back(harness: Harness, site: Site, whole: bool) -> Dict[str, Any]:
    """A disk that `mvds` has brought back; returns what deletes it, or all of its VM's directory.

    Made anew for each run: the note is about this very file.
    """
    site.wipe()
    site.restore_image(OLD)
    site.put_disk(VM, SAME_SIZE)
    spec = {**MVDS.spec(site), "lacking": NO_SHARING}
    assert harness.run(spec).code == 0
    assert len(list(site.cache.glob("*.kept"))) == 1
    target = f"host:{site.base}/{VM}" + ("" if whole else "/disk.0")
    return {**spec, "action": "delete", "argv": [target, str(VM), "0"]}


@pytest.mark.parametrize("whole", [False, True], ids=["disk", "directory"])
def test_a_disk_that_is_removed_becomes_an_image_or_nothing(harness: Harness, plain: Site, whole: bool) -> None:
    spec = brought_back(harness, plain, whole)
    lines = harness.discover(spec)
    assert broken_rules(lines) == []
    assert len(list(plain.cache.glob("*.img"))) == 1 and not list(plain.cache.glob("*.kept"))
    assert cache_problems(plain) == [] and not plain.disk(VM).exists()
    arrows = [arrow for arrow in arrows_in(lines) if "probe" not in arrow.change]
    assert [arrow for arrow in arrows if arrow.method == "move"], arrows
    wrong: List[str] = []
    for arrow in arrows:
        for when in ("before", "after"):
            spec = brought_back(harness, plain, whole)
            crashed = harness.run({**spec, "plan": Plan(arrow, when, "kill", str(harness.hit)).encode()})
            problems = [] if crashed.hit else ["this arrow was not reached"]
            problems += [] if sha_of(plain.disk(VM)) in (None, WANTED) else ["wrong: the disk is not what it was"]
            problems += cache_problems(plain)
            again = harness.run(spec)
            problems += [] if again.code == 0 else [f"lost: repeating failed: {again.errors}"]
            problems += ["wrong: the disk is still there"] if plain.disk(VM).exists() else []
            problems += [] if sha_of(plain.image) == WANTED else ["lost: the image"]
            problems += cache_problems(plain) + left_over(plain)
            wrong += [f"{when} {arrow}: {problem}" for problem in problems]
    assert wrong == []
