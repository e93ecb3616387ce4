"""`/metrics`, for Prometheus, on an address of its own: numbers are for who runs the server, not for its users."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

from penstock.limits import ServerLimits
from penstock.metrics import Series
from penstock.prometheus import CONTENT_TYPE, prometheus_text
from penstock.server.listener import serve

_LIMITS = ServerLimits(connections=32)
"""A pair of Prometheus servers, and a person who looks."""


async def serve_metrics(sockets: list[socket.socket], values: Callable[[], Mapping[Series, int]]) -> None:
    """Answer `GET /metrics` with what `values` returns then, until cancelled.

    Args:
        sockets: bound ones; closed at the end.
        values: of `Counters`, for one.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            status, text = 404, "There is nothing here but /metrics."
            if scope["path"] == "/metrics":
                status, text = 200, prometheus_text(values())
            headers = [(b"content-type", CONTENT_TYPE.encode()), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text.encode()})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})

    await serve(app, sockets=sockets, limits=_LIMITS)
