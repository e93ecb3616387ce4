"""A page without any library: the browser's own `EventSource` follows a chat, and comes back by itself.

    cd examples
    python 10_eventsource.py

Then open http://127.0.0.1:8000 in two windows and say something in one. Restart this, and watch both go on.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

import trio
from quart import Response, send_file

from penstock import Turn, chat_app
from penstock.server import serve_until_signalled

PAGE = Path(__file__).with_suffix(".html")


async def answer(turn: Turn) -> None:
    """Say back what the user said, slowly enough to watch it in two windows."""
    async with turn.text() as text:
        for word in f"You said: {turn.prompt}".split():
            await text.write(f"{word} ")
            await trio.sleep(0.1)


app = chat_app(answer, journal=os.environ.get("JOURNAL", "sqlite:eventsource.db"), page=False)


@app.get("/")
async def page() -> Response:
    """Give the page, which is one file."""
    return await send_file(PAGE)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trio.run(partial(serve_until_signalled, app, port=int(os.environ.get("PORT", "8000"))))
