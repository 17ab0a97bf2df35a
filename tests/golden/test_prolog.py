"""The JSON of bench/prolog, version 1: what `--json` writes, and what must always be readable."""

from __future__ import annotations

from pathlib import Path

from bench.comparison.values import from_json, to_json
from tests.unit.prolog.reports import fixed

GOLDEN = Path(__file__).resolve().parent / "prolog-v1.json"


def test_prolog_v1() -> None:
    text = GOLDEN.read_text()
    assert to_json(fixed()) == text
    assert from_json(text) == fixed()
