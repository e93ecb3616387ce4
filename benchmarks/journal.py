"""What turns cost and how late they are in each journal: in memory, a file, a Redis, a NATS.

    python benchmarks/journal.py [--rounds 5] [--journals redis,nats] [--folder DISK] [--output FILE]

- **append**: one caller that appends to so many turns a call, as a hub does, and waits for the answer. Acknowledged
  chunks a second, CPU of the process and of the journal's server for each.
- **latency**: turns at 50 chunks a second, from the producer's write to a follower's receipt, on the same node and on
  another one, which is another process.
- **commands**: what a Redis executes for 100 turns of 100 chunks.
- **workers**: `penstock serve --workers 1` and `2` on a Redis, over HTTP, with turns at 50 chunks a second.

Owner and load are on a core each; a follower on another node and the journal's server share the load's. With two workers
all share both cores. Needs redis-server and nats-server; what isn't there is left out, and named. Every run is kept.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness import engines
from harness.engines import Journal, commands, journals
from harness.load import Figures, LoadError, bench, errors_of, figures, wait_quiet
from harness.machine import CORES, LOAD_CORE, describe, versions
from harness.neighbours import Neighbours
from harness.nodes import FOLLOWER_CORE, OWNER_CORE, Node, hub_node, running_node
from harness.results import write_results
from harness.search import Search
from harness.servers import Kind, Server, ServerError, running

MINUTES = 4.4
"""What is not done by then is left out."""
APPENDS = ((1, 1), (200, 1), (200, 32))
"""Turns in a call, chunks for each."""
APPEND_S = 0.3
LATENCY_TURNS, LATENCY_COUNT, RATE = 20, 50, 50
TURNS, DELTAS = 100, 100
COMMANDS = (
    ("paced", RATE, False),
    ("paced, with a follower elsewhere", RATE, True),
    ("at full speed", 0, False),
)
WORKER_TURNS, WORKER_FIRST = 60, 200
RAMP_S, SETTLE_S, DURATION_S = 1.0, 0.3, 2.0
LATE_MS, DELIVERED = 100.0, 0.97
"""As in `compare.py`: a level passes that is not later than this, nor delivers less."""


class Measurement:
    """All runs, and the time there is for them."""

    def __init__(self, minutes: float) -> None:
        self.runs: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self._began = time.monotonic()
        self._ends = self._began + 60 * minutes

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() > self._ends

    def run(
        self, workload: str, server: str, make: Callable[[], Figures], **parameters: float | str
    ) -> Figures | None:
        """Make a run and note it, failed or not. Returns its figures; None if it failed or there is no time left."""
        if self.over:
            self.left_out.append(f"{workload} of {server}")
            return None
        run: dict[str, Any] = {"workload": workload, "server": server, **parameters}
        found: Figures | None = None
        try:
            found = make()
            run |= found
        except (LoadError, ServerError, OSError) as error:
            run["failed"] = str(error)
        self.runs.append(run)
        told = "  ".join(
            f"{name} {value}" for name, value in run.items() if name not in ("workload", "server")
        )
        print(f"{self.elapsed_s / 60:5.1f} min  {workload:9} {server:14} {told}", file=sys.stderr, flush=True)
        return found


def append(journal: Journal, node: Node, turns: int, batch: int) -> Figures:
    """Append to a journal of its own."""
    before = journal.cpu_s()
    done = node.ask("append", "appended", url=journal.url(), turns=turns, batch=batch, seconds=APPEND_S)
    entries = done["entries"]
    return {
        "per_s": round(entries / done["seconds"], 1),
        "cpu_us": round(done["cpu_s"] / entries * 1e6, 2),
        "engine_us": round((journal.cpu_s() - before) / entries * 1e6, 2),
        "p50_ms": done["p50_ms"],
        "p99_ms": done["p99_ms"],
    }


def latency(journal: Journal, here: Node, elsewhere: Node | None) -> Figures:
    """Have turns written on one node, and followed there and on another."""
    _forget(here, elsewhere)
    total = LATENCY_TURNS * LATENCY_COUNT
    within_s = LATENCY_COUNT / RATE + 10.0
    before = [here.cpu_s(), elsewhere.cpu_s() if elsewhere else 0.0, journal.cpu_s()]
    ready = here.ask("write", "ready", turns=LATENCY_TURNS, count=LATENCY_COUNT, rate=RATE)
    if elsewhere is not None:
        elsewhere.ask("follow", "following", turns=ready["turns"], tag="other", expect=LATENCY_COUNT)
    here.ask("go", "written", within_s=within_s)
    if elsewhere is not None:
        elsewhere.wait("got")
    after = [here.cpu_s(), elsewhere.cpu_s() if elsewhere else 0.0, journal.cpu_s()]
    here.tell("end")
    found: Figures = {}
    for name, node in (("here", here), ("elsewhere", elsewhere)):
        if node is not None:
            read = node.wait("read")
            if sum(read["received"].values()) != total:
                raise LoadError(f"not all chunks came: {sum(read['received'].values())} of {total} {name}")
            found |= {f"{name}_p50_ms": read["p50_ms"], f"{name}_p99_ms": read["p99_ms"]}
    used = [round((b - a) / total * 1e6, 1) for a, b in zip(before, after, strict=True)]
    return found | {"owner_us": used[0], "follower_us": used[1], "engine_us": used[2]}


def count_commands(journal: Journal, here: Node, elsewhere: Node | None, rate: int) -> Figures:
    """Count what a Redis executes for some turns; `elsewhere` follows all of them if it is there."""
    _forget(here, elsewhere)
    before = commands(journal.port)
    cpu = journal.cpu_s()
    ready = here.ask("write", "ready", turns=TURNS, count=DELTAS, rate=rate)
    if elsewhere is not None:
        elsewhere.ask("follow", "following", turns=ready["turns"], tag="other", expect=DELTAS)
    here.ask("go", "written")
    here.tell("end")
    here.wait("read")
    if elsewhere is not None:
        elsewhere.wait("got")
        elsewhere.wait("read")
    after = commands(journal.port)
    calls = {
        name: after[name][0] - before.get(name, (0, 0.0))[0] for name in after if name not in ("info", "ping")
    }
    found = {f"calls {name}": round(count / TURNS, 2) for name, count in calls.items() if count >= TURNS / 2}
    return {
        "scripts": round(calls.get("evalsha", 0) / TURNS, 2),
        "all": round(sum(calls.values()) / TURNS, 1),
        "engine_ms": round((journal.cpu_s() - cpu) / TURNS * 1e3, 3),
        **found,
    }


def _forget(*nodes: Node | None) -> None:
    for node in nodes:
        if node is not None:
            node.forget()


def workers(server: Server, turns: int) -> Figures:
    """Make one run of turns over HTTP, and say whether it passes."""
    wait_quiet(server)
    result = bench(
        server,
        "tokens",
        RAMP_S + SETTLE_S + DURATION_S,
        connections=turns,
        rate=RATE,
        ramp=RAMP_S,
        settle=SETTLE_S,
        duration=DURATION_S,
    )
    found = figures(result)
    if result.errors or result.opened < turns:
        raise LoadError(f"{result.opened} of {turns} turns began, {errors_of(result) or 'no errors'}")
    found["delivered"] = round(found["events"] / (turns * RATE * found["duration_s"]), 4)
    found["passed"] = found["p99_ms"] < LATE_MS and found["delivered"] >= DELIVERED
    return found


def worker_kind(count: int, journal: Journal) -> Kind:
    """Return so many workers on a journal. They may have all cores, as the load and the journal's server do."""
    cores = ",".join(map(str, CORES))
    url = journal.url()

    def command(folder: Path, port: int, other: int) -> list[str]:
        program = str(Path(sys.executable).with_name("penstock"))
        options = ["--port", str(port), "--journal", url, "--log-level", "error", "--workers", str(count)]
        return ["taskset", "-c", cores, program, "serve", *options]

    return Kind(f"workers-{count}", f"{count} worker{'s' * (count > 1)}", command, ours=True)


