"""The producer that `test_supervisor.py` and `test_cluster.py` serve: it says which process it is, and counts."""

from __future__ import annotations

import os
import time

import trio

from penstock import Turn


async def answer(turn: Turn) -> None:
    """Do what the prompt says: `pid`, `block SECONDS`, `count N PAUSE`, or `ask`."""
    what, *numbers = turn.prompt.split()
    if what == "block":
        time.sleep(float(numbers[0]))  # noqa: ASYNC251  # a loop that is held up is what is tested
    async with turn.text() as text:
        if what == "count":
            for number in range(int(numbers[0])):
                await text.write(f"{number} ")
                await trio.sleep(float(numbers[1]))
        else:
            await text.write(f"pid={os.getpid()}")
    if what == "ask":
        async with turn.tool_call("open_gate", {"gate": "north"}) as call:
            verdict = await call.approval(wait_s=60)
            if verdict.approved:
                await call.output({"by": verdict.by, "why": verdict.reason})
