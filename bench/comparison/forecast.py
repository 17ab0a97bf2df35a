"""How long the rest will take: from what the same kind of work has taken so far."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Dict, Hashable, Iterable, List

_LEAST = 2  # turns of one kind that are taken whatever they cost: one to warm up, and one that counts


class Forecast:
    """Learns seconds by key; what has not been seen yet counts as the mean of all that has.

    *budget*: seconds of one kind of work after which no more of it is done.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._seen: Dict[Hashable, List[float]] = {}

    def add(self, key: Hashable, seconds: float) -> None:
        """Work of this kind has taken so long."""
        self._seen.setdefault(key, []).append(seconds)

    def left(self, keys: Iterable[Hashable]) -> float:
        """Seconds that turns of these kinds will take; 0 while nothing is known."""
        if not self._seen:
            return 0.0
        means = {key: statistics.fmean(values) for key, values in self._seen.items()}
        mean = statistics.fmean(means.values())
        total = 0.0
        for key, count in Counter(keys).items():
            each = means.get(key, mean)
            allowed = max(_LEAST, int(self._budget // each) + 1) if each else count
            total += each * max(0, min(count, allowed - len(self._seen.get(key, []))))
        return total


def in_words(seconds: float) -> str:
    """`40 s`, `3 min`: no more exact than it is."""
    return f"{max(5, 5 * round(seconds / 5))} s" if seconds < 90 else f"{round(seconds / 60)} min"
