"""What is measured, in which order, and how long it should take: the whole within 20 minutes, the quick one within 2."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from harness import workloads
from harness.session import Session
from harness.turns import resume

CORE_US = 1e6
NEAR = 0.8
"""A search begins at this share of what the CPU of a light run promises: batches make a full server cheaper."""
MOST_TURNS = 2_000
MOST_RATE = 400
"""With 1,000 viewers, more than the load can take in (`crosscheck.py` finds out how much that is)."""
LIGHT_TURNS = 100
LIGHT_RATE = 5.0
LATE = ("penstock", "sse-starlette", "starlette", "node", "go", "nchan")
"""Whose lateness is measured in all shapes: one server of a kind."""
MANY, MOST = 5_000, 10_000
VIEWERS_GROWTH = ((10, 1000.0), (100, 100.0), (1_000, 10.0), (9_900, 1.0))
"""10,000 deliveries a second, however many viewers share them."""
CHUNKS_GROWTH = ((10, 16, 40), (100, 16, 15), (1_000, 4, 10), (10_000, 1, 8), (100_000, 1, 2))
"""Deltas of a turn, how many at a time, how often: about as many deltas in each."""
KEEPALIVE_S = 16.5
"""One round of keepalives and a bit."""


@dataclass(frozen=True)
class Step:
    """A part of a plan.

    Args:
        name: for `--only`.
        what: for people.
        take: does it.
        each_s: seconds that it takes for each server, measured on two cores.
        fixed_s: and beside that.
        optional: whether it is left out when there is no time.
    """

    name: str
    what: str
    take: Callable[[Session], None]
    each_s: float
    fixed_s: float = 0.0
    optional: bool = False

    def seconds(self, servers: int) -> float:
        """Return how long it should take."""
        return self.each_s * servers + self.fixed_s


@dataclass(frozen=True)
class Plan:
    """All steps. Those without a reason to be elsewhere come from cheap to dear."""

    steps: tuple[Step, ...]
    servers: tuple[str, ...]
    minutes: float


def _churn(session: Session, *, rounds: int, seconds: float) -> None:
    workloads.churn(session, session.servers(turns=True), rounds, seconds)


def _burst(session: Session, *, rounds: int) -> None:
    workloads.burst(session, session.servers(turns=True), rounds)


def _guesses(light: Mapping[str, Mapping[str, float] | None], events_per_s: float) -> dict[str, float]:
    """Return where to begin a search, by the CPU of an event in a light run; a level has so many events a second."""
    return {
        name: NEAR * CORE_US / found["cpu_us"] / events_per_s
        for name, found in light.items()
        if found is not None and "cpu_us" in found
    }


def _tokens(session: Session) -> None:
    servers = session.servers(turns=True)
    light = {server.kind.name: workloads.tokens(session, server, LIGHT_TURNS, 1.5) for server in servers}
    workloads.search(
        session,
        servers,
        _guesses(light, workloads.RATE),
        MOST_TURNS,
        lambda server, turns: workloads.tokens(session, server, turns, 2.0),
    )


def _light_tokens(session: Session) -> None:
    for server in session.servers(turns=True):
        workloads.tokens(session, server, LIGHT_TURNS, 1.5)


def _fanout(session: Session) -> None:
    servers = session.servers()
    light = {
        server.kind.name: workloads.fanout(session, server, workloads.VIEWERS, LIGHT_RATE, 2.0)
        for server in servers
    }
    workloads.search(
        session,
        servers,
        _guesses(light, workloads.VIEWERS),
        MOST_RATE,
        lambda server, rate: workloads.fanout(session, server, workloads.VIEWERS, rate, 2.0),
    )


def _latency(session: Session, *, viewers: int, rate: float, names: Collection[str] = ()) -> None:
    for server in session.servers(names=names):
        workloads.fanout(session, server, viewers, rate, 3.0, "latency")


def _idle(session: Session, *, connections: int) -> None:
    for server in session.servers():
        workloads.idle(session, server, connections)


def _resume(session: Session, *, rounds: int) -> None:
    for number in range(rounds):
        for server in session.servers(ours=True):
            session.run("resume", server, partial(resume, server), round=number)


def _keepalive(session: Session) -> None:
    server = session.servers(ours=True)[0]
    workloads.keepalive(session, server, MOST, KEEPALIVE_S)


def _growth(session: Session) -> None:
    server = session.servers(ours=True)[0]
    for chunks, connections, repeats in CHUNKS_GROWTH:
        take = partial(workloads.closed_loop, server, chunks=chunks, connections=connections, repeats=repeats)
        session.run("chunks", server, take, chunks=chunks)
    for viewers, rate in VIEWERS_GROWTH:
        workloads.fanout(session, server, viewers, rate, 3.0, "viewers")


FULL = Plan(
    steps=(
        Step("churn", "W4: new connections with 10-delta turns, 5 rounds", partial(_churn, rounds=5, seconds=1.2), 13),
        Step("burst", "W3: a turn of 100,000 deltas, 5 rounds", partial(_burst, rounds=5), 12),
        Step("resume", "a 10,000-delta turn, 200 times, 5 rounds", partial(_resume, rounds=5), 0, 15),
        Step("tokens", "W1: the most turns at 50/s", _tokens, 16),
        Step("growth", "10 to 9,900 viewers, 10 to 100,000 chunks", _growth, 0, 55),
        Step("keepalive", f"{MOST:,} quiet connections, {KEEPALIVE_S:g} s", _keepalive, 0, 40),
        Step("idle", f"{MANY:,} quiet connections", partial(_idle, connections=MANY), 13),
        Step("fanout", "W2: 1,000 viewers, the highest rate", _fanout, 24),
        Step("latency", "100 viewers at 50/s", partial(_latency, viewers=100, rate=50.0, names=LATE), 0, 42),
        Step("latency", "5,000 viewers at 1/s", partial(_latency, viewers=5_000, rate=1.0, names=LATE), 0, 90, optional=True),
    ),
    servers=(
        "penstock", "penstock-sqlite", "sse-starlette", "fastapi", "starlette", "uvicorn", "granian", "aiohttp",
        "node", "go", "nchan",
    ),
    minutes=17.5,
)  # fmt: skip
QUICK = Plan(
    steps=(
        Step("churn", "W4, 2 rounds", partial(_churn, rounds=2, seconds=0.5), 4),
        Step("burst", "W3, 2 rounds", partial(_burst, rounds=2), 4),
        Step("resume", "a 10,000-delta turn, 200 times", partial(_resume, rounds=1), 0, 3),
        Step("tokens", f"{LIGHT_TURNS} turns at 50/s", _light_tokens, 4),
        Step("latency", "1,000 viewers at 5/s", partial(_latency, viewers=1_000, rate=5.0), 8),
        Step("idle", "1,000 quiet connections", partial(_idle, connections=1_000), 5, optional=True),
    ),
    servers=("penstock", "sse-starlette", "starlette", "node"),
    minutes=1.75,
)
