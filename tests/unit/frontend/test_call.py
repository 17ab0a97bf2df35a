"""A call: which datastores it belongs to."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Tuple

import pytest

from tm_fastcopy.core.errors import Refused
from tm_fastcopy.core.paths import DiskPath
from tm_fastcopy.frontend.call import Call, datastore, datastore_of
from tm_fastcopy.frontend.host import Host
from tm_fastcopy.frontend.oned import Datastore, Vm
from tm_fastcopy.frontend.services import Services

STORES = {
    0: Datastore(0, "/d/0", True),
    1: Datastore(1, "/d/1", False),
    2: Datastore(2, "/d/1/inner", False),
    3: Datastore(3, "/d/1", True),
}


@pytest.mark.parametrize(
    ("path", "system", "number"),
    [("/d/0/4/disk.0", True, 0), ("/d/1/image", False, 1), ("/d/1//inner/image", False, 2), ("/d/1/4/disk.0", True, 3)],
)
def test_the_datastore_that_a_path_lies_in(path: str, system: bool, number: int) -> None:
    assert datastore_of(STORES, path, system).id == number


@pytest.mark.parametrize(
    ("path", "system"), [("/d/0/42/disk.0", False), ("/d/2/x", False), ("/d/1", False), ("/d/0/../1/x", False)]
)
def test_a_path_outside_is_refused(path: str, system: bool) -> None:
    with pytest.raises(Refused):
        datastore_of(STORES, path, system)


def test_datastores_by_number() -> None:
    assert datastore(STORES, 2).id == 2
    with pytest.raises(Refused, match="oned knows no datastore 7"):
        datastore(STORES, 7)


class OnedThatGrows:
    """An oned with VM 42 in datastore 9; *answers* are its datastores, one after the other."""

    endpoint = "http://oned"

    def __init__(self, answers: List[Dict[int, Datastore]]) -> None:
        self._answers = answers

    def vm(self, vm_id: int) -> Vm:
        return Vm(vm_id, 0, {}, store=9)

    def datastores(self) -> Dict[int, Datastore]:
        return self._answers.pop(0)


def test_a_vms_datastore_that_is_younger_than_what_is_remembered_is_asked_for(tmp_path: Path) -> None:
    """oned names the image's datastore; what is remembered has that one, but not yet the VM's."""
    environ = {"ONE_LOCATION": str(tmp_path), "HOME": str(tmp_path)}
    call = Call([], environ, print, Services(keep=True))
    grown = {**STORES, 9: Datastore(9, "/d/9", True)}
    call.__dict__["oned"] = OnedThatGrows([STORES, grown])

    async def asked() -> None:
        for _ in ("asked again", "remembered"):
            vm, stores = await call.ask_oned(42, 1)
            assert (vm.store, stores) == (9, grown)

    asyncio.run(asked())


# --- what is removed when somebody ends it ------------------------------------------------------------------------


def ended(tmp_path: Path, remove: Any, discard: bool = True, again: bool = False) -> str:
    """Cancel a call in the middle of its work; what it says then is left.  *again*: cancel it once more."""
    environ = {"ONE_LOCATION": str(tmp_path), "HOME": str(tmp_path)}
    call = Call([], environ, print, Services(keep=True))

    async def work() -> None:
        async with call.discarding(remove):
            await asyncio.sleep(60)

    async def scene() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        call.discard = discard
        for _ in range(2 if again else 1):
            task.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    return "; ".join(call.left or [])


@pytest.mark.parametrize("says", ["", "what is used"])
def test_what_an_action_has_staged_is_removed_when_it_is_ended_for_good(tmp_path: Path, says: str) -> None:
    async def remove() -> str:
        (tmp_path / "staged").unlink()
        return says

    for discard in (False, True):
        (tmp_path / "staged").touch()
        assert ended(tmp_path, remove, discard) == (says if discard else "")
        assert (tmp_path / "staged").exists() != discard


@pytest.mark.parametrize("error", [Refused("it is in use"), OSError("it is in use"), ValueError("it is in use")])
def test_what_cannot_be_removed_is_said_and_the_action_ends_all_the_same(tmp_path: Path, error: Exception) -> None:
    async def remove() -> str:
        raise error

    assert "could not be removed (it is in use)" in ended(tmp_path, remove)


def test_a_removal_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit holds in a task that has been cancelled, whatever the version of Python."""
    monkeypatch.setattr("tm_fastcopy.frontend.call._DISCARDING", 0.05)
    gone = []

    async def remove() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            gone.append(True)
        return ""

    assert "could not be removed in" in ended(tmp_path, remove)
    assert gone


def test_a_removal_that_is_cut_off_is_said(tmp_path: Path) -> None:
    """By a delete that takes the turn, say, or because the client went away."""

    async def remove() -> str:
        await asyncio.sleep(60)
        return ""

    assert "cut off" in ended(tmp_path, remove, again=True)


class SlowHost:
    """A host whose agent does not answer; what is asked of it when the action is ended."""

    discarded: ClassVar[List[Tuple[str, str]]] = []

    def __init__(self, name: str) -> None:
        self.name, self.is_open = name, False

    async def __aenter__(self) -> SlowHost:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def open(self, *_: object) -> None:
        await asyncio.sleep(60)

    async def discard(self, disk: DiskPath, seq: int, action: int, key: str) -> bool:
        self.discarded.append((disk.name, key))
        return key != "busy"


@pytest.mark.parametrize(
    ("keys", "wanted", "asked", "shared"),
    [
        ([], "", [("disk.0", "")], False),
        (["", "abc"], "", [("disk.0", "abc")], False),
        (["abc", "def"], "abc", [("disk.0", "def")], True),
        (["abc"], "abc", [("disk.0", "")], True),  # what is staged of the disk itself is nobody else's
        (["busy"], "", [("disk.0", "busy")], True),
    ],
)
def test_who_is_ended_before_the_first_answer_has_all_removed_that_earlier_attempts_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: List[str], wanted: str, asked: Any, shared: bool
) -> None:
    monkeypatch.setattr("tm_fastcopy.frontend.call._LANES_END", -1.0)
    monkeypatch.setattr(SlowHost, "discarded", [])
    environ = {"ONE_LOCATION": str(tmp_path), "HOME": str(tmp_path)}
    call = Call([], environ, print, Services(keep=True))
    monkeypatch.setattr(call, "host", SlowHost)
    disk = DiskPath("/d/0", 42, "disk.0")

    async def work(_: Host) -> None:
        raise AssertionError("the host does not answer")

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            if wanted:
                await stack.enter_async_context(call.services.flights.board(("host1", "/d/0", wanted)))
            task = asyncio.ensure_future(call.converse("host1", disk, 0, True, work, lambda: keys))
            await asyncio.sleep(0.01)
            call.discard = True
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scene())
    assert SlowHost.discarded == asked
    assert (call.left, bool(call.shared)) == ([], shared)
