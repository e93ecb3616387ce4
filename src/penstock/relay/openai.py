"""Translates the stream of an OpenAI-compatible `/chat/completions` into chunks. Sans-I/O.

Knows the dialects of the servers that say they are compatible, and is liberal where they differ: what is not
understood is ignored, unless the answer would be wrong without it. The whole answer becomes one step, and ends with
the chunk `Finish`, which says why the model stopped and what it cost; the model's name is metadata at its beginning.

| what | where it is found |
|---|---|
| text | `content`, a string or a list of parts (Mistral); `refusal` |
| reasoning | `reasoning_content` (DeepSeek, vLLM, llama.cpp), `reasoning` (OpenRouter, Ollama, Groq), `thinking` parts (Mistral) |
| tool calls | `tool_calls`, in fragments by `index`; without an index by id, or all of a call at once; `function_call` |
| usage | any event, also the one without choices that comes last |
| failure | `error` in any event, as an object or a string; `"object": "error"` (vLLM) |
| the end | a finish reason, or `[DONE]`; without either the answer was cut |

Source: the API reference of OpenAI, "Chat Completions: streaming", and those of the servers named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2
import msgspec
from msgspec import UNSET

from penstock.errors import (
    RemoteProtocolError,
    UpstreamError,
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnreadableError,
)
from penstock.limits import WIRE, WireLimits
from penstock.relay.api_key import bearer
from penstock.relay.event_object import read_object
from penstock.relay.model_calls import call_ids
from penstock.relay.openai_messages import PASSED_BACK, openai_messages, openai_tools
from penstock.relay.part_writer import CALLS, PartKind, PartWriter, make_call_id, usage_metadata
from penstock.relay.sentences import FAILED, reported_failure
from penstock.relay.tool_schema import ToolSchema, add_tools
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk, FinishReason, ReasoningStart, TextStart
from penstock.wire.codec import convert, encode_json
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent

DONE = "[DONE]"
"""The data of the event that ends a stream."""

_HEARTBEATS = frozenset(("heartbeat", "keepalive", "ping"))
"""Names that gateways give to events of their own. Those of the API have none."""

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _Fragment(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[_Fragment] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    """In place of `delta` where the answer came whole."""
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None


class _Call(NamedTuple):
    """A tool call, as its fragments name it."""

    number: int
    place: int | None
    """Its `index`."""
    id: str
    """As the upstream has it; may be empty."""


class OpenAIProtocol:
    """Chat completions. See `Protocol`.

    Args:
        model: the model's name at the upstream.
        extra_body: more of the request: `temperature`, `max_tokens`, `tools`, …
        limits: how large and deep the JSON of an event may be.
    """

    name = "openai"

    def __init__(
        self, model: str, extra_body: Mapping[str, Any] | None = None, *, limits: WireLimits = WIRE
    ) -> None:
        self._model = model
        self._extra_body = extra_body or {}
        self._limits = limits

    def url(self, base_url: httpx2.URL) -> httpx2.URL:
        """Return the URL of `/chat/completions`; of a host alone, that of `/v1/chat/completions`."""
        path = base_url.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path = (path or "/v1") + "/chat/completions"
        return base_url.copy_with(path=path)

    def headers(self, turn: Turn, api_key: str) -> dict[str, str]:
        """Return the key as a bearer token."""
        return bearer(api_key)

    def body(self, turn: Turn) -> bytes:
        """Return the request about the turn's conversation."""
        return self.model_body(turn.messages)

    def model_body(self, messages: Sequence[UIMessage], tools: Sequence[ToolSchema] = ()) -> bytes:
        """Return the request's JSON, which asks for a stream, and for usage unless the caller's own fields don't."""
        body = {
            "stream_options": {"include_usage": True},
            **self._extra_body,
            "model": self._model,
            "messages": openai_messages(messages),
            "stream": True,
        }
        return encode_json(add_tools(body, openai_tools(tools)))

    def translator(self, turn: Turn) -> CompletionTranslator:
        """Return a translator whose tool calls have other ids than those that the turn has already."""
        return CompletionTranslator(limits=self._limits, taken=call_ids(turn.message.parts))


