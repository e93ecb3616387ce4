"""Asks a simple chat service, such as a private gateway, and translates its answer into chunks. Sans-I/O.

The request, `POST {base}/chat`:

    {"chat_id": "…", "message": "…", "message_id": "…", "messages": [{"role": "user", "content": "…"}, …], "stream": true}

The answer is an event stream. Unnamed events are frames, JSON objects with a `kind` (or `type`); of a kind that is not
known they are ignored, and so are named events.

| frame | what becomes of it |
|---|---|
| `{"kind": "conversation", "id": "…"}` | the identity: metadata `{"upstream": {"protocol": "chat", "id"}}`, at once |
| `{"kind": "meta", …}` | its other fields are the message's metadata |
| `{"kind": "chunk", "text": "…"}` | text; it may be called `content` or `delta` |
| `{"kind": "done", "finish_reason"?, "usage"?}` | the end; without it, or `[DONE]`, the answer was cut |
| `{"kind": "error", "message"?, "code"?}` | the turn fails; the code may choose the sentence, the message is for the log |
| `event: heartbeat` | a proof of life |

A service that does not stream answers `{"text": "…", "conversation_id"?: "…"}`, or `{"error": …}`.

Recovery, `GET {base}/chat/conversations/{id}/turns`: `{"turns": [{"role": "user", "text": "…", "message_id"?}, {"role":
"assistant", "text": "…", "done"?}, …]}`, oldest first; the list may be bare, and `text` be called `content`. Ours is the
newest user turn with the request's `message_id` or, where the service keeps none, with the user's text. The answer is what
the assistant says next. While there is none, or its `done` is false, it is asked for again.

A conversation's id is never taken from what the client sends back: whoever made one up would read another's. A service
that keeps the history itself goes by `chat_id`, which the app's `authorize` has allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx2

from penstock.errors import RemoteProtocolError, UpstreamTruncatedError, UpstreamUnreadableError
from penstock.limits import WIRE, WireLimits
from penstock.relay.api_key import bearer
from penstock.relay.event_object import read_object
from penstock.relay.part_writer import PartWriter, usage_metadata
from penstock.relay.recovery import Missing, Recovered, RecoveryRequest
from penstock.relay.rest import Written, rest_of
from penstock.relay.sentences import reported_failure
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk, FinishReason, TextStart
from penstock.wire.codec import decode_json, encode_json
from penstock.wire.sse_parser import ServerSentEvent

NAME: Final = "chat"

_DONE = "[DONE]"
_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.:~-]{1,256}")
"""An id that may stand in a URL's path."""
_ENDPOINT = re.compile(r"((?:.*/)?chat)(?:/[^/]+)?")

_FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "content_filter": "content-filter",
    "content-filter": "content-filter",
}
_OWN = frozenset(("kind", "type", "upstream", "incomplete"))
"""Fields of a `meta` frame that are not the message's metadata: its kind, and what we say there ourselves."""


class ChatProtocol:
    """How to ask a chat service.

    Args:
        extra_body: more of the request.
        limits: how large and deep a frame's JSON may be.
    """

    name = NAME

    def __init__(self, extra_body: Mapping[str, Any] | None = None, *, limits: WireLimits = WIRE) -> None:
        self._extra_body = dict(extra_body or {})
        self._limits = limits

    def url(self, base_url: httpx2.URL) -> httpx2.URL:
        """Return the URL of `/chat` for a service's base, or for itself; `/chat/stream` or the like is one, too."""
        path = base_url.path.rstrip("/")
        return base_url.copy_with(path=path if _ENDPOINT.fullmatch(path) else f"{path}/chat")

    def headers(self, turn: Turn, api_key: str) -> Mapping[str, str]:
        """Return the key as a bearer token."""
        return bearer(api_key)

    def body(self, turn: Turn) -> bytes:
        """Return the request: the user's text, and the whole conversation."""
        asked = next((message for message in reversed(turn.messages) if message.role == "user"), None)
        return encode_json(
            {
                **self._extra_body,
                "chat_id": turn.chat_id,
                "message": turn.prompt,
                "message_id": "" if asked is None else asked.id,
                "messages": [
                    {"role": message.role, "content": message.text}
                    for message in turn.messages
                    if message.text
                ],
                "stream": True,
            }
        )

    def translator(self, turn: Turn) -> ChatTranslator:
        """Return a translator for one answer."""
        return ChatTranslator(limits=self._limits)

    def recoverer(self, base_url: httpx2.URL, api_key: str) -> ChatRecoverer:
        """Return who asks for the rest of an answer that broke off."""
        return ChatRecoverer(self.url(base_url), bearer(api_key), limits=self._limits)


