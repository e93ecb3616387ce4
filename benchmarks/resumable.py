"""Resumed streams beside npm's `resumable-stream`, on the same Redis in one run.

    python benchmarks/resumable.py [--rounds 5] [--output FILE]

Both as a library, without HTTP: a process that produces and reads its own stream, as the first client does, and another
process that resumes it. Measured are

- **resumed**: chunks a second of one stream at full speed through to who has resumed it, and the CPU of each for a chunk;
  and how long it takes to come back to it, while it still runs, in a process that has nothing of it;
- **paced**: streams at 50 chunks a second, from the producer's write to who has resumed them, and the CPU;
- **killed**: what clients get whose producer is killed with SIGKILL: one that had resumed before, one that comes after.

The producer is on one core, the other processes and Redis are on the other. Needs node, redis-server, and `npm ci` in
`peers/resumable`. Every run is kept in the output.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness import engines
from harness.engines import Journal, journals
from harness.load import Figures, LoadError
from harness.machine import CORES, LOAD_CORE, describe, versions
from harness.neighbours import Neighbours
from harness.nodes import FOLLOWER_CORE, OWNER_CORE, Node, hub_node, running_node
from harness.results import write_results
from harness.servers import PEERS

CHUNKS = 5_000
STREAMS, PACED_CHUNKS, RATE = 20, 50, 50
KILL_RATE = 100
KILL_AFTER_S = (0.5, 1.5)
BACK_AFTER_S = 0.2
END_WITHIN_S = 25.0
"""From a kill until a client is taken to wait for ever: ten seconds more than our lease."""
ROOT = PEERS / "resumable"
LIBRARY = ROOT / "node_modules" / "resumable-stream"


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    title: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False

    @contextmanager
    def running(self, core: int) -> Iterator[Node]:
        """Run a process of it."""
        with running_node(self.command, core=core, environment=self.environment) as node:
            yield node


def sides(redis: Journal) -> tuple[list[Side], dict[str, str]]:
    """Return those that can be had, on the same Redis, and why the other can't."""
    found = [Side("penstock", "penstock, `redis:`", hub_node(redis.url()), ours=True)]
    if not LIBRARY.exists():
        return found, {"resumable-stream": "not installed: run benchmarks/install_peers.sh"}
    url = {"REDIS_URL": f"redis://127.0.0.1:{redis.port}"}
    found.append(Side("resumable-stream", "`resumable-stream`", ["node", str(ROOT / "node.mjs")], url))
    return found, {}


@dataclass(frozen=True)
class Nodes:
    """The processes of a side: one that produces, one that resumes, one that comes back later."""

    here: Node
    elsewhere: Node
    third: Node

    def cpu_s(self, redis: Journal) -> tuple[float, float, float]:
        """Return the CPU seconds of who produces, who resumes, and Redis."""
        return self.here.cpu_s(), self.elsewhere.cpu_s(), redis.cpu_s()


def stream(redis: Journal, nodes: Nodes, turns: int, chunks: int, rate: int, *, back: bool) -> Figures:
    """Have streams written and read by who has resumed them; then come back to them, if `back`."""
    total = turns * chunks
    for node in (nodes.here, nodes.elsewhere, nodes.third):
        node.forget()
    ids = nodes.here.ask("write", "ready", turns=turns, count=chunks, rate=rate)["turns"]
    nodes.elsewhere.ask("follow", "following", turns=ids, tag="live", expect=chunks)
    before = nodes.cpu_s(redis)
    began = nodes.here.ask("go", "written")["began"]
    seconds = (nodes.elsewhere.wait("got")["at"] - began) / 1e9
    used = [round((b - a) / total * 1e6, 1) for a, b in zip(before, nodes.cpu_s(redis), strict=True)]
    found: Figures = {"per_s": round(total / seconds, 1)}
    readers = [(nodes.here, "here"), (nodes.elsewhere, "live")]
    if back:
        asked = time.perf_counter_ns()
        nodes.third.ask("follow", "following", turns=ids, tag="back", expect=chunks)
        found["back_ms"] = round((nodes.third.wait("got")["at"] - asked) / 1e6, 2)
        readers.append((nodes.third, "back"))
    nodes.here.tell("end")
    for node, tag in readers:
        read = node.wait("read", tag=tag)
        if set(read["received"].values()) != {chunks} or {e["how"] for e in read["ends"].values()} != {
            "finished"
        }:
            raise LoadError(f"{tag}: not the whole: {read['received']}, {read['ends']}"[:300])
        if tag == "live":
            found |= {"p50_ms": read["p50_ms"], "p99_ms": read["p99_ms"]}
    return found | {"producer_us": used[0], "resumed_us": used[1], "redis_us": used[2]}


