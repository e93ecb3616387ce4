"""A chat in a Quart-Trio app that is there already: its own routes, and a hook that says who may do what.

    cd examples
    CHAT_TOKENS=ada:secret-1,bob:secret-2 python 02_quart_app.py

Then ask as Ada, and try to read her chat as Bob:

    curl -N http://127.0.0.1:8000/api/chat -H 'authorization: Bearer secret-1' -H 'content-type: application/json' \
        -d '{"id": "ada.1", "message": {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}}'
    curl http://127.0.0.1:8000/api/chat/ada.1 -H 'authorization: Bearer secret-2'

`useChat` sends the header with `new DefaultChatTransport({headers: {authorization: …}})`.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from secrets import compare_digest
from typing import Any

import msgspec
import trio
from quart_trio import QuartTrio

from penstock import Action, Denied, Penstock, Request, Turn
from penstock.server import serve_until_signalled

# Where your app asks its sessions or its identity provider, this one has a list.
USERS = dict(pair.split(":", 1) for pair in os.environ.get("CHAT_TOKENS", "").split(",") if ":" in pair)

app = QuartTrio(__name__)


@app.get("/")
async def home() -> str:
    """Stand for the routes that your app has."""
    return "This app had routes of its own before it had a chat.\n"


@app.get("/statistics")
async def statistics() -> dict[str, Any]:
    """Count the turns. The hub is there from the app's start to its end, for routes of yours as for penstock's."""
    return {} if penstock.hub is None else msgspec.to_builtins(penstock.hub.statistics())


async def answer(turn: Turn) -> None:
    """Answer. Who may have come this far, `authorize` has decided."""
    user = turn.chat_id.partition(".")[0]
    async with turn.text() as text:
        await text.write(f"Hello, {user}. ")
        await text.write(f"You said: {turn.prompt}")


async def authorize(request: Request, chat_id: str, action: Action) -> str | Denied:
    """Return the user's name, if the chat is theirs. It is asked on every route, before anything is read or started."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    # Compared in constant time, and all of them: how long it takes tells nothing.
    known = [name for name, token in USERS.items() if compare_digest(token.encode(), given)]
    if not known:
        return Denied.anonymous
    # Clients choose their chats' ids. Here a chat belongs to whoever its id begins with; yours may ask a database.
    return known[0] if chat_id.startswith(f"{known[0]}.") else Denied.hidden


penstock = Penstock(app, answer, prefix="/api/chat", authorize=authorize)

if __name__ == "__main__":
    if not USERS:
        raise SystemExit("Say who may come in, as in CHAT_TOKENS=ada:secret-1,bob:secret-2")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port = int(os.environ.get("PORT", "8000"))
    trio.run(partial(serve_until_signalled, app, port=port))
