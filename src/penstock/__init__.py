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
        TurnConflictError,
        TurnSealedError,
    )
    from penstock.journal.position import Position
    from penstock.journal.store import TurnState
    from penstock.limits import Limits
    from penstock.turns.handle import TurnHandle
    from penstock.turns.hub import Hub, open_hub
    from penstock.turns.turn import Producer, Turn
    from penstock.web.listener import serve_websocket
    from penstock.web.quart import Penstock, chat_app
    from penstock.wire.messages import UIMessage

# A name is imported when it is first used: a terminal client needs no web framework, a parser needs no Trio.
_HOMES = {
    "AnswerError": "penstock.errors",
    "AsgiTransport": "penstock.connections.transport",
    "AsgiWebSocket": "penstock.connections.websocket",
    "Client": "penstock.client.client",
    "CloseReason": "penstock.closing",
    "Connection": "penstock.connections.connection",
    "ConnectionClosedError": "penstock.errors",
    "ConnectionFullError": "penstock.errors",
    "Hub": "penstock.turns.hub",
    "Limits": "penstock.limits",
    "LocalProtocolError": "penstock.errors",
    "Penstock": "penstock.web.quart",
    "PenstockError": "penstock.errors",
    "Position": "penstock.journal.position",
    "Producer": "penstock.turns.turn",
    "RemoteProtocolError": "penstock.errors",
    "Transport": "penstock.connections.transport",
    "Turn": "penstock.turns.turn",
    "TurnConflictError": "penstock.errors",
    "TurnHandle": "penstock.turns.handle",
    "TurnSealedError": "penstock.errors",
    "TurnState": "penstock.journal.store",
    "UIMessage": "penstock.wire.messages",
    "chat_app": "penstock.web.quart",
    "open_client": "penstock.client.client",
    "open_connection": "penstock.connections.connection",
    "open_hub": "penstock.turns.hub",
    "serve_websocket": "penstock.web.listener",
}

__all__ = [
    "AnswerError",
    "AsgiTransport",
    "AsgiWebSocket",
    "Client",
    "CloseReason",
    "Connection",
    "ConnectionClosedError",
    "ConnectionFullError",
    "Hub",
    "Limits",
    "LocalProtocolError",
    "Penstock",
    "PenstockError",
    "Position",
    "Producer",
    "RemoteProtocolError",
    "Transport",
    "Turn",
    "TurnConflictError",
    "TurnHandle",
    "TurnSealedError",
    "TurnState",
    "UIMessage",
    "chat_app",
    "open_client",
    "open_connection",
    "open_hub",
    "serve_websocket",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
