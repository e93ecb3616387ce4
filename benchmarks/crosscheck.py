"""Whether `penstock bench` says what independent load generators say of the same server under the same load.

    python benchmarks/crosscheck.py [--rounds 3] [--output FILE]

Turns and fan-out are compared with a script on Node's own `fetch` (`peers/load.mjs`), new connections with wrk. The two
take turns, and medians are compared. And the other way round: from which rate on is `penstock bench` itself the
bottleneck, against the cheapest server there is?
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.load import LoadError, bench, figures, wait_quiet
from harness.machine import CORES, LOAD_CORE, describe, versions
from harness.servers import KINDS, PEERS, Kind, Server, ServerError, missing, python_peer, running
from harness.turns import take_turn
from penstock.bench.result import Result

LATE = Kind("late", "a server that is late by 20 to 119 ms", python_peer("late_app.py"))
KNOWN_MS = {"p50, ms": 69.5, "p99, ms": 118.0}
"""What a load generator that costs nothing would say of it."""
PACED = {
    "40 turns at 50/s": (KINDS[0], "tokens", 40, 50, 0.5, 0.5),
    "20 viewers at 50/s": (KINDS[0], "fanout", 20, 50, 0.5, 1.0),
    "40 turns, late by 20 to 119 ms": (LATE, "tokens", 40, 50, 0.5, 0.5),
}
"""Server, scenario, connections, rate, ramp, settle. So few that Node can take them in: an event costs it 100 to 200 us.
"""
DURATION_S = 2.5
AT_ONCE, SHORT = 16, 10
CHURN_S = 2
CHURN_TURNS = 60
CHEAPEST = ("nchan", "go", "node")
RATES = (50, 75, 110)
"""Of a turn that 1,000 viewers watch."""
VIEWERS = 1_000
FULL = 0.9
SLACK_S = 20.0

Row = dict[str, Any]
Pairs = dict[tuple[str, str, str], list[tuple[float, float]]]
"""By what, figure and tool: ours and theirs, round by round."""


def run_tool(*command: str, takes_s: float) -> str:
    """Run another load generator on the load's core, and return what it prints. Raises LoadError."""
    try:
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), *command],
            capture_output=True,
            text=True,
            timeout=takes_s + SLACK_S,
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"{command[0]} did not end") from None
    if done.returncode:
        raise LoadError(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout


def paced(servers: dict[str, Server], what: str, pairs: Pairs) -> None:
    """Compare one round of paced turns."""
    kind, scenario, connections, rate, ramp_s, settle_s = PACED[what]
    server = servers[kind.name]
    takes_s = ramp_s + settle_s + DURATION_S
    wait_quiet(server)
    ours = figures(
        bench(
            server,
            scenario,
            takes_s,
            connections=connections,
            rate=rate,
            ramp=ramp_s,
            settle=settle_s,
            duration=DURATION_S,
        )
    )
    wait_quiet(server)
    numbers = [str(number) for number in (connections, rate, ramp_s, settle_s, DURATION_S)]
    said = run_tool("node", str(PEERS / "load.mjs"), scenario, server.url, *numbers, takes_s=takes_s)
    theirs = json.loads(said)
    if theirs["errors"] or theirs["opened"] < connections:
        raise LoadError(f"node opened {theirs['opened']} of {connections}: {theirs['errors']}")
    for key, name in (("events_per_s", "events/s"), ("p50_ms", "p50, ms"), ("p99_ms", "p99, ms")):
        pairs.setdefault((what, name, "node"), []).append((ours[key], theirs[key]))


def churn(server: Server, pairs: Pairs) -> None:
    """Compare one round of new connections with short turns."""
    wait_quiet(server)
    result: Result = bench(
        server,
        "burst",
        15.0,
        chunks=SHORT,
        connections=AT_ONCE,
        repeats=CHURN_TURNS,
        ramp=0.0,
        settle=0.0,
    )
    wait_quiet(server)
    said = run_tool(
        *("wrk", "-t1", f"-c{AT_ONCE}", f"-d{CHURN_S}s", "--latency", "-s", str(PEERS / "churn.lua")),
        server.url,
        takes_s=CHURN_S,
    )
    rate = re.search(r"Requests/sec: +([\d.]+)", said)
    middle = re.search(r"50% +([\d.]+)(us|ms|s)", said)
    if rate is None or middle is None or "Non-2xx" in said:
        raise LoadError(f"wrk had bad answers: {said.strip().splitlines()[-1]}")
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}[middle[2]]
    what = f"new connections, {AT_ONCE} at a time"
    for name, ours, theirs in (
        ("turns/s", result.finished / result.duration_s, float(rate[1])),
        ("p50, ms", result.times["turn"].p50, float(middle[1]) * scale),
    ):
        pairs.setdefault((what, name, "wrk"), []).append((ours, theirs))


