"""`penstock watch`: what happens in a chat, on the terminal, as it happens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from penstock.cli.printer import Printer
from penstock.cli.session import run_session
from penstock.client import Client, Closing, Gap, Message, Other, Received, Snapshot, WatchEvent
from penstock.client.client import Transport
from penstock.limits import ClientLimits
from penstock.wire.chunks import Abort, AnyChunk, Error, Finish
from penstock.wire.codec import convert
from penstock.wire.messages import UIMessage


async def watch(
    url: str,
    chat_id: str,
    *,
    types: Sequence[str] | None = None,
    lane: str | None = None,
    raw: bool = False,
    transport: Transport | None = None,
    limits: ClientLimits = ClientLimits(),
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """Print what happens in a chat until the server ends it; return the exit status.

    The assistant's text goes to stdout as it streams, everything else as notes of one line to stderr.

    Args:
        url: a server's root, or its chat endpoint.
        chat_id: the chat.
        types: kinds of chunks and events to be sent; None for all.
        lane: a lane to be sent as a whole.
        raw: print each event as a line of JSON instead, `{"event", "id", "data"}`.
        transport: SSE or a WebSocket; None: what the URL says.
        limits: how long to wait, and how often to try.
        stdout: where text and JSON go.
        stderr: where notes and errors go.

    Cancelled, it closes the connection and prints nothing more.
    """
    printer = Printer(stdout or sys.stdout, stderr or sys.stderr)
    viewer = _Viewer(printer)

    async def talk(client: Client) -> None:
        async with client.watch(chat_id, types=types, lane=lane) as stream:
            async for event in stream:
                if raw:
                    printer.json(_as_json(event))
                else:
                    viewer.show(event)
                printer.flush()

    return await run_session(url, printer, talk, transport=transport, limits=limits)


class _Viewer:
    """Knows which answers were seen as they streamed, and are not to be printed again."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._streamed = ""
        """The turn that was streamed last."""

    def show(self, event: WatchEvent) -> None:
        """Print an event."""
        match event:
            case Received(chunk, position):
                if position is not None:
                    self._streamed = position.turn_id
                self._chunk(chunk)
            case Message(message):
                self._message(message)
            case Snapshot(state):
                self._snapshot(state)
            case Gap(reason):
                self._printer.note(f"[gap] {reason}")
            case Closing(reason):
                self._printer.note(f"[closing] {reason}")
            case Other(name, data):
                self._printer.note(f"[{name}] {data}")

    def _chunk(self, chunk: AnyChunk) -> None:
        match chunk:
            case Finish():
                self._printer.end_line()
            # How an answer ends is nothing that the watching has failed in.
            case Abort(reason=reason):
                self._printer.note(f"[stopped] {reason}" if reason else "[stopped]")
            case Error(error_text=text):
                self._printer.note(f"[failed] {text}")
            case _:
                self._printer.chunk(chunk)

    def _message(self, message: UIMessage) -> None:
        if message.role != "assistant":
            self._printer.end_line()
            self._printer.note(f"[{message.role}] {message.text}")
        elif message.id != self._streamed:
            self._printer.text(message.text)
            self._printer.end_line()

    def _snapshot(self, state: dict[str, Any]) -> None:
        turn = state.get("turn")
        running = isinstance(turn, dict) and turn.get("state") == "running"
        self._printer.end_line()
        self._printer.note(f"[chat] {turn.get('state') if isinstance(turn, dict) else 'no turn yet'}")
        messages = state.get("messages")
        if running and isinstance(messages, list) and messages:
            message = convert(messages[-1], UIMessage, "The message")
            if message.role == "assistant":
                self._streamed = message.id
                self._printer.text(message.text)


def _as_json(event: WatchEvent) -> dict[str, Any]:
    data: Any
    match event:
        case Received(chunk, position):
            name, data = "chunk", chunk
        case Message(message, position):
            name, data = "message", message
        case Snapshot(state, position):
            name, data = "snapshot", state
        case Gap(reason, position):
            name, data = "gap", {"reason": reason}
        case Closing(reason, reconnect, retry_s):
            position = None
            name = "closing"
            data = {"reason": reason, "reconnect": reconnect, "retryMs": round(retry_s * 1000)}
        case Other(name, data):
            position = None
    return {"event": name, "id": None if position is None else str(position), "data": data}
