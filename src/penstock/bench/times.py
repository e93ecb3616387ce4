"""Distributions: the times that load processes measured, as HDR histograms and what is read from them.

A value is kept to three significant digits from a microsecond to an hour (HDR: High Dynamic Range). The mean, the
least and the most are exact.
"""

from __future__ import annotations

from array import array
from collections import Counter

from hdrh.histogram import HdrHistogram

from penstock.bench.result import Distribution

_MOST_US = 3_600_000_000
_DIGITS = 3
_NAMED = (50.0, 90.0, 99.0, 99.9)
_CURVE = (0.0, *range(5, 95, 5), 92.5, *range(95, 99), 98.5, 99.0, 99.5)
"""The percentiles of a curve; behind them come 99.9, 99.95, 99.99 and so on, as far as there are values to tell."""


class Times:
    """All that was measured of one time."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, _MOST_US, _DIGITS)
        self._sum_ns = 0
        self._least_ns = 0
        self._most_ns = 0
        self.count = 0

    def add(self, samples: bytes) -> None:
        """Add an array of 64-bit nanoseconds."""
        values = array("q", samples)
        if not values:
            return
        # Two clocks that differ a little can make a latency that is a little less than nothing.
        least, most = max(0, min(values)), max(0, max(values))
        self._least_ns = min(self._least_ns, least) if self.count else least
        self._most_ns = max(self._most_ns, most)
        self._sum_ns += sum(values)
        self.count += len(values)
        # To count first is ten times as fast as to record one by one.
        for value_us, count in Counter([value // 1_000 for value in values]).items():
            self._histogram.record_value(min(max(value_us, 0), _MOST_US), count)

    def add_zeros(self, count: int) -> None:
        """Add values of nothing at all."""
        if count:
            self._histogram.record_value(0, count)
            self._least_ns = 0
            self.count += count

    def distribution(self) -> Distribution:
        """Return what there is, in milliseconds; there must be something."""
        least, most = self._least_ns / 1e6, self._most_ns / 1e6
        percents = self._curve_percents()
        # All in one pass: each one is a walk through up to 20,000 slots.
        values = self._histogram.get_percentile_to_value_dict(sorted({*percents, *_NAMED}))
        # A slot has a width, and its end can be past what was there.
        found = {percent: float(min(max(value / 1e3, least), most)) for percent, value in values.items()}
        found[100.0] = most
        return Distribution(
            count=self.count,
            min=least,
            mean=max(0.0, self._sum_ns / self.count / 1e6),
            p50=found[50.0],
            p90=found[90.0],
            p99=found[99.0],
            p999=found[99.9],
            max=most,
            curve=[(percent, found[percent]) for percent in percents],
        )

    def _curve_percents(self) -> list[float]:
        percents = [float(percent) for percent in _CURVE]
        rest = 0.1
        while self.count * rest / 100 >= 1:
            percents += [round(100 - rest, 9), round(100 - rest / 2, 9)]
            rest /= 10
        return [*percents, 100.0]


def exact_p99(samples: bytes) -> float | None:
    """Return the 99th percentile of an array of 64-bit nanoseconds, in milliseconds; None if it is empty."""
    values = sorted(array("q", samples))
    return max(0, values[min(len(values) - 1, len(values) * 99 // 100)]) / 1e6 if values else None