class Killed:
    """A producer that is killed, and the two clients in another process that have its stream."""

    def __init__(self, side: Side, elsewhere: Node, number: int) -> None:
        self._elsewhere = elsewhere
        self._tags = {"before": f"before-{number}", "after": f"after-{number}"}
        with side.running(OWNER_CORE) as here:
            turns = here.ask("write", "ready", turns=1, count=1_000_000, rate=KILL_RATE, seen=True)["turns"]
            elsewhere.tell("follow", turns=turns, tag=self._tags["before"], expect=0)
            elsewhere.wait("following", tag=self._tags["before"])
            here.tell("go")
            time.sleep(random.uniform(*KILL_AFTER_S))
            said = here.kill()
            self._killed_at = time.perf_counter_ns()
            self._seen = max((one["received"] for one in said if one["say"] == "seen"), default=0)
        time.sleep(BACK_AFTER_S)
        elsewhere.tell("follow", turns=turns, tag=self._tags["after"], expect=0)

    def result(self) -> dict[str, Any]:
        """Wait for the ends, and return what each client had and how it ended, in how many seconds from the kill."""
        found: dict[str, Any] = {"seen": self._seen}
        for which, tag in self._tags.items():
            left_s = END_WITHIN_S - (time.perf_counter_ns() - self._killed_at) / 1e9
            try:
                read = self._elsewhere.wait("read", tag=tag, within_s=max(left_s, 0.0))
            except LoadError:
                self._elsewhere.tell("count", tag=tag)
                read = self._elsewhere.wait("counted", tag=tag)
                found[f"{which}_how"] = "none"
            else:
                (end,) = read["ends"].values()
                found[f"{which}_how"] = end["how"]
                found[f"{which}_s"] = round((end["at"] - self._killed_at) / 1e9, 2)
            found[f"{which}_received"] = sum(read["received"].values())
        return found


def measure(redis: Journal, both: list[Side], rounds: int) -> list[dict[str, Any]]:
    """Make all runs, the sides in turns."""
    runs: list[dict[str, Any]] = []

    def run(workload: str, side: Side, number: int, make: Callable[[], dict[str, Any]]) -> None:
        noted: dict[str, Any] = {"workload": workload, "server": side.name, "round": number}
        try:
            noted |= make()
        except (LoadError, OSError) as error:
            noted["failed"] = str(error)
        runs.append(noted)
        print("  ".join(f"{name} {value}" for name, value in noted.items()), file=sys.stderr, flush=True)

    with ExitStack() as stack:
        elsewhere = {side.name: stack.enter_context(side.running(FOLLOWER_CORE)) for side in both}
        with ExitStack() as others:
            nodes = {
                side.name: Nodes(
                    others.enter_context(side.running(OWNER_CORE)),
                    elsewhere[side.name],
                    others.enter_context(side.running(FOLLOWER_CORE)),
                )
                for side in both
            }
            for side in both:
                # Not counted: the one compiles, the other has its scripts loaded.
                with suppress(LoadError):
                    stream(redis, nodes[side.name], 1, CHUNKS, 0, back=True)
            for number in range(rounds):
                for side in both:
                    take = partial(stream, redis, nodes[side.name])
                    run("resumed", side, number, partial(take, 1, CHUNKS, 0, back=True))
                    run("paced", side, number, partial(take, STREAMS, PACED_CHUNKS, RATE, back=False))
        killed: list[tuple[Side, int, Killed]] = []
        for number in range(rounds):
            for side in both:
                try:
                    killed.append((side, number, Killed(side, elsewhere[side.name], number)))
                except (LoadError, OSError) as error:
                    runs.append({"workload": "killed", "server": side.name, "failed": str(error)})
        for side, number, one in killed:
            run("killed", side, number, one.result)
    return runs


def main() -> int:
    """Run, and write the file; return the exit status."""
    parser = argparse.ArgumentParser(description="resumed streams beside resumable-stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where to put all runs, as JSON")
    options = parser.parse_args()
    if len(CORES) < 2:
        print("Two cores are needed.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = describe()
    os.sched_setaffinity(0, {LOAD_CORE})
    started, began, neighbours = datetime.now(UTC), time.monotonic(), Neighbours()
    runs: list[dict[str, Any]] = []
    both: list[Side] = []
    with (
        tempfile.TemporaryDirectory(prefix="penstock-resumable-") as folder,
        journals(Path(folder), ["redis"]) as (there, missing),
    ):
        if there:
            both, lacking = sides(there[0])
            missing |= lacking
            for name, reason in lacking.items():
                print(f"LEFT OUT: {name}: {reason}", file=sys.stderr)
            runs = measure(there[0], both, options.rounds)
    known: dict[str, str] = {**versions(), **engines.versions()}
    found: dict[str, str] = {
        name: known[name]
        for name in ("python", "node", "penstock", "coredis", "redis-server")
        if name in known
    }
    for package in ("redis", "resumable-stream"):
        file = ROOT / "node_modules" / package / "package.json"
        if file.exists():
            found[f"npm {package}"] = json.loads(file.read_text())["version"]
    data = {
        "started_at": started.isoformat(timespec="seconds"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": machine,
        "others_cores": neighbours.cores(),
        "versions": found,
        "chunks": CHUNKS,
        "paced": {"streams": STREAMS, "chunks": PACED_CHUNKS, "rate": RATE},
        "kill_rate": KILL_RATE,
        "end_within_s": END_WITHIN_S,
        "servers": [{"name": side.name, "title": side.title, "ours": side.ours} for side in both],
        "missing": missing,
        "runs": runs,
    }
    if options.output:
        write_results(options.output, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
