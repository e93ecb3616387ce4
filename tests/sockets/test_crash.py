"""kill -9 in mid-answer, again and again: nothing that was seen changes, every turn ends once, none runs for ever.

PENSTOCK_CRASHES=50 makes it as many; the seed is printed, and PENSTOCK_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import trio
from crash_server import LEASE_S, WORDS
from lanes import LANES

from parts import free_port
from penstock.journal.position import Position
from penstock.testing import user_message
from penstock.wire.sse_parser import ServerSentEvent, SseParser

CRASHES = int(os.environ.get("PENSTOCK_CRASHES", "6"))
TURNS = 20
VIEWERS = 2
"""Beside the one that posted."""


@asynccontextmanager
async def running(journal: str, lane: str) -> AsyncIterator[tuple[str, trio.Process]]:
    """A server process, on one lane; whatever is left of it is killed at the end."""
    port = free_port()
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, str(Path(__file__).with_name("crash_server.py")), journal, str(port), lane],
                stdout=subprocess.PIPE,
                check=False,
            )
        )
        try:
            with trio.fail_after(20):
                assert (await process.stdout.receive_some(100)).startswith(b"ready")
            yield f"http://127.0.0.1:{port}/api/chat", process
        finally:
            process.kill()


class Viewer:
    """What one viewer of one chat saw."""

    def __init__(self) -> None:
        self.events: list[ServerSentEvent] = []

    async def look(self, method: str, url: str, **options: Any) -> None:
        """Read a stream until it ends, one way or the other."""
        parser = SseParser()
        try:
            async with (
                httpx2.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
                client.stream(method, url, **options) as response,
            ):
                async for data in response.aiter_raw():
                    self.events += parser.feed(data)
        except httpx2.HTTPError:
            pass

    def chunks(self) -> list[tuple[Position, str]]:
        """What it saw, with positions."""
        return [
            (Position.parse(event.last_event_id), event.data)
            for event in self.events
            if event.event in ("message", "chunk") and event.data != "[DONE]"
        ]


async def check_turn(
    client: httpx2.AsyncClient, url: str, chat_id: str, viewers: list[Viewer], seen: dict[Position, str]
) -> str | None:
    """Compare what the viewers saw with the journal, and return the outcome; None if the turn never began."""
    state = await client.get(f"{url}/{chat_id}")
    if state.status_code == 404:
        assert not any(viewer.chunks() for viewer in viewers)
        return None
    turn = state.json()["turn"]
    response = await client.get(f"{url}/{turn['id']}/stream?startIndex=0")
    journal = [event.data for event in SseParser().feed(response.content) if event.data != "[DONE]"]
    terminals = [data for data in journal if '"type":"finish"' in data or '"type":"error"' in data]
    assert terminals == journal[-1:]
    if turn["state"] == "lost":
        # What the new owner wrote comes after everything that the old one had stored.
        stored = next(
            index
            for index, data in enumerate(journal)
            if '"type":"text-end"' in data or index == len(journal) - 1
        )
    else:
        stored = len(journal)
    for viewer in viewers:
        chunks = viewer.chunks()
        offsets = [position.offset for position, _ in chunks]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)) if offsets else ())
        for position, data in chunks:
            assert seen.setdefault(position, data) == data
            if position.offset < stored:
                assert data == journal[position.offset]
    words = [msgspec.json.decode(data)["delta"] for data in journal if '"type":"text-delta"' in data]
    assert words == [f"{number} " for number in range(len(words))]
    if turn["state"] == "finished":
        assert len(words) == WORDS
    outcome: str = turn["state"]
    return outcome


async def test_kill_9_at_random_points(tmp_path: Path) -> None:
    seed = int(os.environ.get("PENSTOCK_SEED", str(random.randrange(1 << 32))))
    print(f"PENSTOCK_SEED={seed}")
    dice = random.Random(seed)
    file = tmp_path / "chat.db"
    outcomes: list[str | None] = []
    seen: dict[Position, str] = {}
    before: dict[str, list[Viewer]] = {}
    for crash in range(CRASHES + 1):
        async with (
            # In turn on the fast lane and on the fallback: each crash is looked at from the other.
            running(f"sqlite:{file}", LANES[crash % 2]) as (url, process),
            httpx2.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
        ):
            if before:
                # Whoever looks while the lease still holds sees it running; nobody does for longer.
                with trio.fail_after(LEASE_S * 4 + 5):
                    for chat_id in before:
                        while (
                            state := await client.get(f"{url}/{chat_id}")
                        ).status_code == 200 and state.json()["turn"]["state"] == "running":
                            await trio.sleep(0.05)
                for chat_id, viewers in before.items():
                    outcomes.append(await check_turn(client, url, chat_id, viewers, seen))
            before = {}
            if crash == CRASHES:
                break
            async with trio.open_nursery() as nursery:
                for number in range(TURNS):
                    chat_id = f"chat-{crash}-{number}"
                    viewers = before[chat_id] = [Viewer() for _ in range(VIEWERS + 1)]
                    body = {"id": chat_id, "messages": [msgspec.to_builtins(user_message("go"))]}
                    for viewer in viewers[1:]:
                        nursery.start_soon(viewer.look, "GET", f"{url}/{chat_id}/watch?types=chunk")
                    nursery.start_soon(
                        lambda viewer=viewers[0], body=body: viewer.look("POST", url, json=body)  # type: ignore[misc]
                    )
                await trio.sleep(dice.uniform(0.1, 1.2))
                process.kill()
        with sqlite3.connect(file) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
    assert {outcome for outcome in outcomes if outcome is not None} <= {"finished", "lost"}
    assert outcomes.count("lost") > 0
