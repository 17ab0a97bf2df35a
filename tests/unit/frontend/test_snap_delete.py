"""What a host is told of a VM whose snapshot is to be removed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.frontend.actions import snap_delete
from tm_fastcopy.frontend.snapshots import Subject


def subject(lcm_state: int, deploy_id: str, target: str) -> Subject:
    vm: Any = SimpleNamespace(id=42, lcm_state=lcm_state, hypervisor="kvm", deploy_id=deploy_id)
    disk: Any = SimpleNamespace(target=target)
    return Subject(vm, disk, "qcow2", 1, True)


def test_a_vm_that_runs_is_never_taken_for_one_that_is_off() -> None:
    assert snap_delete._message(subject(59, "one-42", "vda")).domain == "one-42"
    assert snap_delete._message(subject(53, "one-42", "vda")).domain == ""
    for deploy_id, target in (("", "vda"), ("one-42", "")):
        with pytest.raises(FastcopyError, match="VM 42, which runs"):
            snap_delete._message(subject(59, deploy_id, target))