def measure_workers(found: Measurement, journal: Journal, folder: Path, rounds: int) -> None:
    """Measure one worker and two, in turns: the cost at one level, then the highest level of each."""
    with ExitStack() as stack:
        servers = []
        for count in (1, 2):
            try:
                servers.append(stack.enter_context(running(worker_kind(count, journal), folder)))
            except ServerError as error:
                found.left_out.append(f"{count} workers: {error}")
        # A supervisor listens before its workers do.
        time.sleep(1.0)
        for number in range(rounds):
            for server in servers:
                take = partial(workers, server, WORKER_TURNS)
                found.run("workers", server.kind.name, take, turns=WORKER_TURNS, round=number)
        searches = {server.kind.name: Search(WORKER_FIRST, 2_000) for server in servers}
        while any(search.level is not None for search in searches.values()):
            for server in servers:
                search = searches[server.kind.name]
                if (level := search.level) is None:
                    continue
                run = found.run("levels", server.kind.name, partial(workers, server, level), turns=level)
                used = run["server_cpu"] if run else 1.0
                search.tell(passed=bool(run and run["passed"]), idle=used < 0.8, used=used)
            if found.over:
                return


def measure(found: Measurement, there: list[Journal], folder: Path, rounds: int) -> None:
    """Make all runs."""
    with ExitStack() as stack:
        nodes: dict[str, tuple[Node, Node | None]] = {}
        for journal in there:
            command = hub_node(journal.url())
            here = stack.enter_context(running_node(command, core=OWNER_CORE))
            elsewhere = (
                stack.enter_context(running_node(command, core=FOLLOWER_CORE)) if journal.nodes else None
            )
            nodes[journal.name] = (here, elsewhere)
        for number in range(rounds):
            for journal in there:
                here, elsewhere = nodes[journal.name]
                for turns, batch in APPENDS:
                    take = partial(append, journal, here, turns, batch)
                    found.run("append", journal.name, take, turns=turns, batch=batch, round=number)
                take = partial(latency, journal, here, elsewhere)
                found.run("latency", journal.name, take, round=number)
            for journal in there:
                here, elsewhere = nodes[journal.name]
                for case, rate, followed in COMMANDS if journal.name == "redis" else ():
                    take = partial(count_commands, journal, here, elsewhere if followed else None, rate)
                    found.run("commands", journal.name, take, case=case, round=number)
    for journal in there:
        if journal.name == "redis":
            measure_workers(found, journal, folder, rounds)