class ChatTranslator:
    """One answer: a single text."""

    def __init__(self, *, limits: WireLimits = WIRE) -> None:
        self._limits = limits
        self._writer = PartWriter(limits=limits)
        self._known = False
        """Whether the conversation's id is written."""
        self.ended = False

    @property
    def whole(self) -> bool:
        """The end marker says that the answer is whole, and nothing else does."""
        return self.ended

    def feed(self, event: ServerSentEvent) -> Sequence[AnyChunk]:
        """Translate one event.

        Raises:
            UpstreamError: if the frame reports a failure, or is no JSON object.
        """
        if self.ended or event.event != "message":
            return []
        if event.data.strip() == _DONE:
            self._end({})
        else:
            frame = read_object(event.data, self._limits)
            self._translate(frame.get("kind", frame.get("type")), frame)
        return self._writer.take()

    def feed_answer(self, body: str) -> Sequence[AnyChunk]:
        """Translate an answer that came as one JSON value.

        Raises:
            UpstreamError: if it reports a failure, or has no text.
        """
        answer = read_object(body, self._limits)
        if answer.get("error"):
            raise reported_failure(answer["error"])
        if (text := _text(answer)) is None:
            raise UpstreamUnreadableError("the answer has no text")
        self._note_conversation(answer.get("conversation_id"))
        self._writer.write(TextStart, "text", text)
        self._end(answer)
        return self._writer.take()

    def finish(self) -> Sequence[AnyChunk]:
        """Translate the end of the stream. Idempotent.

        Raises:
            UpstreamTruncatedError: if the end marker did not come.
        """
        if not self.ended:
            raise UpstreamTruncatedError("the stream ended without done")
        return []

    def _translate(self, kind: Any, frame: dict[str, Any]) -> None:
        match kind:
            case "chunk":
                self._writer.write(TextStart, "text", _text(frame))
            case "conversation":
                self._note_conversation(frame.get("id", frame.get("conversation_id")))
            case "meta":
                self._writer.begin({name: value for name, value in frame.items() if name not in _OWN})
            case "done":
                self._end(frame)
            case "error":
                raise reported_failure(frame)

    def _note_conversation(self, conversation_id: Any) -> None:
        if not self._known and isinstance(conversation_id, str) and _ID.fullmatch(conversation_id):
            self._known = True
            self._writer.begin({"upstream": {"protocol": NAME, "id": conversation_id}})

    def _end(self, frame: dict[str, Any]) -> None:
        self.ended = True
        usage = frame.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        self._writer.finish(
            _FINISH_REASONS.get(str(frame.get("finish_reason")), "stop"),
            usage_metadata(
                usage.get("input_tokens", usage.get("prompt_tokens")),
                usage.get("output_tokens", usage.get("completion_tokens")),
                usage.get("total_tokens"),
            ),
        )


class ChatRecoverer:
    """Asks for a conversation's turns. `url` is the endpoint that the request was posted to."""

    def __init__(self, url: httpx2.URL, headers: Mapping[str, str], *, limits: WireLimits = WIRE) -> None:
        self._url = url
        self._headers = headers
        self._limits = limits

    def request(self, turn: Turn) -> RecoveryRequest | None:
        """Return the request for the conversation's turns; None if its id isn't known."""
        match turn.message.metadata:
            case {"upstream": {"protocol": "chat", "id": str(found)}} if _ID.fullmatch(found):
                endpoint = _ENDPOINT.fullmatch(self._url.path)
                base = self._url.path if endpoint is None else endpoint[1]
                url = self._url.copy_with(path=f"{base}/conversations/{found}/turns")
                return RecoveryRequest("GET", url, self._headers)
        return None

    def read(self, body: bytes, turn: Turn) -> Recovered:
        """Find our answer among the turns, and return what is missing of it.

        Raises:
            UpstreamTruncatedError: if the answer does not begin with what was written.
            UpstreamError: if it failed, or the turns can't be read.
        """
        answer = self._answer(_turns(body, self._limits), turn)
        if isinstance(answer, Missing):
            return answer
        if answer.get("error"):
            raise reported_failure(answer["error"])
        text = _text(answer)
        if text is None or answer.get("done") is False:
            return Missing.NOT_YET
        writer = PartWriter(limits=self._limits)
        writer.write(TextStart, "text", text)
        writer.finish("stop", {})
        return rest_of(writer.take(), Written.of(turn))

    def _answer(self, turns: Sequence[dict[str, Any]], turn: Turn) -> dict[str, Any] | Missing:
        """Return what the assistant said to the user's turn, or why that isn't there."""
        users = [message for message in turn.messages if message.role == "user"]
        if not users:
            return Missing.GONE
        # From the newest on. Where the user says the same twice and nothing of the answer was written, only an id
        # could tell that it is not the answer to the first time.
        by_text = (
            bool(turn.message.text) or [_folded(user.text) for user in users].count(_folded(turn.prompt)) == 1
        )
        for index in reversed(range(len(turns))):
            if turns[index].get("role") != "user":
                continue
            message_id = turns[index].get("message_id")
            if message_id == users[-1].id or (
                message_id is None and by_text and _folded(_text(turns[index]) or "") == _folded(turn.prompt)
            ):
                following = turns[index + 1 : index + 2]
                if following and following[0].get("role") == "assistant":
                    return following[0]
                break
        return Missing.NOT_YET


def _text(value: dict[str, Any]) -> str | None:
    return next(
        (value[name] for name in ("text", "content", "delta") if isinstance(value.get(name), str)), None
    )


def _folded(text: str) -> str:
    """Return a text without what a service may change of it when it stores it."""
    return " ".join(text.split())


def _turns(body: bytes, limits: WireLimits) -> list[dict[str, Any]]:
    try:
        value = decode_json(body, limits=limits, max_bytes=len(body))
    except RemoteProtocolError as exc:
        raise UpstreamUnreadableError(f"the conversation can't be read: {exc}") from exc
    if isinstance(value, dict):
        value = value.get("turns")
    if not isinstance(value, list):
        raise UpstreamUnreadableError("the conversation has no list of turns")
    return [turn for turn in value if isinstance(turn, dict)]
