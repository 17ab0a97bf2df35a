"""docs/STOCK_DEFECTS.md: every defect is there, and every test that it names exists and says which defect it is of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
HERE = "tests/e2e/test_stock_defects.py"  # of tests without a path
_FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
DEFECTS = [*(f"A{n}" for n in range(1, 14)), *(f"B{n}" for n in range(1, 10)), *(f"C{n}" for n in range(1, 5))]


class Row(NamedTuple):
    """A defect, the tests of this driver, and those that run the stock script."""

    defect: str
    tests: list[str]
    stock: list[str]


def names(cell: str) -> list[str]:
    """Tests that a cell names, each as file::function."""
    found = re.findall(r"`((?:tests/[\w/]+\.py::)?test_\w+)`", cell)
    return [name if "::" in name else f"{HERE}::{name}" for name in found]


def rows() -> Iterator[Row]:
    for line in (ROOT / "docs/STOCK_DEFECTS.md").read_text().splitlines():
        if re.match(r"\| [A-C]\d", line):
            _, defect, theirs, ours, tests, stock, _ = (cell.strip() for cell in line.split("|"))
            assert theirs.endswith(".") and ours.endswith("."), defect
            yield Row(defect, names(tests), names(stock))


def docstring(name: str) -> str:
    """The docstring of a test; None is "", and a test that does not exist an error."""
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    found = [node for node in tree.body if isinstance(node, _FUNCTIONS) and node.name == function]
    assert found, f"there is no test {name}"
    return ast.get_docstring(found[0]) or ""


def test_every_defect_is_there_once_and_has_a_test() -> None:
    found = list(rows())
    assert [row.defect for row in found] == DEFECTS
    assert [row.defect for row in found if not row.tests] == []


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.defect)
def test_every_test_exists_and_says_so(row: Row) -> None:
    for name in [*row.tests, *row.stock]:
        said, function = docstring(name), name.partition("::")[2]
        assert function.startswith(f"test_{row.defect.lower()}_") or re.search(rf"\b{row.defect}\b", said), (
            f"the docstring of {name} does not name {row.defect}"
        )


def test_every_test_of_the_stock_scripts_is_in_the_table() -> None:
    tree = ast.parse((ROOT / HERE).read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    named = {name.partition("::")[2] for row in rows() for name in (*row.tests, *row.stock) if name.startswith(HERE)}
    assert tests == named
