"""penstock in a Quart-Trio app: the state of chats, probes, and the streams in front.

app = QuartTrio(__name__)
Penstock(app, answer, prefix="/api/chat")
"""

from __future__ import annotations

import logging
from importlib import resources
from typing import Any, cast

from quart import Response
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from penstock.connections.transport import ASGIApp
from penstock.errors import RemoteProtocolError, StoreUnavailableError
from penstock.journal.position import Position
from penstock.journal.store import ChatRecord, check_journal
from penstock.limits import Limits
from penstock.metrics import Metrics, NopMetrics
from penstock.turns.hub import Hub, TurnHandle
from penstock.turns.runner import ErrorText
from penstock.turns.turn import Producer
from penstock.web.streams import Streams
from penstock.wire.codec import encode_json
from penstock.wire.messages import UIMessage, check_chat_id
from penstock.wire.versions import DEFAULT_SDK_VERSION, SdkVersion

logger = logging.getLogger("penstock.web")


class Penstock:
    """Puts penstock's routes into a Quart-Trio app: `Penstock(app, answer)`.

    Args:
        app: the app; its `asgi_app` is wrapped, so wrap it yourself before if your wrapper must stay inside.
        answer: the producer of every turn.
        prefix: where the routes are, without a slash at the end.
        journal: the journal's URL.
        sdk_version: the version of the `ai` package that clients have where they don't say it themselves.
        orphan_grace_s: seconds that a turn outlives its last follower; None: to its end.
        error_text: an app's own words for a producer's exception.
        limits: the numbers that differ from the defaults.
        metrics: where to count.
        probes: whether to add `/health/live` and `/health/ready`.
    """

    def __init__(
        self,
        app: QuartTrio,
        answer: Producer,
        *,
        prefix: str = "/api/chat",
        journal: str = "memory:",
        sdk_version: SdkVersion = DEFAULT_SDK_VERSION,
        orphan_grace_s: float | None = None,
        error_text: ErrorText | None = None,
        limits: Limits = Limits(),
        metrics: Metrics = NopMetrics(),
        probes: bool = True,
    ) -> None:
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise ValueError("the prefix begins with a slash and does not end with one")
        check_journal(journal)
        # Quart's types name each ASGI message; they are the same dictionaries.
        self._streams = Streams(
            cast("ASGIApp", app.asgi_app),
            answer,
            prefix=prefix,
            journal=journal,
            sdk_version=sdk_version,
            orphan_grace_s=orphan_grace_s,
            error_text=error_text,
            limits=limits,
            metrics=metrics,
        )
        app.asgi_app = self._streams  # type: ignore[method-assign, assignment]
        app.add_url_rule(f"{prefix}/<chat_id>", "penstock_chat", self._chat, methods=["GET"])
        if probes:
            app.add_url_rule("/health/live", "penstock_live", self._live, methods=["GET"])
            app.add_url_rule("/health/ready", "penstock_ready", self._ready, methods=["GET"])

    @property
    def hub(self) -> Hub | None:
        """The hub, while the app is being served."""
        return self._streams.hub

    async def _chat(self, chat_id: str) -> Response:
        try:
            check_chat_id(chat_id)
        except RemoteProtocolError as exc:
            return _text(exc.status, str(exc))
        hub = self.hub
        if hub is None:
            return _text(503, "The server is starting or shutting down.")
        try:
            record = await hub.chat(chat_id)
        except StoreUnavailableError:
            return _text(503, "The journal is not available.")
        if record is None:
            return _text(404, "There is no such chat.")
        return _json(chat_state(record, hub.running(chat_id)))

    async def _live(self) -> Response:
        return _text(200, "live")

    async def _ready(self) -> Response:
        if self.hub is None or self.hub.closing:
            return _text(503, "The server is starting or shutting down.")
        return _text(200, "ready")


def chat_state(record: ChatRecord, running: TurnHandle | None) -> dict[str, Any]:
    """Return a chat's state as the HTTP contract has it."""
    turn = record.turn
    messages: list[UIMessage] = list(record.messages)
    if turn is None:
        return {"id": record.chat_id, "turn": None, "messages": messages}
    position = Position(turn.turn_id, turn.epoch, turn.entries - 1)
    if running is not None and running.id == turn.turn_id:
        position = running.position or position
        messages.append(running.message())
    return {
        "id": record.chat_id,
        "turn": {
            "id": turn.turn_id,
            "state": turn.state.value,
            "position": str(position),
            "missing": False,
            "startedAt": turn.started_at,
            "endedAt": turn.ended_at,
        },
        "messages": messages,
    }


def chat_app(answer: Producer, *, page: bool = True, **options: Any) -> QuartTrio:
    """Make a whole app, an ASGI one, of a producer.

    Args:
        answer: the producer of every turn.
        page: whether `/` is the playground.
        options: as `Penstock` takes them.
    """
    app = QuartTrio("penstock", static_folder=None)
    Penstock(app, answer, **options)

    @app.errorhandler(HTTPException)
    async def refuse(error: HTTPException) -> Response:
        response = _text(
            error.code or 500, _SENTENCES.get(error.code or 500, "This request can't be answered.")
        )
        for name, value in error.get_headers():
            if name.lower() == "allow":
                response.headers[name] = value
        return response

    if page:
        content = resources.files("penstock.web").joinpath("static/index.html").read_bytes()

        @app.get("/")
        async def playground() -> Response:
            return Response(
                content,
                content_type="text/html; charset=utf-8",
                headers={
                    "cache-control": "no-cache",
                    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; "
                    "style-src 'unsafe-inline'; connect-src 'self'; img-src data: https:; "
                    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                    "referrer-policy": "no-referrer",
                    "x-content-type-options": "nosniff",
                },
            )

    return app


_SENTENCES = {
    400: "The request could not be understood.",
    404: "There is nothing here.",
    405: "This method is not allowed here.",
    500: "The server failed to answer this request.",
}


def _text(status: int, sentence: str) -> Response:
    return Response(
        sentence,
        status=status,
        content_type="text/plain; charset=utf-8",
        headers={"cache-control": "no-store"},
    )


def _json(value: object) -> Response:
    return Response(
        encode_json(value), content_type="application/json", headers={"cache-control": "no-store"}
    )
