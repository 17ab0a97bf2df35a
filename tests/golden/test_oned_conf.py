"""What the installer does to oned.conf, case by case: `tests/golden/oned_conf/<case>.conf` and its `.expected`.

After a change that is meant: `python -m tests.golden.test_oned_conf` writes what is expected anew, to be read.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tm_fastcopy.setup import onedconf
from tm_fastcopy.setup.edits import Plan, diff

CASES = Path(__file__).with_name("oned_conf")
OPTIONS = {
    "many_lines": [((), None), (("shared",), 30)],
    "one_line": [((), 30), (("qcow2",), None)],
    "odd_lists": [(("qcow2",), 30)],
    "image_said_otherwise": [(("shared", "qcow2"), None)],
}
"""Image drivers and threads of each run; without an entry, one run with neither."""


def read(path: Path) -> str:
    with path.open(newline="") as file:
        return file.read()


def shown(text: str) -> str:
    """All that a case leads to, as text."""
    return "\n".join(run(text, *options) for options in OPTIONS.get(text_of[text], [((), None)]))


text_of = {read(path): path.stem for path in sorted(CASES.glob("*.conf"))}


def run(text: str, image_tm: tuple[str, ...], threads: int | None) -> str:
    plan = onedconf.plan(text, image_tm, threads)
    lines = [f"== image drivers: {' '.join(image_tm) or 'none'}; threads: {threads or 'not said'}"]
    lines += [f"present: {what}" for what in plan.present]
    lines += [f"advice: {what}" for what in plan.advice]
    for hand in plan.by_hand:
        lines += [f"by hand: {hand.why}", *(f"    {line}" for line in hand.lines.splitlines())]
    return "\n".join(lines) + "\n" + diff("oned.conf", text, plan.apply(text))


@pytest.mark.parametrize("text", text_of, ids=text_of.values())
def test_the_edits_are_the_expected_ones(text: str) -> None:
    assert shown(text) == read(CASES / f"{text_of[text]}.expected")


@pytest.mark.parametrize("text", text_of, ids=text_of.values())
def test_a_second_run_finds_nothing_to_do_and_the_inverse_restores_every_byte(text: str) -> None:
    for image_tm, threads in OPTIONS.get(text_of[text], [((), None)]):
        plan = onedconf.plan(text, image_tm, threads)
        after = plan.apply(text)
        assert onedconf.plan(after, image_tm, threads).edits == []
        assert onedconf.undo(after, [edit.record() for edit in plan.edits]) == (text, [])


def test_every_case_has_an_effect_that_is_told() -> None:
    assert len(text_of) == 12
    for text in text_of:
        plan: Plan = onedconf.plan(text)
        assert plan.edits or plan.by_hand or plan.present


if __name__ == "__main__":
    for case, name in text_of.items():
        with (CASES / f"{name}.expected").open("w", newline="") as file:
            file.write(shown(case))
