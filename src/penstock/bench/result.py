"""What a load test found: the one thing that the table, the JSON file, the report and `--expect` are made from.

Times are in milliseconds unless the name says otherwise.
"""

from __future__ import annotations

import msgspec


class Distribution(msgspec.Struct, frozen=True):
    """How one time was spread over all who measured it."""

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    curve: list[tuple[float, float]]
    """(percentile, milliseconds), rising, denser towards 100: what a percentile plot needs."""


class Moment(msgspec.Struct, frozen=True):
    """One second of the run."""

    at_s: float
    """Since the run began."""
    open: int
    """Connections open at its end."""
    events: int
    """Events that came within it."""
    bytes: int
    errors: int
    p99: float | None
    """The 99th percentile of `latency` (else of `gap`) within it; None where nothing was measured."""


class Server(msgspec.Struct, frozen=True):
    """What the operating system says of the process `--pid`."""

    pid: int
    cpu_s: float
    """CPU seconds used within the measured time."""
    cpu_us_per_event: float | None
    rss_before_kb: int
    rss_after_kb: int
    kb_per_connection: float | None


class Expectation(msgspec.Struct, frozen=True):
    """One `--expect`, and whether it held."""

    text: str
    """As it was typed, such as `p99<100ms`."""
    found: float | None
    held: bool


class Result(msgspec.Struct, frozen=True):
    """One run of `penstock bench`."""

    scenario: str
    transport: str
    url: str
    started_at: str
    """ISO 8601, UTC."""
    duration_s: float
    """The measured time, without ramp and warm-up."""
    partial: bool
    """Whether it was ended early, by Ctrl-C."""
    options: dict[str, str | int | float | bool]
    """The scenario's numbers, as the run used them."""
    machine: dict[str, str | int]
    """System, CPU, cores, Python, penstock version: of the machine that made the load."""
    started: int
    """Connections that were begun."""
    opened: int
    """Of these, how many got the head of a good response."""
    finished: int
    """Of these, how many saw the stream's proper end."""
    events: int
    bytes: int
    errors: dict[str, int]
    """By kind: `refused`, `reset`, `status 503`, `cut` (ended without an end), `late connect`, …"""
    times: dict[str, Distribution]
    """By name: `connect`, `first_byte`, `first_token`, `gap` (between two events of one connection), `latency` (from
    when an event was due to when it was here), `turn` (request to end), `resume`. Only those that were measured."""
    timeline: list[Moment]
    load_cpu: float
    """The largest share of one core that a load process used: near 1, the load was the bottleneck, not the server."""
    server: Server | None = None
    expectations: list[Expectation] = []
