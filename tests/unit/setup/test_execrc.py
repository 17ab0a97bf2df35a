"""vmm_execrc: the list of drivers with live snapshots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.setup import execrc

OURS = "kvm-fastcopy qemu-fastcopy lxc-fastcopy"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('LIVE_DISK_SNAPSHOTS="kvm-ssh"\n', f'LIVE_DISK_SNAPSHOTS="kvm-ssh {OURS}"\n'),
        ("# x\nexport LIVE_DISK_SNAPSHOTS='kvm-ssh ' # y", f"# x\nexport LIVE_DISK_SNAPSHOTS='kvm-ssh {OURS} ' # y"),
        ('LIVE_DISK_SNAPSHOTS=""', f'LIVE_DISK_SNAPSHOTS="{OURS}"'),
        ('LIVE_DISK_SNAPSHOTS="a\n  b"\n', f'LIVE_DISK_SNAPSHOTS="a\n  b {OURS}"\n'),
        (
            'LIVE_DISK_SNAPSHOTS="qemu-fastcopy"\n',
            'LIVE_DISK_SNAPSHOTS="qemu-fastcopy kvm-fastcopy lxc-fastcopy"\n',
        ),
        ('#LIVE_DISK_SNAPSHOTS="a"', f'#LIVE_DISK_SNAPSHOTS="a"\nLIVE_DISK_SNAPSHOTS="{OURS}"\n'),
        ("", f'LIVE_DISK_SNAPSHOTS="{OURS}"\n'),
    ],
)
def test_the_list_is_extended_and_restored(before: str, after: str) -> None:
    plan = execrc.plan(before)
    assert plan.apply(before) == after
    assert execrc.plan(after).edits == []
    assert execrc.undo(after, [edit.record() for edit in plan.edits])[0] == before


@pytest.mark.parametrize(
    "text",
    [
        'LIVE_DISK_SNAPSHOTS="a"\nLIVE_DISK_SNAPSHOTS="b"\n',
        "LIVE_DISK_SNAPSHOTS=kvm-ssh\n",
        'LIVE_DISK_SNAPSHOTS="$OTHERS kvm-ssh"\n',
        'LIVE_DISK_SNAPSHOTS="a" "b"\n',
        'LIVE_DISK_SNAPSHOTS="a',
    ],
)
def test_what_is_in_doubt_is_left_to_the_administrator(text: str) -> None:
    plan = execrc.plan(text)
    assert plan.edits == []
    assert [OURS in hand.lines for hand in plan.by_hand] == [True]


@given(st.lists(st.sampled_from(["kvm-ssh", "kvm-fastcopy", "lxc-fastcopy", "kvm-fastcopy2", "", "\n"]), max_size=6))
def test_the_inverse_restores_every_byte(items: list[str]) -> None:
    text = f'# list\nLIVE_DISK_SNAPSHOTS="{" ".join(items)}"\nX=1\n'
    plan = execrc.plan(text)
    assert execrc.undo(plan.apply(text), [edit.record() for edit in plan.edits])[0] == text


def test_what_an_administrator_changed_since_stays() -> None:
    before = 'LIVE_DISK_SNAPSHOTS="kvm-ssh"\n'
    records = [edit.record() for edit in execrc.plan(before).edits]
    changed = 'LIVE_DISK_SNAPSHOTS="lxc-fastcopy kvm-fastcopy kvm-ssh kvm-ceph"\n'
    assert execrc.undo(changed, records) == ('LIVE_DISK_SNAPSHOTS="kvm-ssh kvm-ceph"\n', [])
    odd = 'LIVE_DISK_SNAPSHOTS="$X kvm-fastcopy"\n'
    left, by_hand = execrc.undo(odd, records)
    assert left == odd
    assert [hand.lines for hand in by_hand] == [odd.strip()]
