"""Parts of the actions around a live migration: standard input, and the names of other drivers."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.frontend import standard_input
from tm_fastcopy.frontend.other_drivers import others

CLIENT = Path(standard_input.__file__).resolve().parents[1] / "remotes" / "client.py"


def test_only_actions_that_get_something_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"PFZNLz4=")
    monkeypatch.setattr(standard_input, "_PATIENCE", 0.05)
    assert standard_input.read("clone", reading) == ""
    assert standard_input.read("premigrate", reading) == "PFZNLz4="  # also if whoever wrote it never closes
    os.write(writing, b"more")
    os.close(writing)
    assert standard_input.read("premigrate", reading) == "more"
    os.close(reading)
    assert standard_input.read("premigrate", reading) == ""  # closed


def test_no_terminal_is_waited_for_and_no_more_is_taken_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    assert standard_input.read("premigrate", theirs) == ""
    os.close(ours)
    os.close(theirs)
    monkeypatch.setattr(standard_input, "MOST", 5)
    reading, writing = os.pipe()
    os.write(writing, b"0123456789")
    os.close(writing)
    assert standard_input.read("premigrate", reading) == "01234"
    os.close(reading)


def test_the_client_reads_the_same() -> None:
    text = CLIENT.read_text()
    assert f"_STDIN = {standard_input.ACTIONS!r}".replace("'", '"') in text
    assert standard_input.MOST == 4 * 1024 * 1024 and "_MOST = 4 * 1024 * 1024" in text


def given(*names: str) -> str:
    disks = "".join(f"<DISK><TM_MAD>{name}</TM_MAD></DISK>" for name in names)
    return base64.b64encode(f"<VM><TEMPLATE>{disks}<DISK/></TEMPLATE></VM>".encode()).decode() + "\n"


def test_other_drivers_are_named_once_and_ours_is_not() -> None:
    assert others(given("ceph", "fastcopy", "lvm", "ceph", "")) == ["ceph", "lvm"]
    assert others(given()) == []


def test_drivers_that_would_remove_the_directory_are_not_called() -> None:
    """`ssh/premigrate` and `qcow2/postmigrate`, say, do `rm -rf` on the VM's directory, also when we call them."""
    assert others(given("ssh", "local", "shared", "ceph", "qcow2")) == ["ceph"]


@pytest.mark.parametrize("text", ["", "!", "PFZN", base64.b64encode(b"<VM>").decode()])
def test_what_is_no_vm_is_refused(text: str) -> None:
    with pytest.raises(FastcopyError, match="not the XML of a VM"):
        others(text)


@pytest.mark.parametrize("name", ["../ceph", "a b", "/bin/sh", "-x", "a" * 65])
def test_a_driver_with_another_name_is_refused(name: str) -> None:
    with pytest.raises(FastcopyError, match="not the name of a driver"):
        others(given(name))