def main() -> int:
    """Run, and write the file; return the exit status."""
    parser = argparse.ArgumentParser(description="what turns cost in each journal")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--journals", default="", help="only these: memory,sqlite,sqlite-normal,redis,…")
    parser.add_argument("--folder", help="where files are made: on the disk that is to be measured")
    parser.add_argument("--output", type=Path, help="where to put all runs, as JSON")
    options = parser.parse_args()
    if len(CORES) < 2:
        print("Two cores are needed.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = describe()
    os.sched_setaffinity(0, {LOAD_CORE})
    started = datetime.now(UTC).isoformat(timespec="seconds")
    found, neighbours = Measurement(MINUTES), Neighbours()
    names = [name for name in options.journals.split(",") if name]
    with tempfile.TemporaryDirectory(prefix="penstock-journal-", dir=options.folder) as folder:
        with journals(Path(folder), names) as (there, missing):
            measure(found, there, Path(folder), options.rounds)
        titles = [{"name": journal.name, "title": journal.title} for journal in there]
    data = {
        "started_at": started,
        "minutes": round(found.elapsed_s / 60, 1),
        "machine": machine,
        "others_cores": neighbours.cores(),
        "versions": {
            name: number
            for name, number in (versions() | engines.versions()).items()
            if name in ("python", "penstock", "trio", *engines.PACKAGES, "redis-server", "nats-server")
        },
        "servers": titles,
        "missing": missing,
        "left_out": found.left_out,
        "runs": found.runs,
    }
    if options.output:
        write_results(options.output, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
