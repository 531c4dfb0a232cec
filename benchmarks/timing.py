"""
Interleaved measurements: A B C, B C A, ... in many short rounds.

Whatever else the machine does hits all cases of a round alike, and most rounds
are too short to be hit at all: medians and quartiles show how it was, and small
differences are judged by the fastest tenth of the rounds of each case, since
other work can only make a round longer.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Series(NamedTuple):
    """
    One number per round. Immutable, so it may be shared between threads.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """
        The middle value.
        """
        return statistics.median(self.values)

    @property
    def quick(self) -> float:
        """
        The mean of the fastest tenth of the rounds, which nothing else disturbed.
        """
        fastest = sorted(self.values)[: max(1, len(self.values) // 10)]
        return statistics.fmean(fastest)

    @property
    def low(self) -> float:
        """
        The first quartile.
        """
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """
        The third quartile.
        """
        return self._quartiles()[2]

    @property
    def spread(self) -> float:
        """
        The distance between the quartiles.
        """
        return self.high - self.low

    def minus(self, other: Series) -> Series:
        """
        Return what this took more than `other`, round by round.
        """
        return Series(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def over(self, other: Series) -> Series:
        """
        Return the ratio to `other`, round by round.
        """
        return Series(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def plus(self, other: Series) -> Series:
        """
        Return the sum with `other`, round by round.
        """
        return Series(tuple(a + b for a, b in zip(self.values, other.values, strict=True)))

    def _quartiles(self) -> list[float]:
        if len(self.values) < 2:
            return [self.values[0]] * 3
        return statistics.quantiles(self.values, n=4, method="inclusive")


def interleave(
    cases: Mapping[str, Callable[[], Sequence[float]]], rounds: int
) -> dict[str, list[Series]]:
    """
    Run every case once per round, each round starting with another one.

    A case prepares and measures a batch by itself and returns one or several
    times. The first round warms up and is thrown away. The garbage of one case
    is collected before the next begins; within a case the collector runs as it
    would in a server.
    """
    names = list(cases)
    rows: dict[str, list[Sequence[float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            gc.collect(1)
            times = cases[name]()
            if number:
                rows[name].append(times)
    return {
        name: [Series(tuple(column)) for column in zip(*rows[name], strict=True)] for name in names
    }
