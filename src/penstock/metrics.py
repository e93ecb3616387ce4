"""What penstock counts. A `Metrics` is anything with `count` and `gauge`; `Counters` keeps them in memory.

Names are `<noun>_<what>`, labels have few values (`CloseReason` and `Outcome`), and nothing here is per token. `MEASURES`
has all of them; docs/operations.md says which to watch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol, TypeAlias

from penstock.closing import CloseReason

Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""A number's name, and its sorted labels."""


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
    """Keeps every number in a dictionary, keyed by name and sorted labels.

    Args:
        known: what is there from the start, as 0: a scrape then sees the first time that something happens as a change.
    """

    def __init__(self, known: Iterable[Series] = ()) -> None:
        self.values: dict[Series, int] = dict.fromkeys(known, 0)

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


class Measure(NamedTuple):
    """One name of a number."""

    kind: Literal["counter", "gauge"]
    help: str
    label: str | None = None
    """The one label that it may have."""
    values: tuple[str, ...] = ()
    """Of that label: all, or none where they are only known when they come."""


MEASURES = {
    "turns_running": Measure("gauge", "Turns that run in this process."),
    "turns_ended": Measure(
        "counter",
        "Turns that are over here, by their state: running, if another process has it or the end could not be stored.",
        "outcome",
        ("running", "suspended", "finished", "stopped", "failed", "lost"),
    ),
    "turns_forced": Measure(
        "counter", "Stops that a producer did not heed in time, so that its turn was ended for it."
    ),
    "turns_given_up": Measure("counter", "Turns ended because the journal was away for too long."),
    "journal_away": Measure("gauge", "1 while the journal's store can't be reached."),
    "journal_calls_failed": Measure("counter", "Calls that the journal's store did not answer."),
    "journal_flush_failed": Measure("counter", "Writes to the journal that failed and are repeated."),
    "journal_set_back": Measure("counter", "Times that the store had lost what it had acknowledged."),
    "peer_turns_skipped": Measure(
        "counter",
        "Turns of other nodes that began faster than they were looked at, so that all watched chats were.",
    ),
    "connections_open": Measure("gauge", "Streams and WebSockets that are open."),
    "connections_closed": Measure(
        "counter",
        "Streams and WebSockets that closed, by why.",
        "reason",
        tuple(reason.value for reason in CloseReason),
    ),
    "callbacks_failed": Measure("counter", "On-close callbacks that raised or took too long."),
    "viewer_merges": Measure("counter", "Times that a viewer who was behind got several chunks as one."),
    "viewer_dropped": Measure(
        "counter", "Chunks that a viewer who was behind did not get, as they may be left out."
    ),
    "server_connections": Measure("gauge", "Sockets that are open."),
    "server_requests": Measure("counter", "Requests, by type.", "type", ("http", "websocket")),
    "server_requests_refused": Measure(
        "counter", "Requests refused before the app saw them, by status.", "status"
    ),
    "server_connections_refused": Measure("counter", "Connections over the limit, which got 503."),
    "server_connection_errors": Measure("counter", "Connections that ended because serving them failed."),
    "server_accept_pauses": Measure(
        "counter", "Times that no file descriptor was left for a new connection."
    ),
    "server_app_errors": Measure("counter", "Requests in which the app raised."),
    "server_timeouts": Measure("counter", "Clients that were too slow, by what for.", "phase"),
    "server_write_stalls": Measure("counter", "Clients that were cut because they took nothing."),
    "mirror_dropped": Measure("counter", "Copies that were not published for --nats-mirror."),
    "watch_refused": Measure("counter", "Messages of other services that --nats-watch could not use."),
    "workers": Measure("gauge", "Workers that accept connections."),
    "worker_crashes": Measure("counter", "Workers that ended without being told to."),
}
"""All numbers of penstock, by name."""


def known(names: Iterable[str] = tuple(MEASURES)) -> list[Series]:
    """Return the series of these numbers that can be told beforehand."""
    series: list[Series] = []
    for name in names:
        measure = MEASURES[name]
        if measure.label is None:
            series.append((name, ()))
        else:
            series += [(name, ((measure.label, value),)) for value in measure.values]
    return series
