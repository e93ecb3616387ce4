"""What all sockets of an app share, and one socket from its first check to its end: for the app and the bare listener alike."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.asgi import PING_FRAME, Receive, Scope, Send
from penstock.closing import CloseReason
from penstock.connections.connection import open_connection
from penstock.connections.keepalive import Keepalive
from penstock.connections.websocket import AsgiWebSocket
from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.hub import Hub
from penstock.web.answers import Answers
from penstock.web.auth import Authorize
from penstock.web.request import check_origin, sdk_version
from penstock.web.socket import Session
from penstock.wire.versions import SdkVersion


class Sessions:
    """The sockets of an app."""

    def __init__(
        self,
        answers: Answers,
        keepalive: Keepalive,
        *,
        authorize: Authorize,
        origins: Sequence[str],
        abort_stops: bool,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._answers = answers
        self._keepalive = keepalive
        self._authorize = authorize
        self._origins = origins
        self._abort_stops = abort_stops
        self._limits = limits
        self._metrics = metrics
        self._open = 0

    def check(self, scope: Scope) -> SdkVersion:
        """Return the version of the client that a handshake is from.

        Raises:
            HttpError: a page that may not connect.
            RemoteProtocolError: a version that there is not.
        """
        version = sdk_version(scope, 7)  # No other has the transport.
        check_origin(scope, self._origins)
        return version

    async def serve(
        self,
        hub: Hub,
        version: SdkVersion,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        hears_out: bool = False,
    ) -> None:
        """Accept a socket that was checked, and serve it to its end; over `websockets`, which is at once.

        Args:
            hears_out: see `AsgiWebSocket`.
        """
        transport = AsgiWebSocket(scope, send, hears_out=hears_out)
        self._open += 1
        try:
            async with open_connection(
                transport,
                limits=self._limits.connection,
                metrics=self._metrics,
                opening=b"",
                ending=b"",
                keepalive_frame=PING_FRAME,
                keepalive=self._keepalive,
            ) as connection:
                session = Session(
                    connection,
                    transport,
                    scope,
                    hub=hub,
                    answers=self._answers,
                    authorize=self._authorize,
                    version=version,
                    abort_stops=self._abort_stops,
                    limits=self._limits,
                    metrics=self._metrics,
                )
                if self._open > self._limits.server.websockets:
                    await session.send_away(CloseReason.try_later)
                else:
                    await session.run(receive)
        finally:
            self._open -= 1
