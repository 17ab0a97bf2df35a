"""The choice between packed and plain, against a link and CPUs of which the test knows what they can."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.frontend.compression import MIB, Compression, Slice

CHUNK = 256 * 1024
WINDOW = 32  # chunks on their way


class Machine:
    """Two ends and a link.  Rates are in bytes per second; packed chunks have *ratio* of their size."""

    def __init__(self, link: float, cpu: float, ratio: float) -> None:
        self.link, self.cpu, self.ratio = link, cpu, ratio
        self.now = 0.0

    def cost(self, packed: bool) -> float:
        """Seconds for a chunk: the slower of link and CPU; a plain chunk costs a fifth of the CPU time."""
        wire = CHUNK * (self.ratio if packed else 1.0)
        return max(wire / self.link, CHUNK / (self.cpu if packed else 5 * self.cpu))


def transfer(machine: Machine, choice: Compression, size: int) -> float:
    """Send *size* bytes; return the seconds that it took."""
    begun = machine.now
    flying: List[Slice] = []
    for _ in range(size // CHUNK):
        flying.append(choice.next(CHUNK))
        if len(flying) >= WINDOW:
            part = flying.pop(0)
            machine.now += machine.cost(part.packed)
            choice.arrived(part, CHUNK)
    for part in flying:
        machine.now += machine.cost(part.packed)
        choice.arrived(part, CHUNK)
    return machine.now - begun


def best(machine: Machine, size: int) -> float:
    return size // CHUNK * min(machine.cost(True), machine.cost(False))


@pytest.mark.parametrize(
    ("link", "cpu", "packed_wins"),
    [(2.5e6, 400e6, True), (25e6, 400e6, True), (125e6, 400e6, True), (1.2e9, 200e6, False), (1.2e9, 100e6, False)],
)
def test_the_better_way_takes_most_of_the_image(link: float, cpu: float, packed_wins: bool) -> None:
    machine = Machine(link, cpu, 0.37)
    choice = Compression(clock=lambda: machine.now)
    seconds = transfer(machine, choice, 512 * MIB)
    assert (choice.packed > choice.plain) == packed_wins
    assert max(choice.packed, choice.plain) > 0.85 * 512 * MIB
    assert seconds < 1.3 * best(machine, 512 * MIB)


@pytest.mark.parametrize("faster", [True, False])
def test_it_follows_a_link_that_changes(faster: bool) -> None:
    machine = Machine(25e6, 200e6, 0.37)
    rates = (25e6, 1.2e9) if faster else (1.2e9, 25e6)
    machine.link = rates[0]
    choice = Compression(clock=lambda: machine.now)
    half = 512 * MIB
    transfer(machine, choice, half)
    before = choice.packed, choice.plain
    machine.link = rates[1]
    transfer(machine, choice, half)
    packed, plain = choice.packed - before[0], choice.plain - before[1]
    assert (before[0] > before[1]) == faster
    assert (packed < plain) == faster


@pytest.mark.parametrize(("way", "packed"), [("zstd", True), ("none", False)])
def test_it_can_be_told(way: str, packed: bool) -> None:
    machine = Machine(1.2e9 if packed else 1e6, 100e6, 0.37)
    choice = Compression(way, clock=lambda: machine.now)
    transfer(machine, choice, 64 * MIB)
    assert (choice.packed, choice.plain) == ((64 * MIB, 0) if packed else (0, 64 * MIB))


def test_a_transfer_of_a_few_chunks_is_packed() -> None:
    choice = Compression(clock=lambda: 0.0)
    assert all(choice.next(CHUNK).packed for _ in range(8))


@given(st.lists(st.tuples(st.integers(1, 4 * MIB), st.floats(0, 2)), max_size=200))
def test_nothing_that_can_happen_makes_it_fail(chunks: List[tuple[int, float]]) -> None:
    now = [0.0]
    choice = Compression(clock=lambda: now[0])
    parts = [(choice.next(length), length) for length, _ in chunks]
    for (part, length), (_, pause) in zip(reversed(parts), chunks):
        now[0] += pause
        choice.arrived(part, length)
    assert choice.packed + choice.plain == sum(length for length, _ in chunks)
