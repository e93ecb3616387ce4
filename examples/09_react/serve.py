"""09: React's `useChat`, unmodified, over SSE and over a WebSocket.

    npm ci && npm run build          # in this folder
    python serve.py                  # then open http://127.0.0.1:8000, and http://127.0.0.1:8000/?socket

Ask for something `/slow` and reload in the middle: the answer goes on. To work on the page itself, run `penstock serve`
in one terminal and `npm run dev` in another.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

import trio
from quart import Response, send_from_directory
from quart_trio import QuartTrio

from penstock import Penstock
from penstock.demo.model import answer
from penstock.server import serve_until_signalled

PAGE = Path(__file__).parent / "dist"

app = QuartTrio(__name__, static_folder=None)
Penstock(app, answer)


@app.get("/")
@app.get("/<path:name>")
async def page(name: str = "index.html") -> Response:
    """Serve what Vite has built."""
    return await send_from_directory(PAGE, name)


if __name__ == "__main__":
    if not PAGE.is_dir():
        raise SystemExit("Build the page first: npm ci && npm run build")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port = int(os.environ.get("PORT", "8000"))
    trio.run(partial(serve_until_signalled, app, port=port))
