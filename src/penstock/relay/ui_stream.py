"""Passes on the AI SDK's own UI message stream: penstock in front of a chat backend that is there already. Sans-I/O.

The backend gets the client's request: its body as it came, and of its headers those that are allowed. What it answers is
checked, chunk by chunk, and passed on as it is, with these exceptions:

| what the backend sends | what becomes of it |
|---|---|
| `start`, `finish` | the turn has its own, once; their metadata and the finish reason are kept |
| the id of the message | is the turn's. The request says it, as `x-penstock-turn`, to a backend that stores messages |
| `error`, `abort` | end the turn as failed, with that text, and as stopped |
| fields that the client's schema does not name | are left out, as the client ignores them |
| what a continued turn has already: a denial or an approval that the client's request said | is left out |
| a tool call's `dynamic` that changes from chunk to chunk | is as in the call's first chunk |
| steps that begin within a step, of streams merged at the same time | are one: the first's begin to the last's end |
| `tool-output-error` after `tool-input-error` of the same call | is left out: it says the same again |

A kind of chunk that is not known, because a later version of the AI SDK made it, is an error: an answer without it would
look whole. What is legal where is the business of the turn's grammar.

`[DONE]` is the end marker; a stream that ends after `finish` or `abort` is whole without it, for some backends do not
write it. What comes between `finish` and the end is part of the answer: data, often.

Source: `toUIMessageStream` and `createUIMessageStream` of the npm package `ai` 5, 6 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import httpx2
import msgspec
from msgspec import UNSET

from penstock.errors import (
    LimitExceededError,
    RemoteProtocolError,
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnreadableError,
)
from penstock.limits import WIRE, WireLimits
from penstock.relay.part_writer import DELTA_CHARACTERS
from penstock.turns.turn import Turn
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Error,
    Finish,
    FinishStep,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolApprovalResponse,
    ToolInputAvailable,
    ToolInputError,
    ToolInputStart,
    ToolOutputAvailable,
    ToolOutputDenied,
    ToolOutputError,
)
from penstock.wire.codec import convert, decode_chunk, decode_json, encode_json
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent

FORWARDED: Final = ("accept-language", "user-agent", "x-request-id", "traceparent", "tracestate")
"""The client's headers that go along by themselves: nothing that says who it is."""

_NEVER_FORWARDED = frozenset(
    {
        # Of one connection.
        "connection",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # Of this body, and of what may come back.
        "accept",
        "accept-encoding",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "range",
        # Ours.
        "last-event-id",
        "x-penstock-turn",
    }
)
_NEVER_FORWARDED_PREFIXES = ("proxy-", "sec-websocket-")

DONE: Final = "[DONE]"


class UiStreamProtocol:
    """How to ask a backend of the AI SDK.

    Args:
        forward_headers: the client's headers that go along beside `FORWARDED`, such as `cookie` and `authorization`.
            With `authorization` among them, the upstream's API key is not sent: who is asked for is the user.
        limits: how large a chunk may be.

    Raises:
        ValueError: if a header belongs to the connection or to the body, and so can't be passed on.
    """

    name = "ui-stream"

    def __init__(self, *, forward_headers: Sequence[str] = (), limits: WireLimits = WIRE) -> None:
        self._forwarded = frozenset({*FORWARDED, *(name.lower() for name in forward_headers)})
        self._limits = limits
        for name in self._forwarded:
            if name in _NEVER_FORWARDED or name.startswith(_NEVER_FORWARDED_PREFIXES):
                raise ValueError(f"the header {name} can't be passed on to the upstream")

    def url(self, base_url: httpx2.URL) -> httpx2.URL:
        """Return the URL as it is: a backend's route has any path."""
        return base_url

    def headers(self, turn: Turn, api_key: str) -> Mapping[str, str]:
        """Return the client's headers that are allowed, the turn's id, and the API key."""
        headers = {"x-penstock-turn": turn.id}
        if api_key and "authorization" not in self._forwarded:
            headers["authorization"] = f"Bearer {api_key}"
        if turn.request is not None:
            headers.update(
                (name, value) for name, value in turn.request.headers.items() if name in self._forwarded
            )
        return headers

    def body(self, turn: Turn) -> bytes:
        """Return the client's own request; of a turn that a program began, what a client would have sent."""
        if turn.request is not None:
            return turn.request.body
        return encode_json(
            {**turn.body, "id": turn.chat_id, "messages": list(turn.messages), "trigger": "submit-message"}
        )

    def translator(self, turn: Turn) -> UiStreamTranslator:
        """Return a translator for one answer, which knows what a continued turn has already."""
        return UiStreamTranslator(turn.message, limits=self._limits)

    def refusal(self, kind: str, body: str) -> str | None:
        """Return a body of text or JSON, as the AI SDK's own client shows it; None for a page, or for none at all."""
        shown = kind.startswith(("text/plain", "application/json"))
        return body.strip() or None if shown else None


