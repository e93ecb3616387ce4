"""A server to be killed: `python crash_server.py JOURNAL PORT LANE`. Says `ready` on stdout."""

from __future__ import annotations

import sys

import lanes
import trio

from penstock import Limits, Turn, chat_app
from penstock.asgi import ASGIApp
from penstock.limits import HubLimits
from penstock.server import serve_until_signalled

WORDS = 150
LEASE_S = 0.6


async def answer(turn: Turn) -> None:
    """About half a second of words."""
    async with turn.step(), turn.text() as text:
        for number in range(WORDS):
            await text.write(f"{number} ")
            await trio.sleep(0.003)


async def run(journal: str, port: int, lane: str) -> None:
    """Serve until killed."""
    app: ASGIApp = chat_app(answer, journal=journal, limits=Limits(hub=HubLimits(lease_s=LEASE_S)))
    if lane == "fallback":
        app = lanes.fallback(app)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_until_signalled(app, port=port, task_status=task_status)
        )
        print("ready", flush=True)


if __name__ == "__main__":
    trio.run(run, sys.argv[1], int(sys.argv[2]), sys.argv[3])
