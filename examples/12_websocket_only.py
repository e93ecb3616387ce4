"""A chat over a WebSocket and nothing else: no web app, no HTTP server, a Trio listener and a hub.

    cd examples
    python 12_websocket_only.py
    penstock send ws://127.0.0.1:8000 "Hello"

The frames are those of `/api/chat/ws`, so the AI SDK's `WebSocketChatTransport` and `penstock.client` talk to it as well.
"""

from __future__ import annotations

import logging
import os
import signal

import trio

from penstock import Turn, open_hub, serve_websocket

DRAIN_S = 5.0
"""How long answers may go on after Ctrl-C."""


async def answer(turn: Turn) -> None:
    """Say back what was said, a word at a time."""
    async with turn.text() as text:
        for word in turn.prompt.split():
            await text.write(f"{word} ")
            await trio.sleep(0.05)


async def main() -> None:
    """Serve until Ctrl-C, then let answers end."""
    async with open_hub(journal=os.environ.get("JOURNAL", "memory:")) as hub:
        [listener] = await trio.open_tcp_listeners(int(os.environ.get("PORT", "8000")), host="127.0.0.1")
        logging.info("listening on ws://127.0.0.1:%d ", listener.socket.getsockname()[1])
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_websocket, hub, listener, answer)
                async for _ in signals:
                    break
                await hub.drain(DRAIN_S)  # `serve_websocket` returns once its clients have been told
                nursery.cancel_scope.cancel("drained")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trio.run(main)
