"""Bare ASGI with no framework, for uvicorn and Granian: the least that a server of these can do.

It formats a template of bytes, and so less than a real server may.

    python bare_asgi.py uvicorn|granian PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from workload import Deltas, Fan

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")],
}
TASKS: set[asyncio.Task[None]] = set()
fan = Fan[bytes]()


def part(data: bytes, *, more: bool = True) -> Message:
    """Return a part of a response's body."""
    return {"type": "http.response.body", "body": data, "more_body": more}


async def chat(receive: Receive, send: Send) -> None:
    """`POST /api/chat`."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    deltas = Deltas(json.loads(body))
    await send(START)
    for number in range(deltas.count):
        text = await deltas.text(number)
        frame = b'data: {"type":"text-delta","id":"text-1","delta":"%b"}\n\n' % text.encode()
        fan.publish(deltas.chat, frame)
        await send(part(frame))
    await send(part(b"data: [DONE]\n\n", more=False))


async def watch(name: str, receive: Receive, send: Send) -> None:
    """`GET /api/chat/{chat}/watch`."""
    await send(START)
    await send(part(b":ok\n\n"))
    queue = fan.add(name)

    async def follow() -> None:
        while True:
            await send(part(await queue.get()))

    task = asyncio.create_task(follow())
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        task.cancel()
        fan.remove(name, queue)


async def lifespan(receive: Receive, send: Send) -> None:
    """Keep quiet streams alive while the server runs."""
    await receive()
    task = asyncio.create_task(fan.keep_alive(b": ping\n\n"))
    TASKS.add(task)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    task.cancel()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Serve."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["method"] == "POST":
        await chat(receive, send)
    else:
        await watch(scope["path"].split("/")[3], receive, send)


def main() -> None:
    """Run under the server that is asked for."""
    name, port = sys.argv[1], int(sys.argv[2])
    if name == "uvicorn":
        import uvicorn

        uvicorn.run(
            app, port=port, loop="uvloop", http="httptools", backlog=4096, access_log=False, log_level="error"
        )
    else:
        from granian.constants import Interfaces, Loops
        from granian.server import Server

        # Its backpressure is the number of requests at once, and 1,024 by default.
        Server(
            "bare_asgi:app",
            port=port,
            interface=Interfaces.ASGI,
            workers=1,
            runtime_threads=1,
            loop=Loops.uvloop,
            backlog=16384,
            backpressure=16384,
            log_enabled=False,
        ).serve()


if __name__ == "__main__":
    main()
