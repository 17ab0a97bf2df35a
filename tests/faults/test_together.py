"""Actions that meet: on one image, on one VM's disk, and with a front-end that is gone or a file that is written."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Optional, Tuple

import pytest

from .arrows import Arrow
from .invariants import left_over
from .scenarios import CLONE_COLD, MVDS, MVDS_READ_ONLY, OTHER_VM, VM, Scenario, for_vm
from .site import CHUNK, Site, content, sha, sha_of, write_image
from .walk import Harness, Walk, until

WANTED = sha(CLONE_COLD.result)
SMALL_BOUND, GROWN = 32, 20 << 20  # chunks that a file may have, and bytes of a disk that has more of its image's size


EXCHANGE = Arrow("frontend", "exchange image staging -> image", 1)


def _started(harness: Harness, walk: Walk, arrow: Arrow, when: str = "before") -> Tuple[Tuple[int, Path], int]:
    """Begin the walk's action, and stop it at an arrow; returns it, and the process that stands there."""
    begun = harness.begin({**walk.spec, "plan": harness.stop_plan(arrow, when)})
    return begun, harness.wait_for_hit()


def test_two_clones_of_one_image_are_one_transfer(harness: Harness, plain: Site) -> None:
    walk = Walk(harness, plain, CLONE_COLD)
    walk.spec["publishing"] = 60.0
    plain.restore(None)
    leader, _ = _started(harness, walk, Arrow("lane", "write disk staging", 3))
    if not plain.disk(VM).parent.joinpath(".disk.0.fastcopy.part").exists():
        raise AssertionError("the leader does not stage where it should")
    follower = harness.begin({**for_vm(OTHER_VM, walk.spec), "log": str(harness.log)})
    until(lambda: plain.disk(OTHER_VM).parent.is_dir())
    harness.hit.unlink()
    assert harness.wait() == []
    first, second = harness.end(leader), harness.end(follower)
    assert (first.code, second.code) == (0, 0), first.errors + second.errors
    assert "lanes" in first.errors and "cache" in second.errors and "chunks sent 0.0 MiB" in second.errors
    assert sha_of(plain.disk(VM)) == sha_of(plain.disk(OTHER_VM)) == WANTED
    assert left_over(plain) == []


def test_who_comes_when_an_image_is_about_to_get_its_name_waits_for_it(harness: Harness, plain: Site) -> None:
    """The cache's copy is read-only by then, and its fsync may take long; the leader's front-end has its answer."""
    walk = Walk(harness, plain, CLONE_COLD)
    walk.spec["publishing"] = 60.0
    plain.restore(None)
    leader, _ = _started(harness, walk, Arrow("agent", "sync cache image staging", 1))
    follower = harness.begin({**for_vm(OTHER_VM, walk.spec), "log": str(harness.log)})
    until(lambda: plain.disk(OTHER_VM).parent.is_dir())
    time.sleep(0.5)  # for the follower to ask more than once
    harness.hit.unlink()
    assert harness.wait() == []
    first, second = harness.end(leader), harness.end(follower)
    assert (first.code, second.code) == (0, 0), first.errors + second.errors
    assert "cache, copied, chunks sent 0.0 MiB" in second.errors, second
    assert sha_of(plain.disk(OTHER_VM)) == WANTED and left_over(plain) == []


def test_a_follower_takes_over_when_the_leader_is_gone(harness: Harness, plain: Site) -> None:
    walk = Walk(harness, plain, CLONE_COLD)
    plain.restore(None)
    leader, _ = _started(harness, walk, Arrow("lane", "write disk staging", 3))
    harness.server.kill("frontend")
    follower = harness.begin({**for_vm(OTHER_VM, walk.spec)})
    until(lambda: plain.disk(OTHER_VM).parent.is_dir())
    harness.hit.unlink()
    assert harness.wait() == []
    harness.end(leader)
    outcome = harness.end(follower)
    assert outcome.code == 0, outcome.errors
    assert sha_of(plain.disk(OTHER_VM)) == WANTED and not plain.disk(VM).exists()


def test_of_two_mvds_to_one_image_one_is_refused(harness: Harness, plain: Site) -> None:
    walk = Walk(harness, plain, MVDS)
    plain.restore(MVDS.image)
    plain.put_disk(OTHER_VM, "Z" * len(MVDS.image))
    first, _ = _started(harness, walk, Arrow("frontend", "write image staging", 2))
    second = harness.begin(for_vm(OTHER_VM, walk.spec))
    until(lambda: b"another action" in second[1].read_bytes())
    harness.hit.unlink()
    assert harness.wait() == []
    assert (harness.end(first).code, harness.end(second).code) == (0, 1)
    assert sha_of(plain.image) == sha(MVDS.result)


