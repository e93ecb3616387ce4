"""Who has something to say behind nginx and nchan: it streams a turn to its caller, and publishes it to the channel.

It runs on the load's core and is no part of what is measured.

    python nchan_publisher.py PORT NGINX_PORT
"""

from __future__ import annotations

import sys

import uvloop
from aiohttp import ClientSession, web
from workload import Deltas

nginx = web.AppKey("nginx", ClientSession)


async def chat(request: web.Request) -> web.StreamResponse:
    """`POST /api/chat`."""
    deltas = Deltas(await request.json())
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for number in range(deltas.count):
        data = f'{{"type":"text-delta","id":"text-1","delta":"{await deltas.text(number)}"}}'
        async with request.app[nginx].post(f"/publish/{deltas.chat}", data=data) as answer:
            answer.raise_for_status()
        await response.write(f"data: {data}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def connect(app: web.Application) -> None:
    """Keep connections to nginx."""
    app[nginx] = ClientSession(f"http://127.0.0.1:{sys.argv[2]}")


async def disconnect(app: web.Application) -> None:
    """Close them."""
    await app[nginx].close()


app = web.Application()
app.router.add_post("/api/chat", chat)
app.on_startup.append(connect)
app.on_cleanup.append(disconnect)

if __name__ == "__main__":
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
