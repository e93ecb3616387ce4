"""penstock in a Quart-Trio app: the state of chats, probes, and the streams in front.

app = QuartTrio(__name__)
Penstock(app, answer, prefix="/api/chat")
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, cast

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from penstock.asgi import Scope
from penstock.errors import RemoteProtocolError, StoreUnavailableError
from penstock.interop import check_interop
from penstock.journal.store import Retention, check_journal
from penstock.limits import Limits
from penstock.metrics import Metrics, NopMetrics
from penstock.turns.abandoned import Recover
from penstock.turns.error_text import ErrorText
from penstock.turns.hub import Hub
from penstock.turns.turn import Producer
from penstock.web.actions import approve, stop
from penstock.web.answers import OnConflict
from penstock.web.auth import NO_CHAT, Action, Authorize, Request, allow_everyone, authorized
from penstock.web.request import HttpError
from penstock.web.state import chat_state, whole_turn
from penstock.web.streams import Streams
from penstock.wire.codec import decode_json, encode_json
from penstock.wire.messages import check_chat_id
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
        recover: asked once for the rest of an answer whose process died; see `open_hub`.
        authorize: who may do what with a chat; see `penstock.web.auth`.
        on_conflict: what becomes of a message while another of its chat is being answered: `"refuse"` it with 409,
            `"stop"` that answer, or `"queue"` it, for `queue_s` at most.
        retention: what the journal keeps of what is over; None for the store's own measure.
        origins: other sites whose pages may open a WebSocket here, as `https://chat.example`; `*` for all.
        abort_stops: whether a WebSocket client's `abort` stops the turn, rather than only letting go of it.
        nats_mirror: the URL of a NATS on whose subjects what turns on this node write is published, too.
        nats_watch: the URL of a NATS on whose subjects other services say what those who watch a chat are sent; for both
            see `penstock.interop`.
        degraded: whether to start without the journal, if that is away, and to answer with 503 until it is there.
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
        recover: Recover | None = None,
        authorize: Authorize = allow_everyone,
        on_conflict: OnConflict = "refuse",
        retention: Retention | None = None,
        origins: Sequence[str] = (),
        abort_stops: bool = False,
        nats_mirror: str | None = None,
        nats_watch: str | None = None,
        degraded: bool = False,
        limits: Limits = Limits(),
        metrics: Metrics = NopMetrics(),
        probes: bool = True,
    ) -> None:
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise ValueError("the prefix begins with a slash and does not end with one")
        if isinstance(origins, str):
            raise ValueError("origins is a list of origins, not one")
        check_journal(journal)
        check_interop(nats_mirror, nats_watch)
        self._streams = Streams(
            app.asgi_app,
            answer,
            prefix=prefix,
            journal=journal,
            sdk_version=sdk_version,
            orphan_grace_s=orphan_grace_s,
            error_text=error_text,
            recover=recover,
            authorize=authorize,
            on_conflict=on_conflict,
            retention=retention,
            origins=origins,
            abort_stops=abort_stops,
            nats_mirror=nats_mirror,
            nats_watch=nats_watch,
            degraded=degraded,
            limits=limits,
            metrics=metrics,
        )
        app.asgi_app = self._streams  # type: ignore[method-assign, assignment]
        self._authorize = authorize
        self._limits = limits
        chat = f"{prefix}/<chat_id>"
        app.add_url_rule(chat, "penstock_chat", self._chat, methods=["GET"])
        app.add_url_rule(f"{chat}/stop", "penstock_stop", self._stop, methods=["POST"])
        app.add_url_rule(
            f"{chat}/approvals/<approval_id>", "penstock_approve", self._approve, methods=["POST"]
        )
        for path, name in (("", "penstock_turn"), ("/recover", "penstock_recover")):
            app.add_url_rule(f"{chat}/turns/<turn_id>{path}", name, self._turn, methods=["GET"])
        if probes:
            app.add_url_rule("/health/live", "penstock_live", self._live, methods=["GET"])
            app.add_url_rule("/health/ready", "penstock_ready", self._ready, methods=["GET"])

    @property
    def hub(self) -> Hub | None:
        """The hub, while the app is being served."""
        return self._streams.hub

    async def _chat(self, chat_id: str) -> Response:
        async def answer() -> Response:
            await self._check(chat_id, "read")
            hub = self._streams.open_hub()
            record = await hub.chat(chat_id)
            if record is None:
                raise HttpError(404, NO_CHAT)
            turn = None if record.turn is None else await hub.turn(record.turn.turn_id)
            return _json(chat_state(record, turn))

        return await _in_sentences(answer)

    async def _turn(self, chat_id: str, turn_id: str) -> Response:
        async def answer() -> Response:
            await self._check(chat_id, "read")
            return _json(await whole_turn(self._streams.open_hub(), chat_id, turn_id))

        return await _in_sentences(answer)

    async def _stop(self, chat_id: str) -> Response:
        async def answer() -> Response:
            who = await self._check(chat_id, "stop")
            body = await self._body() if await request.get_data(True, False, False) else {}
            return _json(await stop(self._streams.open_hub(), chat_id, who, body, self._limits.wire))

        return await _in_sentences(answer)

    async def _approve(self, chat_id: str, approval_id: str) -> Response:
        async def answer() -> Response:
            who = await self._check(chat_id, "approve")
            body = await self._body()
            hub = self._streams.open_hub()
            return _json(await approve(hub, chat_id, approval_id, who, body, self._limits.wire))

        return await _in_sentences(answer)

    async def _body(self) -> dict[str, Any]:
        """Decode the request's body; what is JSON and no object counts as an empty one."""
        wire = self._limits.wire
        body = decode_json(
            await request.get_data(True, False, False), limits=wire, max_bytes=wire.chunk_bytes
        )
        return body if isinstance(body, dict) else {}

    async def _check(self, chat_id: str, action: Action) -> str:
        check_chat_id(chat_id)
        return await authorized(self._authorize, Request.of(cast("Scope", request.scope)), chat_id, action)

    async def _live(self) -> Response:
        return _text(200, "live")

    async def _ready(self) -> Response:
        if self.hub is None or self.hub.closing:
            return _text(503, "The server is starting or shutting down.")
        if self.hub.journal_away:
            return _text(503, "The journal is not available.")
        return _text(200, "ready")


async def _in_sentences(answer: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await answer()
    except HttpError as exc:
        return _text(exc.status, str(exc), *exc.headers)
    except RemoteProtocolError as exc:
        return _text(exc.status, str(exc))
    except StoreUnavailableError as exc:
        logger.error("a request could not be answered: %s", exc)
        return _text(503, "The journal is not available.", (b"retry-after", b"5"))


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


def _text(status: int, sentence: str, *headers: tuple[bytes, bytes]) -> Response:
    return Response(
        sentence,
        status=status,
        content_type="text/plain; charset=utf-8",
        headers={"cache-control": "no-store", **{name.decode(): value.decode() for name, value in headers}},
    )


def _json(value: object) -> Response:
    return Response(
        encode_json(value), content_type="application/json", headers={"cache-control": "no-store"}
    )