def test_three_mvds_of_one_disk_at_once(harness: Harness, plain: Site) -> None:
    """Repeats of one action wait for the first; of those that wait only the newest goes on."""
    walk = Walk(harness, plain, MVDS)
    plain.restore(MVDS.image)
    first, _ = _started(harness, walk, EXCHANGE, "after")
    claims = {_fence(plain)}
    second = harness.begin(walk.spec)
    until(lambda: _fence(plain) not in claims)
    claims.add(_fence(plain))
    third = harness.begin(walk.spec)
    until(lambda: _fence(plain) not in claims)
    harness.hit.unlink()
    assert harness.wait() == []
    outcomes = [harness.end(begun) for begun in (first, second, third)]
    assert [outcome.code for outcome in outcomes] == [0, 1, 0], outcomes
    assert "a newer action" in outcomes[1].errors
    assert sha_of(plain.image) == sha_of(plain.disk(VM)) == sha(MVDS.result)
    assert left_over(plain) == []


@pytest.mark.parametrize("scenario", [MVDS, MVDS_READ_ONLY], ids=["writable", "read-only"])
def test_who_comes_between_the_exchange_and_its_end_is_refused(
    harness: Harness, plain: Site, scenario: Scenario
) -> None:
    """The old image stands under the staging name.  No agent guards the VM's directory any more: they were killed."""
    walk = Walk(harness, plain, scenario)
    plain.restore(scenario.image, scenario.mode)
    first, _ = _started(harness, walk, EXCHANGE, "after")
    harness.server.kill("host")
    late = []
    for _ in range(2):
        late.append(harness.begin(walk.spec))
        until(lambda: b"mvds" in late[-1][1].read_bytes() or b"cannot" in late[-1][1].read_bytes())
    harness.hit.unlink()
    assert harness.wait() == []
    assert harness.end(first).code == 0
    for outcome in map(harness.end, late):
        assert outcome.code == 1 and "another action is just bringing back" in outcome.errors, outcome
    assert sha_of(plain.image) == sha(scenario.result)
    assert left_over(plain) == []
    assert harness.run(walk.spec).code == 0 and left_over(plain) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_front_end_that_is_told_to_end_while_it_exchanges_completes_it(
    harness: Harness, plain: Site, when: str
) -> None:
    """A thread cannot be stopped; what it works with stays open until it is done."""
    walk = Walk(harness, plain, MVDS)
    plain.restore(MVDS.image)
    begun, front_end = _started(harness, walk, EXCHANGE, when)
    os.kill(front_end, signal.SIGTERM)
    time.sleep(0.3)  # for its event loop to take the signal in while the thread still stands there
    harness.hit.unlink()
    assert harness.wait() == []
    outcome = harness.end(begun)
    assert outcome.code == 1
    assert outcome.errors.strip() == (
        "mvds was ended by a signal; the destination is as it was, or complete: repeat the action"
    )
    assert sha_of(plain.image) == sha(MVDS.result)
    assert left_over(plain) == []
    assert harness.run(walk.spec).code == 0
    assert sha_of(plain.image) == sha(MVDS.result) and left_over(plain) == []


def test_an_older_action_is_refused(harness: Harness, plain: Site) -> None:
    """The VM has moved on in its history: what still comes from before changes nothing."""
    walk = Walk(harness, plain, CLONE_COLD)
    plain.restore(None)
    assert harness.run({**walk.spec, "seq": 5}).code == 0
    write_image(plain.image, "ZZZ")
    late = harness.run({**walk.spec, "seq": 4})
    assert late.code == 1 and "a newer action" in late.errors
    assert sha_of(plain.disk(VM)) == WANTED


def test_a_superseded_action_does_not_publish(harness: Harness, plain: Site) -> None:
    """A newer action claims the disk while an older one is at work: the older one stops, the newer one makes it."""
    walk = Walk(harness, plain, CLONE_COLD)
    plain.restore(None)
    older, _ = _started(harness, walk, Arrow("agent", "write disk staging", 1))
    newer = harness.begin({**walk.spec, "seq": 1})
    until(lambda: _fence(plain).startswith(b"1 "))
    harness.hit.unlink()
    assert harness.wait() == []
    first, second = harness.end(older), harness.end(newer)
    assert first.code == 1 and "newer action" in first.errors
    assert second.code == 0, second.errors
    assert sha_of(plain.disk(VM)) == WANTED
    assert left_over(plain) == []


def _fence(site: Site) -> bytes:
    try:
        return os.getxattr(site.disk(VM).parent, "user.fastcopy.fence.disk.0")
    except OSError:
        return b""


