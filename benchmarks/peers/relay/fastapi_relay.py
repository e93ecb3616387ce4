"""FastAPI's own EventSourceResponse on uvicorn, in front of a model that is asked with httpx."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from paced_model import deltas, open_model


@dataclass
class TextDelta:
    """One chunk."""

    type: str
    id: str
    delta: str


client = open_model(int(sys.argv[2]))
DONE: Any = ServerSentEvent(raw_data="[DONE]")
"""It may be among items of any type."""


async def chat(body: dict[str, Any]) -> AsyncIterator[TextDelta]:
    """`POST /api/chat`."""
    async for text in deltas(client, body):
        yield TextDelta("text-delta", "text-1", text)
    yield DONE


app = FastAPI()
app.add_api_route("/api/chat", chat, methods=["POST"], response_class=EventSourceResponse)

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
