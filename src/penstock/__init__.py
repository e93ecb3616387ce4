"""A structured-concurrency streaming server for AI chat, on Trio."""

from penstock.closing import CloseReason
from penstock.connections.connection import Connection, open_connection
from penstock.connections.transport import AsgiTransport, Transport
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
from penstock.turns.hub import Hub, TurnHandle, open_hub
from penstock.turns.turn import Producer, Turn
from penstock.web.quart import Penstock, chat_app
from penstock.wire.messages import UIMessage

__all__ = [
    "AnswerError",
    "AsgiTransport",
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
    "open_connection",
    "open_hub",
]
