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

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import httpx2
import msgspec
from msgspec import UNSET

from penstock.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    UpstreamError,
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnreadableError,
)
from penstock.limits import WIRE, WireLimits
from penstock.relay.openai_messages import PASSED_BACK, openai_messages, openai_tools
from penstock.relay.part_writer import CALLS, DELTA_CHARACTERS, PartKind, usage_metadata
from penstock.relay.sentences import BAD_INPUT, FAILED, reported_failure
from penstock.relay.tool_schema import ToolSchema, add_tools
from penstock.turns.turn import Turn
from penstock.wire.chunks import (
    AnyChunk,
    Finish,
    FinishReason,
    FinishStep,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolInputAvailable,
    ToolInputDelta,
    ToolInputError,
    ToolInputStart,
)
from penstock.wire.codec import convert, decode_json, encode, encode_json
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


class _Call:
    """A tool call whose input is still coming."""

    def __init__(self, index: int | None, key: str) -> None:
        self.index = index
        self.key = key
        """The id that the upstream gave it; may be empty."""
        self.id = ""
        """The id that it has in the turn; empty until its name is known and it has begun there."""
        self.name = ""
        self.input: list[str] = []


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
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

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
        taken = {part["toolCallId"] for part in turn.message.parts if "toolCallId" in part}
        return CompletionTranslator(limits=self._limits, taken=taken)


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
        make_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}",
    ) -> None:
        self._limits = limits
        self._make_id = make_id
        self._taken = taken
        self._begun = False
        self._model = ""
        self.ended = False
        """Whether `finish` was called, by the end marker or by the caller. What is fed then is ignored."""
        self.finish_reason: FinishReason | None = None
        """Why the model stopped, once it said so."""
        self._open: PartKind | None = None
        self._parts = 0
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
            return self._end()
        return self.feed_answer(event.data)

    def feed_answer(self, body: str) -> list[AnyChunk]:
        """Translate a whole answer, which is made like an event with `message` in place of `delta`. Raises the same."""
        completion = self._read(body)
        chunks: list[AnyChunk] = []
        if not self._begun:
            self._begun = True
            chunks.append(StartStep())
        if completion.model and not self._model:
            self._model = completion.model
            chunks.append(MessageMetadata(message_metadata={"model": self._model}))
        self._usage = _usage(completion.usage) or self._usage
        for choice in completion.choices or ():
            if not choice.index:  # 0, or left out
                chunks.extend(self._translate(choice.delta or choice.message or _Delta()))
                if choice.finish_reason:
                    self._note_finish(choice.finish_reason)
        return chunks

    def finish(self) -> list[AnyChunk]:
        """Translate the end of the stream: close what is open. Idempotent.

        Raises:
            UpstreamTruncatedError: if neither a finish reason nor the end marker came before.
        """
        if self.ended:
            return []
        if self.finish_reason is None:
            raise UpstreamTruncatedError("the stream ended without a finish reason and without an end marker")
        return self._end()

    def _read(self, data: str) -> _Completion:
        try:
            value = decode_json(data.encode(), limits=self._limits, max_bytes=self._limits.sse_event_bytes)
            if not isinstance(value, dict):
                raise UpstreamUnreadableError("an event is not an object")
            if value.get("error") or value.get("object") == "error":
                raise reported_failure(value.get("error") or value)
            return convert(value, _Completion, "the upstream's event")
        except (RemoteProtocolError, UnicodeEncodeError) as exc:
            raise UpstreamUnreadableError(f"an event can't be read: {exc}") from exc

    def _note_finish(self, reason: str) -> None:
        if reason == "error":
            raise UpstreamError("the finish reason is error", error_text=FAILED)
        self.finish_reason = _FINISH_REASONS.get(reason, "other")

    def _translate(self, delta: _Delta) -> Iterator[AnyChunk]:
        # Gateways that know both names send the same words under both.
        if reasoning := delta.reasoning_content or delta.reasoning:
            passed_back = PASSED_BACK if delta.reasoning_content else UNSET
            yield from self._write(ReasoningStart, reasoning, passed_back)
        yield from self._write_content(delta.content)
        if delta.refusal:
            yield from self._write(TextStart, delta.refusal)
        for fragment in delta.tool_calls or ():
            yield from self._write_call(fragment)
        if delta.function_call is not None:
            yield from self._write_call(_Fragment(index=0, function=delta.function_call))

    def _write_content(self, content: Any) -> Iterator[AnyChunk]:
        if not isinstance(content, list):
            yield from self._write(TextStart, content)
            return
        for part in content:
            match part:
                case {"type": "text", "text": text}:
                    yield from self._write(TextStart, text)
                case {"type": "thinking", "thinking": list(thoughts)}:
                    for thought in thoughts:
                        if isinstance(thought, dict):
                            yield from self._write(ReasoningStart, thought.get("text"))

    def _write(self, kind: PartKind, text: Any, metadata: Any = UNSET) -> Iterator[AnyChunk]:
        if not isinstance(text, str) or not text:
            return
        if self._open is not kind:
            yield from self._close()
            self._open = kind
            self._parts += 1
            yield kind(id=self._part_id, provider_metadata=metadata)
        delta = TextDelta if kind is TextStart else ReasoningDelta
        for piece in _cut(text):
            yield delta(id=self._part_id, delta=piece)

    def _close(self) -> Iterator[AnyChunk]:
        if self._open is not None:
            yield (TextEnd if self._open is TextStart else ReasoningEnd)(id=self._part_id)
            self._open = None

    @property
    def _part_id(self) -> str:
        return f"part-{self._parts}"

    def _write_call(self, fragment: _Fragment) -> Iterator[AnyChunk]:
        function = fragment.function or _Function()
        call = self._find_call(fragment, named=bool(function.name))
        text = function.arguments or ""
        if not isinstance(text, str):
            text = encode_json(text).decode()
        call.input.append(text)
        if function.name and not call.id:
            call.name = function.name
            call.id = self._call_id(call.key)
            yield from self._close()
            yield ToolInputStart(tool_call_id=call.id, tool_name=call.name)
            text = "".join(call.input)
        if call.id:
            for delta in _cut(text):
                yield ToolInputDelta(tool_call_id=call.id, input_text_delta=delta)

    def _find_call(self, fragment: _Fragment, *, named: bool) -> _Call:
        """Find the call that a fragment belongs to, or begin another."""
        key = fragment.id or ""
        for call in reversed(self._calls):
            if fragment.index is None:
                same = call.key == key if key else not named
            elif call.index == fragment.index:
                # Some servers number all their calls 0, so another id is another call; others make up an id for
                # each fragment, so it is one only together with a name.
                same = not (named and key and call.key and call.key != key)
            else:
                continue
            if same:
                return call
            if fragment.index is not None:
                break
        if len(self._calls) == CALLS:
            raise UpstreamTooLongError(f"the answer has more than {CALLS} tool calls")
        call = _Call(fragment.index, key)
        self._calls.append(call)
        return call

    def _call_id(self, key: str) -> str:
        """Return the upstream's own id, so that it knows its call again, unless it is missing or taken."""
        if key and key not in self._taken and all(call.id != key for call in self._calls):
            return key
        return self._make_id()

    def _end(self) -> list[AnyChunk]:
        self.ended = True
        chunks: list[AnyChunk] = [] if self._begun else [StartStep()]
        chunks.extend(self._close())
        chunks.extend(self._call_input(call) for call in self._calls if call.id)
        chunks.append(FinishStep())
        finish_reason = self.finish_reason or "other"
        if self._usage:
            chunks.append(Finish(finish_reason=finish_reason, message_metadata={"usage": self._usage}))
        else:
            chunks.append(Finish(finish_reason=finish_reason))
        return chunks

    def _call_input(self, call: _Call) -> AnyChunk:
        text = "".join(call.input)
        try:
            value = decode_json(text.encode(), limits=self._limits) if text.strip() else {}
            chunk = ToolInputAvailable(tool_call_id=call.id, tool_name=call.name, input=value)
            encode(chunk, limits=self._limits)
        except (RemoteProtocolError, LocalProtocolError):
            # Not JSON, or JSON that no client takes. The tool fails, not the turn: the model may try again.
            return ToolInputError(
                tool_call_id=call.id,
                tool_name=call.name,
                input=text[:DELTA_CHARACTERS],
                error_text=BAD_INPUT,
            )
        return chunk


def _cut(text: str) -> Iterator[str]:
    for first in range(0, len(text), DELTA_CHARACTERS):
        yield text[first : first + DELTA_CHARACTERS]


def _usage(usage: Any) -> dict[str, int]:
    if not isinstance(usage, dict):
        return {}
    return usage_metadata(*map(usage.get, ("prompt_tokens", "completion_tokens", "total_tokens")))
