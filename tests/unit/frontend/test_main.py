"""The entry: exactly one line for oned when an action fails, and the exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any, Callable, Coroutine, Optional

import pytest

from tm_fastcopy.core.errors import NoSpace, Refused
from tm_fastcopy.frontend import perform as module
from tm_fastcopy.frontend.main import main, run_action
from tm_fastcopy.frontend.services import Services

Run = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def action(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Replace the action `clone`."""

    def work(run: Run) -> None:
        fake = types.ModuleType("tm_fastcopy.frontend.actions.clone")
        fake.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        monkeypatch.delenv("FASTCOPY_DEBUG", raising=False)

    return work


class FakeCall:
    """As much of a call as a fake action needs."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log, self.services, self.vm_id = log, Services(), None


def call(make: Optional[Callable[[Any], Any]] = None) -> int:
    return run_action("clone", make or FakeCall)


def raising(error: BaseException) -> Run:
    async def run(_: Any) -> None:
        raise error

    return run


def test_success_is_silent(action: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    async def run(call: Any) -> None:
        call.log("it went well")

    action(run)
    assert call() == 0
    assert capsys.readouterr() == ("", "INFO: clone: it went well\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Refused("no such thing"), "no such thing"),
        (NoSpace("two\nlines\n\nof text"), "two lines of text"),
        (OSError(5, "Input/output error"), "clone: Input/output error"),
        (Refused("--- ERROR MESSAGE --8<------"), "ERROR MESSAGE --8<------"),
        (ZeroDivisionError("x"), "clone failed because of a defect in fastcopy: ZeroDivisionError: x"),
        (AssertionError(), "clone failed because of a defect in fastcopy: AssertionError: "),
        (Refused("x" * 10_000), "x" * 2000),
    ],
)
def test_a_failure_is_exactly_one_line(
    action: Callable[[Run], None], capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    action(raising(error))
    assert call() == 1
    assert capsys.readouterr() == ("", line.strip() + "\n")


def test_a_call_that_cannot_be_made_is_one_line_too(
    action: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def make(_: Any) -> Any:
        raise Refused("FASTCOPY_LANES is nonsense")

    action(raising(AssertionError()))
    assert call(make) == 1
    assert capsys.readouterr().err == "FASTCOPY_LANES is nonsense\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["../clone"], ["--help"]])
def test_what_is_no_action(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv, {}) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_real_actions_tell_what_they_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "auth").write_text("x:y")
    for name in module.ACTIONS:
        assert main([name], {"ONE_AUTH": str(tmp_path / "auth")}) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "0 arguments were given where" in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_action_clean_up(
    action: Callable[[Run], None], capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    cleaned = []

    async def run(_: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    action(run)
    assert call() == 1
    assert cleaned
    said = "clone was ended by a signal; the destination is as it was, or complete: repeat the action\n"
    assert capsys.readouterr().err == said


def test_a_defect_can_be_looked_at(
    action: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    action(raising(ZeroDivisionError()))
    monkeypatch.setenv("FASTCOPY_DEBUG", "yes")
    with pytest.raises(ZeroDivisionError):
        call()