def bottleneck(folder: Path) -> Row | None:
    """Find what an event costs the load, against the cheapest server that is here, and when its core is full."""
    kind = next(
        (kind for name in CHEAPEST for kind in KINDS if kind.name == name and not missing(kind)), None
    )
    if kind is None:
        return None
    levels = []
    with running(kind, folder) as server:
        for rate in RATES:
            wait_quiet(server)
            found = figures(
                bench(
                    server,
                    "fanout",
                    6.0,
                    connections=VIEWERS,
                    rate=rate,
                    ramp=1.0,
                    settle=1.5,
                    duration=2.5,
                )
            )
            levels.append({"rate": rate, **found})
            if found["load_cpu"] > FULL:
                break
    dearest = max(levels, key=lambda level: level["events_per_s"])
    each_us = dearest["load_cpu"] * 1e6 / dearest["events_per_s"]
    return {
        "server": kind.title,
        "levels": levels,
        "load_cpu_us": round(each_us, 2),
        "events_per_s": round(1e6 / each_us),
        "full": dearest["load_cpu"] > FULL,
    }


def main() -> int:
    """Run, print, write the file; return the exit status."""
    parser = argparse.ArgumentParser(description="penstock bench beside other load generators")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="where to put the figures, as JSON")
    options = parser.parse_args()
    tools = {tool: shutil.which(tool) is not None for tool in ("node", "wrk")}
    for tool in (tool for tool, there in tools.items() if not there):
        print(f"LEFT OUT: {tool} is not installed.", file=sys.stderr)
    if len(CORES) < 2:
        print("Two cores are needed, one for the server and one for the load.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = describe()
    os.sched_setaffinity(0, {LOAD_CORE})
    pairs: Pairs = {}
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-crosscheck-") as name:
            folder = Path(name)
            with running(KINDS[0], folder) as server, running(LATE, folder) as late:
                servers = {KINDS[0].name: server, LATE.name: late}
                take_turn(server, "warm", "/long 100")
                for _ in range(options.rounds):
                    if tools["node"]:
                        for what in PACED:
                            paced(servers, what, pairs)
                    if tools["wrk"]:
                        churn(server, pairs)
            limit = bottleneck(folder)
    except (LoadError, ServerError) as error:
        print(f"The comparison failed: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    compared = []
    for (what, name, tool), rounds in pairs.items():
        ours, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
        compared.append(
            {
                "what": what,
                "figure": name,
                "tool": tool,
                "ours": round(ours, 3),
                "theirs": round(theirs, 3),
                "difference": round(ours / theirs - 1, 4),
                "known": KNOWN_MS.get(name) if PACED.get(what, (None,))[0] is LATE else None,
                "rounds": rounds,
            }
        )
        print(f"{what:32} {name:9} {ours:>10,.2f} {theirs:>10,.2f} ({tool}) {ours / theirs - 1:+7.1%}")
    if limit is not None:
        print(
            f"against {limit['server']}, penstock bench takes {limit['load_cpu_us']:.1f} us an event: "
            f"it is the bottleneck from about {limit['events_per_s']:,} events/s on, with one load process"
        )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        data = {
            "at": started,
            "machine": machine,
            "versions": versions(),
            "compared": compared,
            "bottleneck": limit,
        }
        options.output.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
