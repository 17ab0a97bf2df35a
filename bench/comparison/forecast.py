"""How long the rest will take: from what the same kind of work has taken so far."""

from __future__ import annotations

import statistics
from typing import Dict, Hashable, Iterable, List


class Forecast:
    """Learns seconds by key; what has not been seen yet counts as the mean of all that has."""

    def __init__(self) -> None:
        self._seen: Dict[Hashable, List[float]] = {}

    def add(self, key: Hashable, seconds: float) -> None:
        """Work of this kind has taken so long."""
        self._seen.setdefault(key, []).append(seconds)

    def left(self, keys: Iterable[Hashable]) -> float:
        """Seconds that work of these kinds will take; 0 while nothing is known."""
        if not self._seen:
            return 0.0
        means = {key: statistics.fmean(values) for key, values in self._seen.items()}
        mean = statistics.fmean(means.values())
        return sum(means.get(key, mean) for key in keys)


def in_words(seconds: float) -> str:
    """`40 s`, `3 min`: no more exact than it is."""
    return f"{max(5, 5 * round(seconds / 5))} s" if seconds < 90 else f"{round(seconds / 60)} min"
