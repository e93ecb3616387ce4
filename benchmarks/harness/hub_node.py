"""A node: a process with a hub on a journal, that does as it is told on its standard input, a line of JSON at a time.

    python hub_node.py JOURNAL-URL

| it is told | it does, and says |
|---|---|
| `{"do": "append", "url", "turns", "batch", "seconds"}` | appends to a store, entries to so many turns a call: `appended` |
| `{"do": "write", "turns", "count", "rate", "seen"}` | begins turns that one follower each reads here: `ready` |
| `{"do": "go"}` | writes `count` deltas to each, `rate` a second or, if that is 0, as fast as it goes: `written` |
| `{"do": "end"}` | ends the turns: `read`, once the followers have come to the end |
| `{"do": "follow", "turns", "tag", "expect"}` | follows turns of any node: `following`, `got` when they have so many, `read` |
| `{"do": "count", "tag"}` | `counted`: what these followers have by now |

With `seen`, it says what its own followers have, whenever they get something. Times are those of the machine's monotonic
clock in ns, which all processes share. `peers/resumable/node.mjs` understands the same.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from penstock import Hub, Turn, TurnHandle, open_hub
from penstock.errors import PenstockError
from penstock.journal.store import Batch, open_store
from penstock.testing import user_message
from penstock.wire.chunks import TextDelta
from penstock.wire.codec import encode

ENTRY = encode(TextDelta(id="txt_0", delta="drop 0000001 @1000000000000000 "))
STAMP = len("drop 0000001 @")
BATCH = 1_000


def say(what: str, **rest: object) -> None:
    """Write a line at once: whoever kills this process reads it all the same."""
    os.write(1, json.dumps({"say": what, **rest}).encode() + b"\n")


def percentile_ms(values_ns: Sequence[int], share: float) -> float:
    """Return what at most this share of the values is above."""
    return round(sorted(values_ns)[int(share * (len(values_ns) - 1))] / 1e6, 3) if values_ns else 0.0


def process_cpu_s() -> float:
    """Return the CPU seconds of this process, with all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def append(url: str, turns: int, batch: int, seconds: float) -> None:
    """Append batches to so many turns a call, one call after the other, as a hub does."""
    entries, waits, offset = [ENTRY] * batch, [], 0
    async with open_store(url) as store:
        until = time.time() + 3600.0
        records = [
            await store.begin(f"chat-{i}", f"msg_{i:024}", "user", [], at=time.time(), lease_until=until)
            for i in range(turns)
        ]
        cpu, began = process_cpu_s(), time.perf_counter_ns()
        end = asked = began
        while asked < began + seconds * 1e9:
            await store.append([Batch(record, offset, entries) for record in records])
            end = time.perf_counter_ns()
            waits.append(end - asked)
            offset += batch
            # The memory store never waits.
            await trio.lowlevel.checkpoint()
            asked = time.perf_counter_ns()
        cpu = process_cpu_s() - cpu
    say(
        "appended",
        entries=offset * turns,
        seconds=(end - began) / 1e9,
        cpu_s=cpu,
        p50_ms=percentile_ms(waits, 0.50),
        p99_ms=percentile_ms(waits, 0.99),
    )


class Writing:
    """Turns that are written here."""

    def __init__(self, count: int, rate: float) -> None:
        self._count = count
        self._rate = rate
        self._left = 0
        self.go = trio.Event()
        self.end = trio.Event()
        self.began = 0
        self.written = trio.Event()

    async def answer(self, turn: Turn) -> None:
        """Write one of them."""
        self._left += 1
        async with turn.text() as text:
            await self.go.wait()
            self.began = self.began or time.perf_counter_ns()
            began = trio.current_time()
            for number in range(self._count):
                if self._rate:
                    await trio.sleep_until(began + number / self._rate)
                await text.write(f"drop {number:07} @{time.perf_counter_ns()} ")
            self._left -= 1
            if not self._left:
                self.written.set()
            await self.end.wait()


