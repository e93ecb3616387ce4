"""`penstock send`: one message to a chat endpoint, and the answer as it comes; or the answer that comes already."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import TextIO

from penstock.cli.printer import Printer
from penstock.cli.session import run_session
from penstock.client import ChunkStream, Client, Gap
from penstock.client.client import Transport
from penstock.limits import ClientLimits
from penstock.wire.chunks import Abort, Error
from penstock.wire.messages import UIMessage


async def send(
    url: str,
    text: str,
    *,
    chat_id: str | None = None,
    raw: bool = False,
    transport: Transport | None = None,
    limits: ClientLimits = ClientLimits(),
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """Send a message and print the answer; return the exit status.

    0 only if the whole answer came; 1 if it failed, was stopped or cut, or could not be asked for; `INTERRUPTED` and
    `BROKEN_PIPE` of `session.py` as they say.

    Args:
        url: a server's root, or its chat endpoint.
        text: the user's message.
        chat_id: the chat to go on with, whose history the server has; None begins one.
        raw: print each chunk's JSON instead, one a line, and `[DONE]` after the last.
        transport: SSE or a WebSocket; None: what the URL says.
        limits: how long to wait, and how often to try.
        stdout: where the answer goes.
        stderr: where notes and errors go.

    Cancelled, it closes the connection and prints nothing more.
    """
    # Bytes of the command line that are not UTF-8 come as lone surrogates, which JSON does not have.
    text = text.encode("utf-8", "replace").decode()

    def ask(client: Client) -> ChunkStream:
        if chat_id is not None:
            # The whole history is the server's; sent as `messages`, this one would replace it.
            return client.send(chat_id, text)
        # The form that every AI SDK endpoint knows.
        message = UIMessage(
            id=f"user_{secrets.token_hex(8)}", role="user", parts=[{"type": "text", "text": text}]
        )
        return client.send(f"chat_{secrets.token_hex(8)}", [message])

    return await _print(url, ask, raw, transport, limits, stdout, stderr)


async def resume(
    url: str,
    chat_id: str,
    *,
    raw: bool = False,
    transport: Transport | None = None,
    limits: ClientLimits = ClientLimits(),
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """Print a chat's newest answer, from its start to its end; return the exit status. As `send`, without sending."""
    return await _print(url, lambda client: client.follow(chat_id), raw, transport, limits, stdout, stderr)


async def _print(
    url: str,
    ask: Callable[[Client], ChunkStream],
    raw: bool,
    transport: Transport | None,
    limits: ClientLimits,
    stdout: TextIO | None,
    stderr: TextIO | None,
) -> int:
    printer = Printer(stdout or sys.stdout, stderr or sys.stderr)

    async def talk(client: Client) -> None:
        begun = False
        async with ask(client) as stream:
            async for event in stream:
                begun = True
                if isinstance(event, Gap):
                    printer.note(f"[gap] {event.reason}")
                    continue
                if raw:
                    printer.json(event.chunk)
                if not raw or isinstance(event.chunk, Abort | Error):
                    printer.chunk(event.chunk)
                printer.flush()
        if raw and begun:
            printer.text("[DONE]\n")
        if not begun:
            printer.error("There is no answer to go on with.")

    return await run_session(url, printer, talk, transport=transport, limits=limits)
