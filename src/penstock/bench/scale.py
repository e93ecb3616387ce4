"""Where a number goes on an axis, and which numbers the axis names.

Three kinds of axis: `linear`, `log`, and `percentile`, on which 90, 99 and 99.9 are equally far from each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log", "percentile"]

_LARGEST = 1e100
"""Numbers beyond are drawn there: their differences still fit a float."""
_SMALLEST = 1e-9
"""What is nearer to zero is drawn as zero: no clock that we read is finer."""
_LOG_DECADES = 12
"""A log axis that reaches further down would be all axis and no line."""
_PERCENTILE_DECADES = 7
"""As many nines as any run has events for."""
_END_DECADES = 0.3
"""The distance from the last percentile that was measured to 100, which has no place of its own."""


@dataclass(frozen=True)
class Axis:
    """What an axis says.

    Args:
        label: the quantity, with its unit.
        unit: the unit alone, as it is written after a number.
        kind: how its numbers are spread.
    """

    label: str
    unit: str = ""
    kind: Kind = "linear"


def clean(value: float | None) -> float | None:
    """Return a number that can be drawn, or None if there is none."""
    if value is None or math.isnan(value):
        return None
    if abs(value) < _SMALLEST:
        return 0.0
    return max(-_LARGEST, min(_LARGEST, value))


class Scale:
    """An axis with its ends.

    Args:
        kind: how the numbers are spread.
        values: all numbers to be shown; clean.
        begin: where the axis begins in the picture, in pixels.
        end: where it ends; smaller than `begin` on an axis that goes up.
        tight: end at the values' own ends, as time does, rather than at round numbers.
        ticks: about how many numbers to name.
    """

    def __init__(
        self,
        kind: Kind,
        values: Iterable[float],
        begin: float,
        end: float,
        *,
        tight: bool = False,
        ticks: int = 5,
    ) -> None:
        self.kind = kind
        self.begin = begin
        self.end = end
        self._floor = 0.0
        values = list(values)
        named: list[float]
        if kind == "percentile":
            self._last = max((value for value in values if value < 100), default=90.0)
            whole = any(value >= 100 for value in values)
            self._low, self._high = 0.0, self._nines(100.0 if whole else self._last) or 1.0
            named = [0, 50, 90, *(100 - 10**-nines for nines in range(_PERCENTILE_DECADES - 1))]
            self.ticks = [(value, f"{value:.10g}") for value in named if value <= self._last]
            if whole:
                self.ticks.append((100.0, "max"))
        elif kind == "log":
            high = max((value for value in values if value > 0), default=1.0)
            low = min((value for value in values if value > 0), default=0.1)
            self._floor, top, named = _log_ticks(max(low, high / 10**_LOG_DECADES), high, ticks)
            self._low, self._high = math.log10(self._floor), math.log10(top)
            self.ticks = [(value, plain(value, value)) for value in named]
        else:
            low, high = min([0.0, *values]), max([0.0, *values])
            if low == high:
                high = 1.0
            step = _step((high - low) / ticks)
            if not tight:
                low, high = math.floor(low / step) * step, math.ceil(high / step) * step
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            self._low, self._high = low, high
            self.ticks = [(index * step, plain(index * step, step)) for index in range(first, last + 1)]

    def __call__(self, value: float) -> float:
        """Return a number's place in the picture."""
        if self.kind == "percentile":
            value = self._nines(value)
        elif self.kind == "log":
            value = math.log10(max(value, self._floor))
        share = (value - self._low) / (self._high - self._low)
        return self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin)

    def _nines(self, percentile: float) -> float:
        if percentile >= 100:
            return self._nines(self._last) + _END_DECADES
        return min(-math.log10(1 - max(percentile, 0.0) / 100), float(_PERCENTILE_DECADES))


def _step(rough: float) -> float:
    """Return the least of 1, 2, 5, 10, 20, … (and 0.5, 0.2, …) that is not below `rough`."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float, about: int) -> tuple[float, float, list[float]]:
    """Return the axis's ends, both of 1, 2, 5, 10, 20, …, and at most `about` numbers between them or so."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    round_numbers = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    begin = max(number for number in round_numbers if number <= low * (1 + 1e-9))
    end = min((number for number in round_numbers if number >= high * (1 - 1e-9)), default=10.0**last)
    if begin == end:
        begin, end = begin / 10, end * 10
    named = [number for number in round_numbers if begin <= number <= end]
    if len(named) > about + 2:
        stride = math.ceil((last - first) / about) or 1
        named = [10.0**power for power in range(first, last + 1, stride) if begin <= 10.0**power <= end]
    return begin, end, named


def plain(value: float, step: float) -> str:
    """Write a number as exactly as `step` asks for: `0.25`, `25,000`, `2.5 M`."""
    if value == 0:
        return "0"
    if abs(value) >= 1e15 or step < 1e-6:
        return f"{value:.3g}"
    if abs(value) >= 1e6 and step >= 1e5:
        return f"{value / 1e6:,.{0 if step >= 1e6 else 1}f} M"
    # The step's own last digit, no more.
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