class Reading:
    """Followers of some turns."""

    def __init__(self, tag: str, expect: int, *, seen: bool = False) -> None:
        self._tag = tag
        self._expect = expect
        self._seen = seen
        self._lacking = 0
        self._late: list[int] = []
        self.received: dict[str, int] = {}
        self._ends: dict[str, tuple[str, int]] = {}
        self._got_at = 0

    async def run(self, handles: Sequence[TurnHandle]) -> None:
        """Follow them to their ends."""
        self._lacking = len(handles)
        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(self._follow, handle)
        say(
            "read",
            tag=self._tag,
            received=self.received,
            ends={turn: {"how": how, "at": at} for turn, (how, at) in self._ends.items()},
            p50_ms=percentile_ms(self._late, 0.50),
            p99_ms=percentile_ms(self._late, 0.99),
        )

    async def _follow(self, handle: TurnHandle) -> None:
        received = 0
        with handle.follow() as subscription:
            try:
                while True:
                    batch = await subscription.next_batch(BATCH)
                    now = time.perf_counter_ns()
                    before = received
                    for entry in batch:
                        chunk = entry.chunk
                        if isinstance(chunk, TextDelta):
                            received += 1
                            self._late.append(now - int(chunk.delta[STAMP:]))
                    self.received[handle.id] = received
                    if self._seen and received > before:
                        say("seen", turn=handle.id, received=received)
                    if before < self._expect <= received:
                        self._lacking -= 1
                        if not self._lacking:
                            say("got", tag=self._tag, at=now)
            except trio.EndOfChannel:
                how = handle.state.value
            except PenstockError as exc:
                how = str(exc)
        self._ends[handle.id] = (how, time.perf_counter_ns())


async def write(hub: Hub, told: dict[str, Any], nursery: trio.Nursery) -> Writing:
    """Begin turns, and have each followed here."""
    writing = Writing(told["count"], told["rate"])
    handles = [
        await hub.start_turn(f"chat-{time.perf_counter_ns()}", writing.answer, [user_message("Hello")])
        for _ in range(told["turns"])
    ]
    nursery.start_soon(Reading("here", 0, seen=told.get("seen", False)).run, handles)
    say("ready", turns=[handle.id for handle in handles])
    return writing


async def go(writing: Writing) -> None:
    """Have the turns written."""
    writing.go.set()
    await writing.written.wait()
    say("written", began=writing.began)


async def follow(hub: Hub, reading: Reading, turns: Sequence[str], tag: str) -> None:
    """Follow turns."""
    handles = []
    for turn in turns:
        handle = await hub.turn(turn)
        if handle is not None:
            handles.append(handle)
    say("following", tag=tag, turns=len(handles))
    await reading.run(handles)


async def main(url: str) -> None:
    """Obey until the input ends."""
    async with (
        open_hub(journal=url) as hub,
        trio.open_nursery() as nursery,
        trio.lowlevel.FdStream(os.dup(0)) as lines,
    ):
        say("here")
        writing = Writing(0, 0)
        readings: dict[str, Reading] = {}
        unread = b""
        async for data in lines:
            *told, unread = (unread + data).split(b"\n")
            for line in told:
                order = json.loads(line)
                match order.pop("do"):
                    case "append":
                        nursery.start_soon(partial(append, **order))
                    case "write":
                        writing = await write(hub, order, nursery)
                    case "go":
                        nursery.start_soon(go, writing)
                    case "end":
                        writing.end.set()
                    case "follow":
                        reading = readings[order["tag"]] = Reading(order["tag"], order.pop("expect"))
                        nursery.start_soon(partial(follow, hub, reading, **order))
                    case "count":
                        say("counted", tag=order["tag"], received=readings[order["tag"]].received)
        nursery.cancel_scope.cancel("nobody is left to obey")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
