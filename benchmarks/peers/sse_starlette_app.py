"""The burst in sse-starlette on uvicorn, as its documentation shows it: one event per yield."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def events(count: int) -> AsyncIterator[dict[str, str]]:
    """Yield text that is ready: less work than encoding it."""
    for number in range(count):
        yield {"data": f'{{"type":"text-delta","id":"text-1","delta":"{number} "}}'}


async def chat(request: Request) -> Response:
    """Answer `/long N`."""
    body = await request.json()
    count = int(body["messages"][0]["parts"][0]["text"].split()[1])
    return EventSourceResponse(events(count))


app = Starlette(routes=[Route("/api/chat", chat, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="error"
    )
