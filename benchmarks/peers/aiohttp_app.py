"""aiohttp with aiohttp-sse on uvloop, as its documentation shows it. It formats a template, not JSON of any text."""

from __future__ import annotations

import sys

import uvloop
from aiohttp import web
from aiohttp_sse import EventSourceResponse
from workload import Deltas, Fan

fan = Fan[str]()


async def chat(request: web.Request) -> web.StreamResponse:
    """`POST /api/chat`."""
    deltas = Deltas(await request.json())
    response = EventSourceResponse(sep="\n", allow_all_methods=True)
    await response.prepare(request)
    async with response:
        for number in range(deltas.count):
            data = f'{{"type":"text-delta","id":"text-1","delta":"{await deltas.text(number)}"}}'
            fan.publish(deltas.chat, data)
            await response.send(data)
        await response.send("[DONE]")
        response.stop_streaming()
    return response


async def watch(request: web.Request) -> web.StreamResponse:
    """`GET /api/chat/{chat}/watch`. The library sends its ping every 15 s."""
    response = EventSourceResponse(sep="\n")
    await response.prepare(request)
    queue = fan.add(request.match_info["chat"])
    try:
        async with response:
            while response.is_connected():
                await response.send(await queue.get())
    finally:
        fan.remove(request.match_info["chat"], queue)
    return response


app = web.Application()
app.router.add_post("/api/chat", chat)
app.router.add_get("/api/chat/{chat}/watch", watch)

if __name__ == "__main__":
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), backlog=4096, access_log=None, print=None)
