"""Who the commands work as, and with which ssh agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tm_fastcopy.commands import account
from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.frontend.places import Places


def places(top: Path) -> Places:
    (top / "var").mkdir()
    return Places.of({"ONE_LOCATION": str(top)})


def test_whoever_is_neither_root_nor_the_owner_is_told_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = places(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(found.state.parent).st_uid + 12345)
    with pytest.raises(FastcopyError, match=r"this is for \w+ and root: sudo -u \w+ fastcopy"):
        account.assume(found)


def test_where_no_opennebula_is_that_is_said() -> None:
    with pytest.raises(FastcopyError, match="no OpenNebula front-end here: /nonexistent/var is missing"):
        account.assume(Places.of({"ONE_LOCATION": "/nonexistent"}))


def test_the_owner_goes_on_as_it_is(tmp_path: Path) -> None:
    assert account.assume(places(tmp_path))["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SSH_AUTH_SOCK=/run/one/agent.sock\n", "/run/one/agent.sock"),
        ("SSH_AUTH_SOCK=/run/one/agent.sock; export SSH_AUTH_SOCK;\nSSH_AGENT_PID=7\n", "/run/one/agent.sock"),
        ("OTHER_SSH_AUTH_SOCK=/x\n", None),
        ("", None),
    ],
)
def test_opennebulas_agent_is_used_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: object
) -> None:
    (tmp_path / "env").write_text(text)
    monkeypatch.setattr(account, "_AGENT", tmp_path / "env")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert account.environment().get("SSH_AUTH_SOCK") == found
    monkeypatch.setenv("SSH_AUTH_SOCK", "/mine")
    assert account.environment()["SSH_AUTH_SOCK"] == "/mine"