def test_an_orphaned_agent_does_not_publish(harness: Harness, plain: Site) -> None:
    """The front-end is killed when all chunks are there; the agent, which was about to commit, learns of it."""
    walk = Walk(harness, plain, CLONE_COLD)
    plain.restore(None)
    begun, agent = _started(harness, walk, Arrow("agent", "write disk staging", 1))
    threads = len(os.listdir(f"/proc/{agent}/task"))
    harness.server.kill("frontend")
    until(lambda: len(os.listdir(f"/proc/{agent}/task")) < threads)  # the one that reads has met the end
    harness.hit.unlink()
    assert harness.wait() == []
    harness.end(begun)
    assert not plain.disk(VM).exists()
    again = harness.run(walk.spec)
    assert again.code == 0 and sha_of(plain.disk(VM)) == WANTED


def test_an_image_that_is_written_while_it_is_cloned(harness: Harness, plain: Site) -> None:
    """Also after the chunk was sent: what came over is then whole, and yet no image that ever was."""
    for offset in (0, 7 * CHUNK):
        walk = Walk(harness, plain, CLONE_COLD)
        plain.restore(None)
        begun, _ = _started(harness, walk, Arrow("lane", "write disk staging", 2))
        _write(plain.image, offset)
        harness.hit.unlink()
        assert harness.wait() == []
        outcome = harness.end(begun)
        assert outcome.code == 1 and "was written while it was copied" in outcome.errors
        assert not plain.disk(VM).exists()
        changed = sha_of(plain.image)
        assert harness.run(walk.spec).code == 0 and sha_of(plain.disk(VM)) == changed


def test_a_disk_that_is_written_while_it_is_brought_back(harness: Harness, plain: Site) -> None:
    walk = Walk(harness, plain, MVDS)
    plain.restore(MVDS.image)
    begun, _ = _started(harness, walk, Arrow("frontend", "write image staging", 2))
    _write(plain.disk(VM), 0)
    harness.hit.unlink()
    assert harness.wait() == []
    outcome = harness.end(begun)
    assert outcome.code == 1 and "was written while it was read" in outcome.errors
    assert sha_of(plain.image) == sha(content(MVDS.image))
    assert harness.run(walk.spec).code == 0 and sha_of(plain.image) == sha_of(plain.disk(VM))


@pytest.mark.parametrize("bound", [None, SMALL_BOUND], ids=["a seed", "no seed"])
def test_an_image_that_is_written_while_its_successor_is_made_stays(
    harness: Harness, plain: Site, bound: Optional[int]
) -> None:
    """Whoever writes into it, and be it an administrator, must not lose that without a word.

    Also where the disk has grown so large that the image is of no use as a seed.
    """
    walk = Walk(harness, plain, MVDS)
    plain.restore(MVDS.image)
    if bound:
        walk.spec["max_chunks"] = bound
        os.truncate(plain.disk(VM), GROWN)
    begun, _ = _started(harness, walk, Arrow("frontend", "write image staging", 1))
    _write(plain.image, 0)
    written = sha_of(plain.image)
    harness.hit.unlink()
    assert harness.wait() == []
    outcome = harness.end(begun)
    assert outcome.code == 1 and "was written while it was copied" in outcome.errors, outcome
    assert sha_of(plain.image) == written
    assert harness.run(walk.spec).code == 0 and sha_of(plain.image) == sha_of(plain.disk(VM))
    assert left_over(plain) == []


def test_a_disk_that_grew_out_of_its_images_chunk_size(harness: Harness, plain: Site) -> None:
    """4 TiB at the default chunk size; here the bound is so small that it is 16 MiB at the image's 512 KiB."""
    walk = Walk(harness, plain, MVDS)
    walk.spec["max_chunks"] = SMALL_BOUND
    plain.restore(MVDS.image)
    os.truncate(plain.disk(VM), GROWN)
    _write(plain.disk(VM), GROWN - CHUNK)
    for fetched in ("8.0", "0.0"):  # all data, in the two of its five chunks that have any; then the image is a seed
        outcome = harness.run(walk.spec)
        assert outcome.code == 0 and f"chunks fetched {fetched} MiB" in outcome.errors, outcome
        assert sha_of(plain.image) == sha_of(plain.disk(VM))
        assert left_over(plain) == []


def _write(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"written meanwhile")


def test_a_host_that_is_the_front_end_clones_the_image_where_it_lies(harness: Harness, plain: Site) -> None:
    walk = Walk(harness, plain, CLONE_COLD)
    plain.restore(None)
    outcome = harness.run({**walk.spec, "same_machine": True})
    assert outcome.code == 0 and "image on this machine" in outcome.errors, outcome.errors
    assert "chunks sent 0.0 MiB" in outcome.errors
    assert sha_of(plain.disk(VM)) == WANTED
    assert not list(plain.cache.glob("*.img"))
    assert left_over(plain) == []
