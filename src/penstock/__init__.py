"""A structured-concurrency streaming server for AI chat, on Trio."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.client.client import Client, open_client
    from penstock.closing import CloseReason
    from penstock.connections.connection import Connection, open_connection
    from penstock.connections.transport import AsgiTransport, Transport
    from penstock.connections.websocket import AsgiWebSocket
    from penstock.errors import (
        AnswerError,
        ConnectionClosedError,
        ConnectionFullError,
        LocalProtocolError,
        PenstockError,
        RemoteProtocolError,
        ToolError,
        TurnConflictError,
        TurnSealedError,
    )
    from penstock.journal.position import Position
    from penstock.journal.store import Retention, TurnState
    from penstock.limits import Limits
    from penstock.metrics import Counters, Metrics
    from penstock.prometheus import prometheus_text
    from penstock.relay.openai_messages import openai_messages
    from penstock.relay.tools import run_tools, tool
    from penstock.relay.upstream import open_upstream
    from penstock.turns.approvals import Decision, Verdict
    from penstock.turns.handle import TurnHandle
    from penstock.turns.hub import Hub, open_hub
    from penstock.turns.turn import Producer, Turn
    from penstock.web.auth import Action, Authorize, Denied, Request
    from penstock.web.listener import serve_websocket
    from penstock.web.quart import Penstock, chat_app
    from penstock.wire import chunks
    from penstock.wire.chunks import FinishReason
    from penstock.wire.codec import decode_chunk
    from penstock.wire.messages import UIMessage

# A name is imported when it is first used: a terminal client needs no web framework, a parser needs no Trio.
_HOMES = {
    "Action": "penstock.web.auth",
    "AnswerError": "penstock.errors",
    "AsgiTransport": "penstock.connections.transport",
    "AsgiWebSocket": "penstock.connections.websocket",
    "Authorize": "penstock.web.auth",
    "Client": "penstock.client.client",
    "CloseReason": "penstock.closing",
    "Connection": "penstock.connections.connection",
    "ConnectionClosedError": "penstock.errors",
    "ConnectionFullError": "penstock.errors",
    "Counters": "penstock.metrics",
    "Decision": "penstock.turns.approvals",
    "Denied": "penstock.web.auth",
    "FinishReason": "penstock.wire.chunks",
    "Hub": "penstock.turns.hub",
    "Limits": "penstock.limits",
    "LocalProtocolError": "penstock.errors",
    "Metrics": "penstock.metrics",
    "Penstock": "penstock.web.quart",
    "PenstockError": "penstock.errors",
    "Position": "penstock.journal.position",
    "Producer": "penstock.turns.turn",
    "RemoteProtocolError": "penstock.errors",
    "Request": "penstock.web.auth",
    "Retention": "penstock.journal.store",
    "ToolError": "penstock.errors",
    "Transport": "penstock.connections.transport",
    "Turn": "penstock.turns.turn",
    "TurnConflictError": "penstock.errors",
    "TurnHandle": "penstock.turns.handle",
    "TurnSealedError": "penstock.errors",
    "TurnState": "penstock.journal.store",
    "UIMessage": "penstock.wire.messages",
    "Verdict": "penstock.turns.approvals",
    "chat_app": "penstock.web.quart",
    "chunks": "penstock.wire.chunks",
    "decode_chunk": "penstock.wire.codec",
    "open_client": "penstock.client.client",
    "open_connection": "penstock.connections.connection",
    "open_hub": "penstock.turns.hub",
    "open_upstream": "penstock.relay.upstream",
    "openai_messages": "penstock.relay.openai_messages",
    "prometheus_text": "penstock.prometheus",
    "run_tools": "penstock.relay.tools",
    "serve_websocket": "penstock.web.listener",
    "tool": "penstock.relay.tools",
}

__all__ = [
    "Action",
    "AnswerError",
    "AsgiTransport",
    "AsgiWebSocket",
    "Authorize",
    "Client",
    "CloseReason",
    "Connection",
    "ConnectionClosedError",
    "ConnectionFullError",
    "Counters",
    "Decision",
    "Denied",
    "FinishReason",
    "Hub",
    "Limits",
    "LocalProtocolError",
    "Metrics",
    "Penstock",
    "PenstockError",
    "Position",
    "Producer",
    "RemoteProtocolError",
    "Request",
    "Retention",
    "ToolError",
    "Transport",
    "Turn",
    "TurnConflictError",
    "TurnHandle",
    "TurnSealedError",
    "TurnState",
    "UIMessage",
    "Verdict",
    "chat_app",
    "chunks",
    "decode_chunk",
    "open_client",
    "open_connection",
    "open_hub",
    "open_upstream",
    "openai_messages",
    "prometheus_text",
    "run_tools",
    "serve_websocket",
    "tool",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value: object = home if name == "chunks" else getattr(home, name)
    globals()[name] = value
    return value
