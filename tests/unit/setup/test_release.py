"""A release: readable to the user that oned runs as, and with wheels for hosts that are what is required now."""

from __future__ import annotations

import json
import os
import pwd
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tm_fastcopy.frontend.bundle import WHEELS
from tm_fastcopy.setup import release, wheels
from tm_fastcopy.setup.layout import Layout

USER = "nobody"


@pytest.fixture
def made() -> Iterator[Path]:
    """A release as far as it is looked at here: a Python, and wheels for one kind of hosts."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        path = Path(top, "1.0")
        (path / "venv/bin").mkdir(parents=True)
        (path / "venv/bin/python3").symlink_to(os.path.realpath(sys.executable))
        (path / "wheels/cp311-x86_64").mkdir(parents=True)
        (path / "wheels/cp311-x86_64/blake3.whl").write_bytes(b"wheel")
        yield path


def modes(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): path.lstat().st_mode & 0o777 for path in sorted(top.rglob("*"))}


def test_a_release_is_readable_to_all_whatever_the_modes_were_where_it_was_copied_from(made: Path) -> None:
    outside = made.parent / "outside"
    outside.write_text("not ours")
    outside.chmod(0o600)
    (made / "link").symlink_to(outside)
    (made / "run").write_text("#!/bin/sh\n")
    (made / "run").chmod(0o700)
    (made / "wheels/cp311-x86_64/blake3.whl").chmod(0o600)
    for path in ("wheels/cp311-x86_64", "wheels"):
        (made / path).chmod(0o700)
    release.open_to_all(made)
    found = modes(made)
    assert found["run"] == found["wheels"] == found["wheels/cp311-x86_64"] == 0o755
    assert found["wheels/cp311-x86_64/blake3.whl"] == 0o644
    assert outside.stat().st_mode & 0o777 == 0o600


@pytest.mark.root
@pytest.mark.parametrize("closed", ["wheels", "wheels/cp311-x86_64", "wheels/cp311-x86_64/blake3.whl"])
def test_wheels_that_the_user_cannot_read_are_a_problem(
    made: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "_CHECK", "pass")  # its packages are not there
    assert pwd.getpwnam(USER).pw_uid
    assert release._problem(made, USER) == ""
    (made / closed).chmod(0o600)
    assert closed in release._problem(made, USER)


# -- wheels for hosts --------------------------------------------------------------------------------------------------

TAGS = ("cp311-x86_64", "cp39-x86_64", "cp39-aarch64")


class Network:
    """What an index has: wheels for all tags but *lacks*; and what it was asked for."""

    def __init__(self, lacks: Sequence[str] = ()) -> None:
        self.lacks, self.asked = lacks, [""]

    def for_hosts(self, _python: str, _setup: Path, directory: Path, wanted: Sequence[str]) -> dict[str, str]:
        self.asked = list(wanted)
        for name in set(wanted) - set(self.lacks):
            fill(directory / name, "new")
        return {name: "none for it" for name in self.lacks}


def fill(directory: Path, content: str, names: Sequence[str] = WHEELS) -> None:
    directory.mkdir(parents=True)
    for name in names:
        (directory / f"{name}-1.whl").write_text(content)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """With a release that has wheels for one kind of hosts, and a part of those for another."""
    made = Layout(tmp_path)
    before = made.releases / "before"
    fill(before / "wheels" / TAGS[0], "old")
    fill(before / "wheels" / TAGS[1], "old", WHEELS[:1])
    (before / release.STAMP).write_text(json.dumps(wanted().stamp))
    made.current.symlink_to("releases/before")
    return made


def wanted(house: Path | None = None, renew: bool = False) -> release.Wanted:
    return release.Wanted(sys.executable, USER, house, TAGS, renew)


def host_wheels(layout: Layout, wanted: release.Wanted) -> tuple[dict[str, str], list[str]]:
    """By tag, what a new release has; and what was said."""
    new, said = layout.releases / "new", []
    new.mkdir()
    release._host_wheels(layout, wanted, new, sys.executable, said.append)
    found = {path.parent.name: path.read_text() for path in (new / "wheels").rglob(f"{WHEELS[-1]}*.whl")}
    return found, said


def test_wheels_of_the_release_before_are_taken_and_partial_sets_completed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network()
    monkeypatch.setattr(wheels, "for_hosts", network.for_hosts)
    found, _ = host_wheels(layout, wanted())
    assert found == {TAGS[0]: "old", TAGS[1]: "new", TAGS[2]: "new"}
    assert network.asked == [TAGS[1], TAGS[2]]


@pytest.mark.parametrize("why", ["--renew", "other requirements", "an older installer"])
def test_wheels_that_may_not_be_what_is_required_are_fetched_anew(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(wheels, "for_hosts", Network().for_hosts)
    stamp = wanted().stamp
    if why == "other requirements":
        stamp["host_requirements"] = ["blake3 >= 0.1"]
    elif why == "an older installer":
        del stamp["host_requirements"]
    (layout.current / release.STAMP).write_text(json.dumps(stamp))
    found, _ = host_wheels(layout, wanted(renew=why == "--renew"))
    assert found == dict.fromkeys(TAGS, "new")


def test_hosts_without_wheels_are_said_at_once_and_later(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "for_hosts", Network([TAGS[2]]).for_hosts)
    _, said = host_wheels(layout, wanted())
    assert said[-1] == f"hosts with {TAGS[2]} cannot be served: no wheels for them (none for it)"
    assert release.lacking(layout, wanted()) == [TAGS[1], TAGS[2]]  # the new release is not the current one
    layout.current.unlink()
    layout.current.symlink_to("releases/new")
    assert release.lacking(layout, wanted()) == [TAGS[2]]


def test_of_a_wheelhouse_only_whole_sets_are_taken(layout: Layout, tmp_path: Path) -> None:
    fill(tmp_path / "house/hosts" / TAGS[1], "house")
    fill(tmp_path / "house/hosts" / TAGS[2], "house", WHEELS[1:])
    found, said = host_wheels(layout, wanted(tmp_path / "house"))
    assert found == {TAGS[1]: "house"}
    assert [line.split()[2] for line in said] == [TAGS[0], TAGS[2]]
