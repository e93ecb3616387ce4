"""What is measured, in which order, and how long it should take: the whole within 20 minutes, the quick one within 2."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from harness import workloads
from harness.load import Figures
from harness.servers import Server
from harness.session import Session
from harness.turns import resume

MOST_TURNS = 2_000
MOST_RATE = 400
"""With 1,000 viewers, more than the load can take in (`crosscheck.py` finds out how much that is)."""
LIGHT_TURNS = 100
LIGHT_RATE = 5
"""Where searches begin. The second is one of the shapes whose lateness is told."""
TURNS_S, FANOUT_S = 1.6, 1.6
"""How long a level is measured."""
LATE = ("penstock", "sse-starlette", "starlette", "node", "go", "nchan")
"""Whose lateness is measured in all shapes, and whose highest rate is looked for: one server of a kind."""
MANY, MOST = 2_000, 10_000
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


def _tokens(session: Session) -> None:
    workloads.search(
        session,
        session.servers(turns=True),
        LIGHT_TURNS,
        MOST_TURNS,
        lambda server, turns: workloads.tokens(session, server, turns, TURNS_S),
    )


def _light_tokens(session: Session) -> None:
    for server in session.servers(turns=True):
        workloads.tokens(session, server, LIGHT_TURNS, 1.5)


def _fanout(session: Session) -> None:
    def take(server: Server, rate: int) -> Figures | None:
        return workloads.fanout(session, server, workloads.VIEWERS, rate, FANOUT_S)

    searched = session.servers(names=(*LATE, "penstock-sqlite"))
    for server in session.servers():
        if server not in searched:
            take(server, LIGHT_RATE)
    workloads.search(session, searched, LIGHT_RATE, MOST_RATE, take)


def _latency(
    session: Session, *, viewers: int, rate: float, seconds: float, names: Collection[str] = ()
) -> None:
    for server in session.servers(names=names):
        workloads.fanout(session, server, viewers, rate, seconds, "latency")


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
        workloads.fanout(session, server, viewers, rate, 2.5, "viewers")


FULL = Plan(
    steps=(
        Step("churn", "W4: new connections with 10-delta turns, 5 rounds", partial(_churn, rounds=5, seconds=0.8), 8.5, 15),
        Step("burst", "W3: a turn of 100,000 deltas, 5 rounds", partial(_burst, rounds=5), 12),
        Step("resume", "a 10,000-delta turn, 200 times, 5 rounds", partial(_resume, rounds=5), 0, 15),
        Step("tokens", "W1: the most turns at 50/s", _tokens, 30),
        Step("growth", "10 to 9,900 viewers, 10 to 100,000 chunks", _growth, 0, 48),
        Step("keepalive", f"{MOST:,} quiet connections, {KEEPALIVE_S:g} s", _keepalive, 0, 36),
        Step(
            "latency", "100 viewers at 50/s",
            partial(_latency, viewers=100, rate=50.0, seconds=2.5, names=LATE), 0, 34,
        ),
        Step(
            "latency", "5,000 viewers at 1/s",
            partial(_latency, viewers=5_000, rate=1.0, seconds=2.5, names=LATE), 0, 54,
        ),
        Step("idle", f"{MANY:,} quiet connections", partial(_idle, connections=MANY), 7.5),
        # Last, so that what a slow machine has no time for is the end of a search, which the tables say of each server.
        Step("fanout", "W2: 1,000 viewers, the highest rate", _fanout, 0, 180),
    ),
    servers=(
        "penstock", "penstock-sqlite", "sse-starlette", "fastapi", "starlette", "uvicorn", "granian", "aiohttp",
        "node", "go", "nchan",
    ),
    minutes=18.0,
)  # fmt: skip
QUICK = Plan(
    steps=(
        Step("churn", "W4, 2 rounds", partial(_churn, rounds=2, seconds=0.5), 4, 5),
        Step("resume", "a 10,000-delta turn, 200 times", partial(_resume, rounds=1), 0, 3),
        Step("tokens", f"{LIGHT_TURNS} turns at 50/s", _light_tokens, 3.7),
        Step("latency", "1,000 viewers at 5/s", partial(_latency, viewers=1_000, rate=5.0, seconds=1.5), 5),
        Step("burst", "W3, 2 rounds", partial(_burst, rounds=2), 5),
        Step("idle", "1,000 quiet connections", partial(_idle, connections=1_000), 5, optional=True),
    ),
    servers=("penstock", "sse-starlette", "starlette", "node"),
    minutes=1.75,
)
