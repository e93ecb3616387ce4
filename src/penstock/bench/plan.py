"""What the parent tells a load process to do, and what it is told back. Plain data: it crosses a pipe as msgpack.

A scenario is compiled into groups of connections (`scenarios.py`); a load process knows groups and no scenarios.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec

Transport: TypeAlias = Literal["post", "eventsource", "websocket"]
Conduct: TypeAlias = Literal["read", "stall", "vanish", "flap", "drop"]
"""What a connection does with its stream: read it; stop reading after a while; never read; leave and come back again
and again; leave once and come back."""


class Call(msgspec.Struct, frozen=True):
    """One request. `{names}` in `target`, `body` and the headers' values are filled in for each."""

    method: str
    target: str
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


_GOLDEN = (math.sqrt(5) - 1) / 2


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Connections that all do the same. Seconds count from the run's beginning."""

    call: Call
    transport: Transport = "eventsource"
    connections: int = 1
    first_at_s: float = 0.0
    every_s: float = 0.0
    """Connection k is due within the k-th of these after `first_at_s`, whatever became of the others: an open loop."""
    chat: str = "bench-{run}-{n}-{turn}"
    """The template of `{chat}`."""
    chunks: int = 0
    """What `{count}` is; 0 for as many as fit between a connection's arrival and `until_s` at `rate`."""
    rate: float = 0.0
    """Events a second of one stream, where it is known."""
    until_s: float = 0.0
    conduct: Conduct = "read"
    back: Call | None = None
    """How those that left ask for the rest."""
    stop: Call | None = None
    """Sent at the end for a turn that was not seen to end."""
    message: str = ""
    """The first message on a WebSocket."""
    end: str = ""
    """How the data of the event begins that ends a stream. Empty: `[DONE]`, or the proper end of the response."""
    turns: int = 1
    """Turns that one connection takes one after the other, each on a new socket; 0 for as many as there is time."""
    stay_s: float = 0.0
    """From a stream's beginning until `flap` and `drop` leave it; of `flap`, on average."""
    away_s: float = 0.0
    stall_at_s: float = 0.0
    max_in_flight: int = 0
    """Over it, arrivals are not started, and counted. 0: no bound."""
    measured: bool = True
    drains: bool = False
    """Whether streams come to an end by themselves, so that the run waits for them a while."""
    must_end: bool = False
    """Whether a stream that is not over when the run is counts as an error, `unfinished`."""

    def due_s(self, number: int) -> float:
        """Return when a connection is due.

        Where in its slot is spread evenly over all of them (multiples of the golden ratio): were they as far apart as a
        stream's events are, all streams would be due at the same moment for ever.
        """
        return self.first_at_s + (number + number * _GOLDEN % 1) * self.every_s


class Address(msgspec.Struct, frozen=True):
    """Where the server is."""

    family: int
    sockaddr: tuple[str | int, ...]
    host: str
    """As the certificate has it."""
    authority: str
    """As the Host header has it."""
    tls: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    address: Address
    groups: tuple[Group, ...]
    run: str
    """Random, so that a second run has chats of its own."""
    measure_from_s: float
    measure_s: float
    until_done: bool
    """Whether the measured time ends when all streams have; `measure_s` is then the most it may last."""
    drain_s: float
    stop_s: float
    samples: int


class Order(msgspec.Struct, frozen=True, tag=True):
    """The first thing that a load process is told: its share of a plan."""

    plan: Plan
    worker: int
    workers: int


class Go(msgspec.Struct, frozen=True, tag=True):
    """The second: when the run begins, in ns since 1970."""

    at_ns: int


class Halt(msgspec.Struct, frozen=True, tag=True):
    """Then perhaps: end now, and report what there is."""


Instruction: TypeAlias = Order | Go | Halt


class Ready(msgspec.Struct, frozen=True, tag=True):
    """An order was understood."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How it goes, about once a second."""

    at_s: float
    open: int
    events: int
    errors: int
    lateness: bytes
    """Some of the last second's latencies (else gaps), as an array of 64-bit nanoseconds."""


class Segment(msgspec.Struct, frozen=True):
    """What happened between two looks at the clock, about a second apart."""

    from_s: float
    to_s: float
    measured: bool
    open: int
    events: int
    received: int
    """Bytes of responses' bodies, and what frames them."""
    errors: int
    keepalives: int
    together: int
    """Events that came in one read with the one before: their gap is 0."""
    cpu_s: float
    samples: dict[str, bytes]
    """By the time's name: an array of 64-bit nanoseconds."""


class Report(msgspec.Struct, frozen=True, tag=True):
    """The last thing that a load process says."""

    started: int
    opened: int
    finished: int
    errors: dict[str, int]
    segments: list[Segment]
    stamped: bool
    """Whether events said when they were due."""
    counts: dict[str, int]
    """Whatever else was counted: `held`, `checked`, …"""
    overfull: bool
    """Whether it ended early because it had measured more than memory should hold."""


Message: TypeAlias = Ready | Progress | Report


def fill(template: str, names: dict[str, str]) -> str:
    """Put values in the place of `{names}`; other braces stay, so JSON needs no escapes."""
    for name, value in names.items():
        template = template.replace(f"{{{name}}}", value)
    return template
