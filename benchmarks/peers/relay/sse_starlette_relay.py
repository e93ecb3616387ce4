"""sse-starlette on uvicorn, in front of a model that is asked with httpx."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import uvicorn
from paced_model import deltas, open_model
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

client = open_model(int(sys.argv[2]))


async def answer(body: Mapping[str, Any]) -> AsyncIterator[dict[str, str]]:
    """Yield a turn's events."""
    async for text in deltas(client, body):
        chunk = {"type": "text-delta", "id": "text-1", "delta": text}
        yield {"data": json.dumps(chunk, separators=(",", ":"))}
    yield {"data": "[DONE]"}


async def chat(request: Request) -> Response:
    """`POST /api/chat`."""
    return EventSourceResponse(answer(await request.json()))


app = Starlette(routes=[Route("/api/chat", chat, methods=["POST"])])

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
