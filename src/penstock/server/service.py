"""What all clients of one server have in common."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from penstock.asgi import ASGIApp
from penstock.limits import ServerLimits
from penstock.metrics import Metrics
from penstock.server.deflate import Deflater
from penstock.server.direct import Framing, chunk, deflated
from penstock.server.drain import Drain


@dataclass(frozen=True, eq=False, kw_only=True)
class Service:
    """What all peers of one server share."""

    app: ASGIApp
    limits: ServerLimits
    metrics: Metrics
    drain: Drain
    config: Config
    state: dict[str, Any]
    http2: bool
    deflater: Deflater | None
    """What compresses WebSocket messages; None where none are to be."""
    tls: ssl.SSLContext | None
    context: WorkerContext = field(default_factory=lambda: WorkerContext(None))
    chunks: Framing = field(default_factory=lambda: Framing(chunk))
    deflated: Framing = field(init=False)
    """For WebSockets on which compression was agreed upon; on others, messages go out as they come."""

    def __post_init__(self) -> None:
        if self.deflater is not None:
            object.__setattr__(self, "deflated", Framing(partial(deflated, deflater=self.deflater)))
