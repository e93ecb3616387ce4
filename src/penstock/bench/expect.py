"""What a run must keep to: `p99<100ms`, `first_token.p99 < 300ms`, `errors=0`, `events/s>=5000`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import NamedTuple

from penstock.bench.recorder import NAMES
from penstock.bench.result import Expectation, Result

_EXPRESSION = re.compile(
    r"\s*(?:(?P<time>[a-z_]+)\.)?(?P<what>[a-z0-9]+(?:/[a-z]+)?)\s*(?P<how><=|>=|==?|<|>)\s*"
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*(?P<unit>[a-z\u00b5]*)\s*",
    re.IGNORECASE,
)
_HOW: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
}
_OF_TIMES = ("p50", "p90", "p99", "p999", "max", "mean")
_UNITS = {"us": 1e-3, "\u00b5s": 1e-3, "ms": 1.0, "s": 1e3}
"""In milliseconds."""
_NUMBERS: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "errors": ("", lambda result: sum(result.errors.values())),
    "finished": ("", lambda result: result.finished),
    "events/s": ("", lambda result: result.events / result.duration_s if result.duration_s else None),
    "kb/connection": ("kb", lambda result: result.server.kb_per_connection if result.server else None),
    "cpu/event": ("us", lambda result: result.server.cpu_us_per_event if result.server else None),
}
"""What is no time of its own: its unit, and where it is found."""


class Expect(NamedTuple):
    """One expectation."""

    text: str
    time: str
    """Empty: the scenario's own, see `headline`."""
    what: str
    how: str
    number: float
    """In milliseconds, where it is a time."""

    def judge(self, result: Result) -> Expectation:
        """Say whether it held. What was not measured did not."""
        found = self._found(result)
        return Expectation(self.text, found, found is not None and _HOW[self.how](found, self.number))

    def _found(self, result: Result) -> float | None:
        if self.what in _NUMBERS:
            return _NUMBERS[self.what][1](result)
        distribution = result.times.get(self.time or headline(result))
        return None if distribution is None else float(getattr(distribution, self.what))


def parse_expect(text: str) -> Expect:
    """Read an expectation. Raises ValueError, with a sentence, if it is none."""
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no expectation; one is p99<100ms, first_token.p90<=0.3s or errors=0")
    time, what, unit = match["time"], match["what"].lower(), match["unit"].lower()
    number = float(match["number"])
    if what in _NUMBERS:
        due = _NUMBERS[what][0]
        if time or unit not in ("", due):
            raise ValueError(f"{text!r}: {what} " + (f"is in {due}" if due else "has no unit"))
        return Expect(text, "", what, match["how"], number)
    if what not in _OF_TIMES:
        raise ValueError(f"{text!r}: there is {', '.join((*_OF_TIMES, *_NUMBERS))}, and no {what}")
    if time is not None and time not in NAMES:
        raise ValueError(f"{text!r}: the times are {', '.join(NAMES)}")
    if unit not in _UNITS:
        raise ValueError(f"{text!r}: say ms, s or us")
    return Expect(text, time or "", what, match["how"], number * _UNITS[unit])


def headline(result: Result) -> str:
    """Return the time that a scenario is about: the first of these that was measured."""
    return next((name for name in _HEADLINES.get(result.scenario, ()) if name in result.times), "latency")


_HEADLINES = {
    "burst": ("turn",),
    "churn": ("turn",),
    "idle": ("first_byte",),
    "flapping": ("resume",),
    "resume": ("resume",),
    "half-open": ("kept",),
}
