"""What the journal's stores take: acknowledged entries a second, and how long a caller waits for its commit.

    python benchmarks/journal.py            a table
    python benchmarks/journal.py --json     the same as JSON, with the machine it was measured on
    python benchmarks/journal.py --folder /mnt/disk     on another disk than that of the temporary files

Every number is the median of five runs. In each, every task appends a batch to turns of its own and waits for the
answer before it appends again. One task with 200 turns a call is what a hub does. Compare runs of one machine and disk
only.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

import trio

from penstock.journal.store import Batch, Store, TurnRecord, open_store
from penstock.wire.chunks import TextDelta
from penstock.wire.codec import encode

RUNS = 5
RUN_S = 1.0
CASES = [(1, 1, 1), (1, 1, 32), (200, 1, 1), (200, 1, 32), (1, 200, 1), (1, 200, 32)]
"""Tasks, turns in a call of each, entries for a turn in a call."""
ENTRY = encode(TextDelta(id="txt_0", delta=" penstock"))
STORES = {"memory": "memory:", "sqlite full": "sqlite:{}", "sqlite normal": "sqlite:{}?durability=normal"}


class Result(TypedDict):
    store: str
    tasks: int
    turns: int
    batch: int
    entries_per_s: float
    p50_ms: float
    p99_ms: float
    runs: list[float]


class Run:
    """One run: so many tasks that each append to so many turns, in batches of so many entries."""

    def __init__(self, tasks: int, turns: int, batch: int) -> None:
        self.tasks = tasks
        self.turns = turns
        self.entries = [ENTRY] * batch
        self.waits: list[float] = []

    async def measure(self, url: str) -> float:
        """Return the entries that were acknowledged in a second."""
        async with open_store(url) as store:
            turns = [
                await store.begin(f"chat-{i}", f"msg_{i:024}", "user", [], at=time.time(), lease_until=2e9)
                for i in range(self.tasks * self.turns)
            ]
            begin = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for i in range(0, len(turns), self.turns):
                    nursery.start_soon(self._append, store, turns[i : i + self.turns], begin + RUN_S)
            seconds = time.perf_counter() - begin
            return len(self.waits) * self.turns * len(self.entries) / seconds

    async def _append(self, store: Store, turns: list[TurnRecord], end: float) -> None:
        offset = 0
        while (asked := time.perf_counter()) < end:
            await store.append([Batch(turn, offset, self.entries) for turn in turns])
            self.waits.append(time.perf_counter() - asked)
            offset += len(self.entries)
            # The memory store never waits, and the others must have their turn.
            await trio.lowlevel.checkpoint()

    def wait_ms(self, share: float) -> float:
        """Return how long at most this share of the appends waited."""
        return sorted(self.waits)[int(share * (len(self.waits) - 1))] * 1e3


def measure(store: str, tasks: int, turns: int, batch: int, folder: str) -> Result:
    rates, p50s, p99s = [], [], []
    for _ in range(RUNS):
        run = Run(tasks, turns, batch)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rates.append(trio.run(run.measure, STORES[store].format(Path(place, "chat.db"))))
        p50s.append(run.wait_ms(0.50))
        p99s.append(run.wait_ms(0.99))
    return {
        "store": store,
        "tasks": tasks,
        "turns": turns,
        "batch": batch,
        "entries_per_s": statistics.median(rates),
        "p50_ms": statistics.median(p50s),
        "p99_ms": statistics.median(p99s),
        "runs": rates,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description="Measure what the journal's stores take.")
    arguments.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments.add_argument("--folder", default=tempfile.gettempdir(), help="where the files are made")
    options = arguments.parse_args()
    results = [measure(store, *case, options.folder) for store in STORES for case in CASES]
    if options.json:
        machine = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "sqlite": sqlite3.sqlite_version,
        }
        json.dump(machine | {"results": results}, sys.stdout, indent=2)
        print()
        return
    print(
        f"{'store':<14} {'tasks':>5} {'turns':>5} {'batch':>5} {'entries/s':>12} {'p50 ms':>8} {'p99 ms':>8}"
    )
    for result in results:
        print(
            f"{result['store']:<14} {result['tasks']:>5} {result['turns']:>5} {result['batch']:>5} {result['entries_per_s']:>12,.0f}"
            f" {result['p50_ms']:>8.2f} {result['p99_ms']:>8.2f}"
        )


if __name__ == "__main__":
    main()