class CompletionTranslator:
    """One answer. It is whole when the model has said why it stopped; usage may still follow, and the end marker.

    Args:
        limits: how large and deep the JSON of an event may be.
        taken: ids of tool calls that the turn has already.
        make_id: makes the ids of tool calls that came without one.
    """

    def __init__(
        self,
        *,
        limits: WireLimits = WIRE,
        taken: Collection[str] = (),
        make_id: Callable[[], str] = make_call_id,
    ) -> None:
        self._limits = limits
        self._writer = PartWriter(limits=limits, taken=taken, make_id=make_id)
        self._model = ""
        self.ended = False
        """Whether `finish` was called, by the end marker or by the caller. What is fed then is ignored."""
        self.finish_reason: FinishReason | None = None
        """Why the model stopped, once it said so."""
        self._part: tuple[PartKind | None, int] = (None, 0)
        """The kind and the number of the part that is open."""
        self._calls: list[_Call] = []
        self._usage: dict[str, int] = {}

    @property
    def whole(self) -> bool:
        """See `Translator.whole`."""
        return self.ended or self.finish_reason is not None

    def feed(self, event: ServerSentEvent) -> list[AnyChunk]:
        """Translate one event.

        Raises:
            UpstreamError: if the event reports a failure, or is not what the API says it is.
        """
        if self.ended or event.event in _HEARTBEATS:
            return []
        if event.data.strip() == DONE:
            self._end()
            return self._writer.take()
        return self.feed_answer(event.data)

    def feed_answer(self, body: str) -> list[AnyChunk]:
        """Translate a whole answer, which is made like an event with `message` in place of `delta`. Raises the same."""
        completion = self._read(body)
        named = completion.model if not self._model else None
        self._model = self._model or completion.model or ""
        self._writer.begin({"model": named[:256]} if named else None)
        self._usage = _usage(completion.usage) or self._usage
        for choice in completion.choices or ():
            if not choice.index:  # 0, or left out
                self._translate(choice.delta or choice.message or _Delta())
                if choice.finish_reason:
                    self._note_finish(choice.finish_reason)
        return self._writer.take()

    def finish(self) -> list[AnyChunk]:
        """Translate the end of the stream: close what is open. Idempotent.

        Raises:
            UpstreamTruncatedError: if neither a finish reason nor the end marker came before.
        """
        if not self.ended:
            if self.finish_reason is None:
                raise UpstreamTruncatedError(
                    "the stream ended without a finish reason and without an end marker"
                )
            self._end()
        return self._writer.take()

    def _read(self, data: str) -> _Completion:
        value = read_object(data, self._limits)
        if value.get("error") or value.get("object") == "error":
            raise reported_failure(value.get("error") or value)
        try:
            return convert(value, _Completion, "the upstream's event")
        except RemoteProtocolError as exc:
            raise UpstreamUnreadableError(f"an event can't be read: {exc}") from exc

    def _note_finish(self, reason: str) -> None:
        if reason == "error":
            raise UpstreamError("the finish reason is error", error_text=FAILED)
        self.finish_reason = _FINISH_REASONS.get(reason, "other")

    def _translate(self, delta: _Delta) -> None:
        # Gateways that know both names send the same words under both.
        if reasoning := delta.reasoning_content or delta.reasoning:
            self._write(ReasoningStart, reasoning, PASSED_BACK if delta.reasoning_content else UNSET)
        self._write_content(delta.content)
        self._write(TextStart, delta.refusal)
        for fragment in delta.tool_calls or ():
            self._write_call(fragment)
        if delta.function_call is not None:
            self._write_call(_Fragment(index=0, function=delta.function_call))

    def _write_content(self, content: Any) -> None:
        if not isinstance(content, list):
            self._write(TextStart, content)
            return
        for part in content:
            match part:
                case {"type": "text", "text": text}:
                    self._write(TextStart, text)
                case {"type": "thinking", "thinking": list(thoughts)}:
                    for thought in thoughts:
                        if isinstance(thought, dict):
                            self._write(ReasoningStart, thought.get("text"))

    def _write(self, kind: PartKind, text: Any, metadata: Any = UNSET) -> None:
        if not isinstance(text, str) or not text:
            return
        if self._part[0] is not kind:
            self._close()
            self._part = (kind, self._part[1] + 1)
        self._writer.write(kind, self._part[1], text, metadata)

    def _close(self) -> None:
        _, number = self._part
        self._writer.close(number)
        self._part = (None, number)

    def _write_call(self, fragment: _Fragment) -> None:
        function = fragment.function or _Function()
        call = self._find_call(fragment, named=bool(function.name))
        if function.name:
            self._close()
            self._writer.begin_call(call.number, call.id, function.name)
        text = function.arguments or ""
        self._writer.write_input(call.number, text if isinstance(text, str) else encode_json(text).decode())

    def _find_call(self, fragment: _Fragment, *, named: bool) -> _Call:
        """Find the call that a fragment belongs to, or begin another."""
        key = fragment.id or ""
        for call in reversed(self._calls):
            if fragment.index is None:
                same = call.id == key if key else not named
            elif call.place == fragment.index:
                # Some servers number all their calls 0, so another id is another call; others make up an id for
                # each fragment, so it is one only together with a name.
                same = not (named and key and call.id and call.id != key)
            else:
                continue
            if same:
                return call
            if fragment.index is not None:
                break
        if len(self._calls) == CALLS:
            raise UpstreamTooLongError(f"the answer has more than {CALLS} tool calls")
        call = _Call(len(self._calls), fragment.index, key)
        self._calls.append(call)
        return call

    def _end(self) -> None:
        self.ended = True
        self._writer.finish(self.finish_reason or "other", self._usage)


def _usage(usage: Any) -> dict[str, int]:
    if not isinstance(usage, dict):
        return {}
    return usage_metadata(*map(usage.get, ("prompt_tokens", "completion_tokens", "total_tokens")))
