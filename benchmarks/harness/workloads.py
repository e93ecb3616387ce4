"""The workloads, one function each: all servers take turns, round by round.

| | |
|---|---|
| `tokens` (W1) | N turns of 50 deltas a second, each with its own producer: the highest N |
| `fanout` (W2) | 1,000 viewers who are there already, of one turn with rising rate |
| `burst` (W3) | one turn of 100,000 deltas, as fast as it goes |
| `churn` (W4) | a new connection and a turn of 10 deltas, 16 at a time |
| `idle` | connections that watch, and nothing comes |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from harness.load import Figures, LoadError, bench, errors_of, figures, wait_quiet
from harness.machine import cpu_s
from harness.search import Search
from harness.servers import Server, running
from harness.session import Session
from harness.turns import take_turn
from penstock.bench.result import Result

TRANSPORTS: dict[str, dict[str, str]] = {"sse": {}, "websocket": {"transport": "websocket"}}
"""For a comparison of the two; else each workload has SSE, which is what the peers have."""
RATE = 50
"""Deltas a second of each turn in `tokens`: a fast model."""
LATE_MS = 100.0
"""A level passes while the 99th percentile is below."""
DELIVERED = 0.97
SPARE = 0.93
"""A server that used less of its core and failed is tried again."""
VIEWERS = 1_000
BURST = 100_000
SHORT = 10
AT_ONCE = 16
SLOW_BURST_S = 3.0
SLOW_ROUNDS = 3
"""As many rounds are enough for a burst that takes longer than that; there it is not noise that decides."""


def tokens(session: Session, server: Server, turns: int, duration_s: float, over: str = "") -> Figures | None:
    """N turns at 50/s, each its own producer; `over` one of `TRANSPORTS`, noted by its name."""
    ramp_s = min(session.ramp_s(server, turns, watch=False), 4.0)
    take = partial(
        _paced,
        server,
        "tokens",
        turns * RATE,
        connections=turns,
        rate=RATE,
        ramp=ramp_s,
        settle=0.5,
        duration=duration_s,
        over=over,
    )
    return session.run(_named("tokens", over), server, take, turns=turns)


def fanout(
    session: Session,
    server: Server,
    viewers: int,
    rate: float,
    duration_s: float,
    workload: str = "fanout",
    over: str = "",
) -> Figures | None:
    """One turn, and viewers who are settled when it begins."""
    take = partial(
        _paced,
        server,
        "fanout",
        viewers * rate,
        connections=viewers,
        rate=rate,
        ramp=session.ramp_s(server, viewers),
        settle=1.2,
        duration=duration_s,
        over=over,
    )
    return session.run(_named(workload, over), server, take, viewers=viewers, rate=rate)


def _named(workload: str, over: str) -> str:
    return f"{workload}-{over}" if over else workload


def _paced(
    server: Server,
    scenario: str,
    expected_per_s: float,
    *,
    connections: int,
    rate: float,
    ramp: float,
    settle: float,
    duration: float,
    over: str,
) -> Figures:
    """Make a run of paced turns, and judge it."""
    wait_quiet(server)
    result = bench(
        server,
        scenario,
        ramp + settle + duration,
        connections=connections,
        rate=rate,
        ramp=round(ramp, 2),
        settle=settle,
        duration=duration,
        **TRANSPORTS.get(over, {}),
    )
    found = figures(result)
    # Of each stream, one event may be due in the measured time and come behind it: that is its latency's to say.
    expected = max(expected_per_s * found["duration_s"] - connections, 1.0)
    found["delivered"] = round(found["events"] / expected, 4)
    found["passed"] = (
        found["errors"] == 0
        and found["opened"] >= connections
        and found.get("p99_ms", LATE_MS) < LATE_MS
        and found["delivered"] >= DELIVERED
    )
    return found


def search(
    session: Session,
    servers: list[Server],
    first: int,
    most: int,
    take: Callable[[Server, int], Figures | None],
) -> None:
    """Find the highest level of each server, one level of each in turn, until all are found or the time is over."""
    searches = {server.kind.name: Search(first, most) for server in servers}
    while any(one.level is not None for one in searches.values()):
        for server in servers:
            one = searches[server.kind.name]
            if one.level is None:
                continue
            found = take(server, one.level)
            used = 1.0 if found is None else found.get("server_cpu", 1.0)
            one.tell(
                passed=found is not None and bool(found["passed"]),
                idle=found is None or (used < SPARE and found["load_cpu"] < SPARE),
                used=used,
            )
        if session.over:
            return  # What was left out is noted with the runs; what is cut short, the levels show.


def burst(session: Session, servers: list[Server], rounds: int) -> None:
    """One turn of 100,000 deltas. The first round of each is not counted: it warms up."""
    slow: set[str] = set()
    for number in range(rounds):
        for server in servers:
            if server.kind.name in slow and number >= SLOW_ROUNDS:
                continue
            found = one_burst(session, server, number)
            if found is not None and found["wall_us"] * BURST > SLOW_BURST_S * 1e6:
                slow.add(server.kind.name)


def one_burst(session: Session, server: Server, number: int, over: str = "") -> Figures | None:
    """One turn of 100,000 deltas on a new connection."""
    take = partial(closed_loop, server, chunks=BURST, connections=1, repeats=1, over=over)
    return session.run(_named("burst", over), server, take, chunks=BURST, round=number)


def churn(session: Session, servers: list[Server], rounds: int, seconds: float) -> None:
    """New connections with short turns, 16 at a time, for about so many seconds."""
    repeats = {server.kind.name: 5 for server in servers}
    for number in range(-1, rounds):  # The first finds out how many turns it takes, and isn't noted.
        for server in servers:
            name = server.kind.name
            take = partial(closed_loop, server, chunks=SHORT, connections=AT_ONCE, repeats=repeats[name])
            if number >= 0:
                session.run("churn", server, take, chunks=SHORT, round=number)
                continue
            try:
                found = take()
            except LoadError as error:
                session.say(f"churn     {name}: {error}")
                continue
            turn_us = found["wall_us"] * SHORT
            repeats[name] = max(5, min(1000, int(seconds * 1e6 / turn_us / AT_ONCE)))
            session.connect_ms[name] = found["cpu_us"] * SHORT / 1000


def closed_loop(server: Server, *, chunks: int, connections: int, repeats: int, over: str = "") -> Figures:
    """Take turns as fast as they come, each on a new connection; microseconds for each delta.

    The CPU is of the whole run, read to the nanosecond.
    """
    wait_quiet(server)
    before = cpu_s(server.pid)
    result = bench(
        server,
        "burst",
        15.0,
        chunks=chunks,
        connections=connections,
        repeats=repeats,
        ramp=0.0,
        settle=0.0,
        **TRANSPORTS.get(over, {}),
    )
    used_s = cpu_s(server.pid) - before
    _demand_all(result, chunks * connections * repeats, connections * repeats)
    deltas = chunks * connections * repeats
    return {
        "turns": connections * repeats,
        "events_per_s": round(deltas / result.duration_s),
        "wall_us": round(result.duration_s * 1e6 / deltas, 4),
        "cpu_us": round(used_s * 1e6 / deltas, 4),
        "load_cpu": round(result.load_cpu, 3),
    }


def _demand_all(result: Result, deltas: int, turns: int) -> None:
    if result.finished < turns or result.events < deltas or result.errors:
        raise LoadError(
            f"{result.finished:,} of {turns:,} turns ended, {result.events:,} of {deltas:,} events came"
            f"{', ' if result.errors else ''}{errors_of(result)}"
        )


def idle(session: Session, server: Server, connections: int) -> Figures | None:
    """RSS of each of so many quiet connections, in kB, in a process that is new."""

    def take() -> Figures:
        with running(server.kind, session.folder) as fresh:
            if fresh.kind.turns:
                take_turn(fresh, "warm", "/long 100")
            ramp_s = session.ramp_s(server, connections)
            result = bench(
                fresh,
                "idle",
                ramp_s + 2.0,
                connections=connections,
                ramp=round(ramp_s, 2),
                settle=1.0,
                duration=1.0,
            )
            _demand_open(result, connections)
            assert result.server is not None
            held_kb = result.server.rss_after_kb - result.server.rss_before_kb
            return {
                "kb": round(held_kb / connections, 2),
                "base_mb": round(result.server.rss_before_kb / 1024),
            }

    return session.run("idle", server, take, connections=connections)


def keepalive(session: Session, server: Server, connections: int, seconds: float) -> Figures | None:
    """The share of a core that the keepalives of so many quiet connections take."""

    def take() -> Figures:
        wait_quiet(server)
        ramp_s = session.ramp_s(server, connections)
        result = bench(
            server,
            "idle",
            ramp_s + 2.0 + seconds,
            connections=connections,
            ramp=round(ramp_s, 2),
            settle=2.0,
            duration=seconds,
        )
        _demand_open(result, connections)
        assert result.server is not None
        return {
            "server_cpu": round(result.server.cpu_s / result.duration_s, 4),
            "keepalives": float(result.options.get("keepalives", 0)),
        }

    return session.run("keepalive", server, take, connections=connections)


def _demand_open(result: Result, connections: int) -> None:
    if result.opened < connections or result.errors:
        raise LoadError(f"{result.opened:,} of {connections:,} were opened, {errors_of(result)}")
