"""sse-starlette on uvicorn, as its documentation shows it: one event per yield, JSON as its text."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from workload import Deltas, Fan

fan = Fan[str]()


async def answer(deltas: Deltas) -> AsyncIterator[dict[str, str]]:
    """Yield a turn's events."""
    for number in range(deltas.count):
        chunk = {"type": "text-delta", "id": "text-1", "delta": await deltas.text(number)}
        data = json.dumps(chunk, separators=(",", ":"))
        fan.publish(deltas.chat, data)
        yield {"data": data}
    yield {"data": "[DONE]"}


async def follow(name: str) -> AsyncIterator[dict[str, str]]:
    """Yield a chat's events. The library sends its ping every 15 s."""
    queue = fan.add(name)
    try:
        while True:
            yield {"data": await queue.get()}
    finally:
        fan.remove(name, queue)


async def chat(request: Request) -> Response:
    """`POST /api/chat`."""
    return EventSourceResponse(answer(Deltas(await request.json())))


async def watch(request: Request) -> Response:
    """`GET /api/chat/{chat}/watch`."""
    return EventSourceResponse(follow(request.path_params["chat"]))


app = Starlette(
    routes=[Route("/api/chat", chat, methods=["POST"]), Route("/api/chat/{chat}/watch", watch)],
)

if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        backlog=4096,
        access_log=False,
        log_level="error",
    )
