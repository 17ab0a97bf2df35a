"""The action mv: which settings its conversations have."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, List

import pytest

from tm_fastcopy.core.errors import FastcopyError
from tm_fastcopy.frontend.actions import mv
from tm_fastcopy.frontend.call import Call
from tm_fastcopy.frontend.oned import Datastore, Vm
from tm_fastcopy.frontend.services import Services


def test_a_host_is_dialled_with_the_limit_of_the_datastore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: List[int] = []

    async def ask_oned(call: Call, vm: int, store: int) -> Any:
        return Vm(42, 1, {}), {0: Datastore(0, "/d/0", True, {"FASTCOPY_BWLIMIT_HOST": "1M"})}

    async def converse(call: Call, *rest: Any) -> Any:
        found.append(call.settings.bwlimit_host)
        raise FastcopyError("this is far enough")

    async def run() -> None:
        services = Services()
        try:
            words = ["host1:/d/0/42", "host2:/d/0/42", "42", "0"]
            await mv.run(Call(words, {"ONE_LOCATION": str(tmp_path)}, lambda text: None, services))
        finally:
            await services.close()

    monkeypatch.setattr(Call, "ask_oned", ask_oned)
    monkeypatch.setattr(mv, "_converse", converse)
    with pytest.raises(FastcopyError, match="far enough"):
        asyncio.run(run())
    assert found == [1 << 20]