class _WholeAnswer(msgspec.Struct):
    text: str


class UiStreamTranslator:
    """One answer: checks each chunk, and levels what different versions of the AI SDK do differently.

    Args:
        message: the assistant's message so far. Of a new turn it has no parts.
        limits: how large a chunk may be.
    """

    def __init__(self, message: UIMessage, *, limits: WireLimits = WIRE) -> None:
        self._limits = limits
        self.ended = False
        """Whether `[DONE]` came. What is fed then is ignored."""
        self._finished = False
        self._steps = 0
        """How many are open, one within the other."""
        self._dynamic: dict[str, bool] = {}
        """By tool call, what its first chunk said."""
        self._bad_inputs: set[str] = set()
        self._denied: set[str] = set()
        """Tool calls."""
        self._decided: set[str] = set()
        """Approvals."""
        for part in message.parts:
            self._note_part(part)

    @property
    def whole(self) -> bool:
        """Whether the answer is all there. Only the end says so: data may follow `finish`."""
        return self.ended

    def feed(self, event: ServerSentEvent) -> Sequence[AnyChunk]:
        """Check one event's chunk.

        Raises:
            UpstreamUnreadableError: if it is none that we know.
            UpstreamTooLongError: if it is longer or deeper than a chunk may be.
        """
        if self.ended:
            return ()
        if event.data.strip() == DONE:
            self.ended = True
            return ()
        try:
            chunk = decode_chunk(event.data.encode(), limits=self._limits)
        except LimitExceededError as exc:
            raise UpstreamTooLongError(f"a chunk of the upstream's can't be passed on: {exc}") from exc
        except RemoteProtocolError as exc:
            raise UpstreamUnreadableError(f"a chunk of the upstream's can't be passed on: {exc}") from exc
        if isinstance(chunk, Finish | Abort | Error):
            self._finished = True
        levelled = self._level(chunk)
        return () if levelled is None else (levelled,)

    def feed_answer(self, body: str) -> Sequence[AnyChunk]:
        """Translate the answer of a backend that does not stream: `{"text": "…"}`, as `generateText` has it.

        Raises:
            UpstreamUnreadableError: if it is anything else.
        """
        try:
            answer = convert(decode_json(body.encode(), limits=self._limits), _WholeAnswer, "The answer")
        except RemoteProtocolError as exc:
            raise UpstreamUnreadableError(f"the upstream's answer can't be read: {exc}") from exc
        self.ended = True
        return [StartStep(), *_text(answer.text), FinishStep()]

    def finish(self) -> Sequence[AnyChunk]:
        """Say that the stream ended. Nothing is left to be said then.

        Raises:
            UpstreamTruncatedError: if there was no end marker, nor a chunk that ends a message.
        """
        if not self.ended and not self._finished:
            raise UpstreamTruncatedError("the stream ended without finish and without an end marker")
        return ()

    def _note_part(self, part: Mapping[str, Any]) -> None:
        """Take in what is known of a tool call from before."""
        call_id = part.get("toolCallId")
        if not isinstance(call_id, str):
            return
        self._dynamic[call_id] = part["type"] == "dynamic-tool"
        if part.get("state") == "output-denied":
            self._denied.add(call_id)
        approval = part.get("approval")
        if isinstance(approval, Mapping) and "approved" in approval:
            self._decided.add(approval["id"])

    def _level(self, chunk: AnyChunk) -> AnyChunk | None:
        """Return the chunk as the grammar wants it; None for one that says nothing new."""
        match chunk:
            case StartStep():
                self._steps += 1
                return chunk if self._steps == 1 else None
            case FinishStep():
                self._steps = max(0, self._steps - 1)
                return None if self._steps else chunk
            case ToolInputStart() | ToolInputAvailable() | ToolInputError():
                dynamic = self._dynamic.setdefault(chunk.tool_call_id, chunk.dynamic is True)
                if isinstance(chunk, ToolInputError):
                    self._bad_inputs.add(chunk.tool_call_id)
            case ToolOutputError(tool_call_id=call_id) if call_id in self._bad_inputs:
                return None
            case ToolOutputAvailable() | ToolOutputError():
                dynamic = self._dynamic.get(chunk.tool_call_id, chunk.dynamic is True)
            case ToolOutputDenied(tool_call_id=call_id):
                return None if call_id in self._denied else chunk
            case ToolApprovalResponse(approval_id=approval_id):
                return None if approval_id in self._decided else chunk
            case _:
                return chunk
        if (chunk.dynamic is True) is dynamic:
            return chunk
        return msgspec.structs.replace(chunk, dynamic=dynamic or UNSET)


def _text(text: str) -> Iterable[AnyChunk]:
    yield TextStart(id="text")
    for first in range(0, len(text), DELTA_CHARACTERS):
        yield TextDelta(id="text", delta=text[first : first + DELTA_CHARACTERS])
    yield TextEnd(id="text")
