"""What penstock counts. A `Metrics` is anything with `count` and `gauge`; `Counters` keeps them in memory.

Names are `<noun>_<what>`, labels have few values (`CloseReason` and `Outcome`), and nothing here is per token.
"""

from __future__ import annotations

from typing import Protocol


class Metrics(Protocol):
    """Where numbers go. Both methods are called on the event loop and must not block or raise."""

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add `amount` to a counter."""

    def gauge(self, name: str, change: int, **labels: str) -> None:
        """Move a gauge by `change`."""


class NopMetrics:
    """Counts nothing."""

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Do nothing."""

    def gauge(self, name: str, change: int, **labels: str) -> None:
        """Do nothing."""


class Counters:
    """Keeps every number in a dictionary, keyed by name and sorted labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add `amount` to a counter."""
        key = (name, tuple(sorted(labels.items())))
        self.values[key] = self.values.get(key, 0) + amount

    def gauge(self, name: str, change: int, **labels: str) -> None:
        """Move a gauge by `change`."""
        self.count(name, change, **labels)

    def get(self, name: str, **labels: str) -> int:
        """Return a number's value, 0 where it was never touched."""
        return self.values.get((name, tuple(sorted(labels.items()))), 0)
