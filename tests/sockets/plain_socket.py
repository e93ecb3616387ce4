"""Chats over a WebSocket with the package `websockets`, on asyncio. A process of its own, see `test_websocket_peers.py`.

usage: python plain_socket.py URL     says `ready` on stdout, then what it saw once the server has closed
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

MESSAGE = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}


async def until_end(socket: ClientConnection, request_id: str, frames: list[dict[str, Any]]) -> None:
    """Read to the end of a request."""
    while not frames or (frames[-1]["type"], frames[-1]["requestId"]) != ("end", request_id):
        frames.append(json.loads(await socket.recv(decode=True)))


async def main(url: str) -> None:
    """Send, resume by position, ping, and wait for the end."""
    frames: list[dict[str, Any]] = []
    async with connect(url, subprotocols=[Subprotocol("chat"), Subprotocol("other")], proxy=None) as socket:
        send = {"type": "send", "requestId": "1", "id": "python", "messages": [MESSAGE]}
        # A message in two fragments.
        text = json.dumps(send)
        await socket.send([text[:20], text[20:]])
        await until_end(socket, "1", frames)
        after = [frame for frame in frames if frame["type"] == "chunk"][2]["position"]
        resume = {"type": "resume", "requestId": "2", "id": "python", "after": after}
        await socket.send(json.dumps(resume).encode())
        await until_end(socket, "2", frames)
        await (await socket.ping("there?"))
        print("ready", flush=True)
        try:
            while True:
                frames.append(json.loads(await socket.recv(decode=True)))
        except ConnectionClosed:
            seen = {
                "protocol": socket.subprotocol,
                "extensions": [extension.name for extension in socket.protocol.extensions],
                "frames": frames,
                "pongs": ["there?"],
                "code": socket.close_code,
                "reason": socket.close_reason,
            }
    print(json.dumps(seen), flush=True)


asyncio.run(main(sys.argv[1]))
