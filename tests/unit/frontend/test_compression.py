"""The choice between packed and plain, against a link and CPUs of which the test knows what they can."""

from __future__ import annotations

from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tm_fastcopy.frontend.compression import MIB, Compression

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
    flying: List[Tuple[int, bool]] = []
    for index in range(size // CHUNK):
        flying.append((index, choice.next(index, CHUNK)))
        if len(flying) >= WINDOW:
            _arrive(machine, choice, *flying.pop(0))
    for index, packed in flying:
        _arrive(machine, choice, index, packed)
    return machine.now - begun


def _arrive(machine: Machine, choice: Compression, index: int, packed: bool) -> None:
    machine.now += machine.cost(packed)
    choice.arrived(index)


def best(machine: Machine, size: int) -> float:
    return size // CHUNK * min(machine.cost(True), machine.cost(False))


@pytest.mark.parametrize(
    ("link", "cpu", "packed_wins"),
    [(2.5e6, 400e6, True), (25e6, 400e6, True), (125e6, 400e6, True), (1.2e9, 200e6, False), (1.2e9, 100e6, False)],
)
def test_the_better_way_takes_most_of_the_image(link: float, cpu: float, packed_wins: bool) -> None:
    machine = Machine(link, cpu, 0.37)
    choice = Compression(clock=lambda: machine.now)
    seconds = transfer(machine, choice, 1024 * MIB)  # of a small one, the first trial is a larger part
    assert (choice.packed > choice.plain) == packed_wins
    assert max(choice.packed, choice.plain) > 0.9 * 1024 * MIB
    assert seconds < 1.3 * best(machine, 1024 * MIB)


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
    assert all(choice.next(index, CHUNK) for index in range(8))
    assert choice.learned is None


@pytest.mark.parametrize(("link", "packed"), [(25e6, True), (1.2e9, False)])
def test_what_was_learned_serves_the_next_transfer(link: float, packed: bool) -> None:
    machine = Machine(link, 200e6, 0.37)
    choice = Compression(clock=lambda: machine.now)
    transfer(machine, choice, 256 * MIB)
    assert choice.learned is packed
    choice = Compression(clock=lambda: machine.now, favourite=choice.learned)
    assert choice.next(0, CHUNK) is packed
    choice.arrived(0)
    assert transfer(machine, choice, 512 * MIB) < 1.15 * best(machine, 512 * MIB)


def test_a_chunk_that_is_sent_again_holds_up_nothing() -> None:
    """Its first slice has come without it, and what follows is timed."""
    machine = Machine(1.2e9, 200e6, 0.37)
    choice = Compression(clock=lambda: machine.now)
    assert choice.next(10**6, CHUNK) and choice.awaits(10**6)
    transfer(machine, choice, 16 * MIB)
    assert choice.learned is None
    choice.next(10**6, CHUNK)
    choice.arrived(10**6)
    assert not choice.awaits(10**6)
    transfer(machine, choice, 128 * MIB)
    assert choice.learned is False


@pytest.mark.parametrize("chunk", [2 * MIB, 4 * MIB])
def test_large_chunks_are_timed_too(chunk: int) -> None:
    """A slice of one chunk would have a beginning and no time."""
    machine = Machine(1.2e9, 200e6, 0.37)
    choice = Compression(clock=lambda: machine.now)
    for index in range(100):
        packed = choice.next(index, chunk)
        machine.now += chunk / CHUNK * machine.cost(packed)
        choice.arrived(index)
    assert choice.learned is False


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    choice = Compression(clock=lambda: 0.0)
    choice.next(1, CHUNK)
    choice.arrived(2)
    assert choice.awaits(1) and not choice.awaits(2)


@given(st.lists(st.tuples(st.integers(1, 4 * MIB), st.floats(0, 2)), max_size=200))
def test_nothing_that_can_happen_makes_it_fail(chunks: List[tuple[int, float]]) -> None:
    now = [0.0]
    choice = Compression(clock=lambda: now[0])
    for index, (length, _) in enumerate(chunks):
        choice.next(index, length)
    for index, (_, pause) in zip(reversed(range(len(chunks))), chunks):
        now[0] += pause
        choice.arrived(index)
    assert choice.packed + choice.plain == sum(length for length, _ in chunks)
