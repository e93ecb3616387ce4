"""Starlette's bare StreamingResponse on uvicorn. It formats a template of bytes, and so less than a real server may."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from workload import Deltas, Fan

fan = Fan[bytes]()


async def answer(deltas: Deltas) -> AsyncIterator[bytes]:
    """Yield a turn's frames."""
    for number in range(deltas.count):
        text = await deltas.text(number)
        frame = b'data: {"type":"text-delta","id":"text-1","delta":"%b"}\n\n' % text.encode()
        fan.publish(deltas.chat, frame)
        yield frame
    yield b"data: [DONE]\n\n"


async def follow(name: str) -> AsyncIterator[bytes]:
    """Yield a chat's frames."""
    queue = fan.add(name)
    try:
        yield b":ok\n\n"
        while True:
            yield await queue.get()
    finally:
        fan.remove(name, queue)


async def chat(request: Request) -> Response:
    """`POST /api/chat`."""
    return StreamingResponse(answer(Deltas(await request.json())), media_type="text/event-stream")


async def watch(request: Request) -> Response:
    """`GET /api/chat/{chat}/watch`."""
    return StreamingResponse(follow(request.path_params["chat"]), media_type="text/event-stream")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Keep quiet streams alive while the server runs."""
    task = asyncio.create_task(fan.keep_alive(b": ping\n\n"))
    yield
    task.cancel()


app = Starlette(
    routes=[Route("/api/chat", chat, methods=["POST"]), Route("/api/chat/{chat}/watch", watch)],
    lifespan=lifespan,
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
