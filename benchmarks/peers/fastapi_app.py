"""FastAPI's own EventSourceResponse on uvicorn, as its documentation shows it: yield typed items, it makes them JSON."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from workload import Deltas, Fan


@dataclass
class TextDelta:
    """One chunk. A type that is declared is FastAPI's fast way: pydantic's core writes the JSON."""

    type: str
    id: str
    delta: str


fan = Fan[TextDelta]()
DONE: Any = ServerSentEvent(raw_data="[DONE]")
"""It may be among items of any type."""


async def chat(body: dict[str, Any]) -> AsyncIterator[TextDelta]:
    """`POST /api/chat`."""
    deltas = Deltas(body)
    for number in range(deltas.count):
        chunk = TextDelta("text-delta", "text-1", await deltas.text(number))
        fan.publish(deltas.chat, chunk)
        yield chunk
    yield DONE


async def watch(chat: str) -> AsyncIterator[TextDelta]:
    """`GET /api/chat/{chat}/watch`. The library sends its ping every 15 s."""
    queue = fan.add(chat)
    try:
        while True:
            yield await queue.get()
    finally:
        fan.remove(chat, queue)


app = FastAPI()
app.add_api_route("/api/chat", chat, methods=["POST"], response_class=EventSourceResponse)
app.add_api_route("/api/chat/{chat}/watch", watch, methods=["GET"], response_class=EventSourceResponse)

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
