"""Asks Anthropic's `/messages`, and translates its answer into chunks. Sans-I/O.

An answer is a list of content blocks, each begun, sent in deltas, and ended.

| what | where it is found |
|---|---|
| text | `text` blocks |
| reasoning | `thinking` blocks; their signature is kept, and so is `redacted_thinking`, for the next request |
| tool calls | `tool_use`, with input in fragments |
| sources | citations: of web pages and search results by URL, of documents by title; the results of a web search |
| tools that the upstream runs | `data-upstream-tool`, replaced in place |
| usage | counted up in `message_start` and `message_delta`; what was read from or written to the cache was read, too |
| failure | `error`, also in an answer that came whole |
| the end | `message_stop`; after a stop reason nothing but it is missing. Without both the answer was cut |

There is no recovery: an answer can't be asked for again.

Source: the API reference of Anthropic, "Messages", "Streaming messages", "Extended thinking", "Citations", "Errors".
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import httpx2

from penstock.errors import (
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnreadableError,
)
from penstock.limits import RELAY, WIRE, WireLimits
from penstock.relay.anthropic_messages import anthropic_conversation, anthropic_tools
from penstock.relay.event_object import read_object
from penstock.relay.model_calls import call_ids
from penstock.relay.part_writer import BLOCKS, OPAQUE_CHARACTERS, PartWriter, usage_metadata
from penstock.relay.sentences import reported_failure
from penstock.relay.tool_schema import ToolSchema, add_tools
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk, FinishReason, ProviderMetadata, ReasoningStart, TextStart
from penstock.wire.codec import encode_json
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent

VERSION: Final = "2023-06-01"
"""Of the API, as `anthropic-version` says it. Kinds of events that came later are ignored, as it asks."""

_FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool-calls",
    "refusal": "content-filter",
}


class AnthropicProtocol:
    """How to ask Anthropic's `/messages`."""

    name = "anthropic"

    def __init__(
        self, model: str, extra_body: Mapping[str, Any] | None = None, *, limits: WireLimits = WIRE
    ) -> None:
        self._model = model
        self._extra_body = dict(extra_body or {})
        self._limits = limits

    def __repr__(self) -> str:
        return f"<AnthropicProtocol {self._model}>"

    def url(self, base_url: httpx2.URL) -> httpx2.URL:
        """Return the URL of `/messages` for an API's base, or for itself; of a host alone, `/v1/messages`."""
        path = base_url.path.rstrip("/")
        if not path.endswith("/messages"):
            path = (path or "/v1") + "/messages"
        return base_url.copy_with(path=path)

    def headers(self, turn: Turn, api_key: str) -> Mapping[str, str]:
        """Return the API's version, and the key."""
        key = {"x-api-key": api_key} if api_key else {}
        return {"anthropic-version": VERSION, **key}

    def body(self, turn: Turn) -> bytes:
        """Return the request about the turn's conversation."""
        return self.model_body(turn.messages)

    def model_body(self, messages: Sequence[UIMessage], tools: Sequence[ToolSchema] = ()) -> bytes:
        """Return the request. A system prompt of the app's comes before the conversation's."""
        system, said = anthropic_conversation(messages)
        body = {
            "max_tokens": RELAY.max_tokens,
            **self._extra_body,
            "model": self._model,
            "messages": said,
            "stream": True,
        }
        own = body.get("system") or []
        blocks = [{"type": "text", "text": own}] if isinstance(own, str) else list(own)
        if blocks or system:
            body["system"] = blocks + system
        return encode_json(add_tools(body, anthropic_tools(tools)))

    def translator(self, turn: Turn) -> AnthropicTranslator:
        """Return a translator whose tool calls have other ids than those that the turn has already."""
        return AnthropicTranslator(limits=self._limits, taken=call_ids(turn.message.parts))


class AnthropicTranslator:
    """One answer.

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
        make_id: Callable[[], str] = lambda: f"toolu_{secrets.token_hex(12)}",
    ) -> None:
        self._limits = limits
        self._writer = PartWriter(limits=limits, taken=taken, make_id=make_id)
        self._blocks: dict[int, dict[str, Any]] = {}
        """The beginnings of those that are open."""
        self._signatures: dict[int, str] = {}
        self._usage: dict[str, Any] = {}
        self._finish_reason: FinishReason | None = None
        self.ended = False

    @property
    def whole(self) -> bool:
        """Whether the model said why it stopped; it does so when all blocks are there."""
        return self._finish_reason is not None

    def feed(self, event: ServerSentEvent) -> Sequence[AnyChunk]:
        """Translate one event.

        Raises:
            UpstreamError: if the event reports a failure, or is not what the API says it is.
        """
        if self.ended:
            return []
        value = read_object(event.data, self._limits)
        match value.get("type") or event.event:
            case "error":
                raise reported_failure(value.get("error"))
            case "message_start":
                self._begin(value.get("message"))
            case "content_block_start":
                self._begin_block(_index(value), value.get("content_block"))
            case "content_block_delta":
                self._continue_block(_index(value), value.get("delta"))
            case "content_block_stop":
                self._end_block(_index(value))
            case "message_delta":
                self._note_usage(value.get("usage"))
                self._note_stop(value.get("delta"))
            case "message_stop":
                self._end()
        return self._writer.take()

    def feed_answer(self, body: str) -> Sequence[AnyChunk]:
        """Translate a message that came as one JSON value.

        Raises:
            UpstreamError: if it is an error, or no message.
        """
        message = read_object(body, self._limits)
        if message.get("type") == "error" or message.get("error"):
            raise reported_failure(message.get("error"))
        if not isinstance(content := message.get("content"), list):
            raise UpstreamUnreadableError("the answer is no message")
        self._begin(message)
        for index, block in enumerate(content):
            self._begin_block(index, block)
            self._end_block(index)
        self._note_stop(message)
        self._end()
        return self._writer.take()

    def finish(self) -> Sequence[AnyChunk]:
        """Translate the end of the stream. Idempotent.

        Raises:
            UpstreamTruncatedError: if there was neither a stop reason nor the end marker.
        """
        if not self.ended:
            if self._finish_reason is None:
                raise UpstreamTruncatedError(
                    "the stream ended without a stop reason and without an end marker"
                )
            self._end()
        return self._writer.take()

    def _begin(self, message: Any) -> None:
        message = message if isinstance(message, dict) else {}
        model = message.get("model")
        self._writer.begin({"model": model[:256]} if isinstance(model, str) and model else None)
        self._note_usage(message.get("usage"))

    def _begin_block(self, index: int, block: Any) -> None:
        if not isinstance(block, dict) or not isinstance(kind := block.get("type"), str):
            return
        # What ended before its time, or never did, is ended by the next of its number.
        self._end_block(index)
        self._blocks[index] = block
        if len(self._blocks) > BLOCKS:
            raise UpstreamTooLongError(f"more than {BLOCKS} content blocks are open")
        match kind:
            case "text":
                self._writer.write(TextStart, index, block.get("text"))
                for citation in _list(block.get("citations")):
                    self._note_citation(citation)
            case "thinking":
                self._writer.write(ReasoningStart, index, block.get("thinking"))
                self._sign(index, block.get("signature"))
            case "redacted_thinking":
                self._redact(index, block.get("data"))
            case "tool_use":
                self._writer.begin_call(index, block.get("id"), block.get("name"))
            case "server_tool_use" | "mcp_tool_use":
                self._writer.upstream_tool(block.get("id"), block.get("name"), "running")
            case _ if kind.endswith("_tool_result"):
                self._note_result(block)

    def _continue_block(self, index: int, delta: Any) -> None:
        match delta:
            case {"type": "text_delta", "text": text}:
                self._writer.write(TextStart, index, text)
            case {"type": "thinking_delta", "thinking": thinking}:
                self._writer.write(ReasoningStart, index, thinking)
            case {"type": "signature_delta", "signature": signature}:
                self._sign(index, signature)
            case {"type": "citations_delta", "citation": citation}:
                self._note_citation(citation)
            case {"type": "input_json_delta", "partial_json": text}:
                if self._blocks.get(index, {}).get("type") == "tool_use":
                    self._writer.write_input(index, text)

    def _end_block(self, index: int) -> None:
        block = self._blocks.pop(index, {})
        match block.get("type"):
            case "tool_use":
                # All at once, where nothing came in fragments.
                whole = encode_json(block["input"]).decode() if block.get("input") else None
                self._writer.end_call(index, whole)
            case "thinking" if signature := self._signatures.pop(index, ""):
                # Thinking that may not be seen is signed, too.
                self._writer.open(ReasoningStart, index)
                self._writer.close(index, _kept("signature", signature))
            case _:
                self._writer.close(index)

    def _sign(self, index: int, signature: Any) -> None:
        if index in self._blocks and isinstance(signature, str) and 0 < len(signature) <= OPAQUE_CHARACTERS:
            self._signatures[index] = signature

    def _redact(self, index: int, data: Any) -> None:
        if isinstance(data, str) and 0 < len(data) <= OPAQUE_CHARACTERS:
            self._writer.open(ReasoningStart, index, _kept("redactedData", data))

    def _note_citation(self, citation: Any) -> None:
        match citation:
            case {"type": "web_search_result_location", "url": url}:
                self._writer.source_url(url, citation.get("title"))
            case {"type": "search_result_location", "source": str(source)}:
                title = citation.get("title")
                if source.startswith(("https://", "http://")):
                    self._writer.source_url(source, title)
                else:
                    self._writer.source_document(source, str(title or source), "text/plain")
            case {"type": str(kind), "document_index": int(number)}:
                title = citation.get("document_title")
                title = title if isinstance(title, str) and title else f"Document {number + 1}"
                media_type = "application/pdf" if kind == "page_location" else "text/plain"
                self._writer.source_document(f"document-{number}", title, media_type)

    def _note_result(self, block: dict[str, Any]) -> None:
        content = block.get("content")
        failed = isinstance(content, dict) and str(content.get("type")).endswith("_error")
        self._writer.upstream_tool(block.get("tool_use_id"), None, "failed" if failed else "completed")
        for result in _list(content) or [content]:
            match result:
                case {"type": "web_search_result", "url": url, "title": title}:
                    self._writer.source_url(url, title)
                case {"type": "web_fetch_result", "url": url}:
                    self._writer.source_url(url)

    def _note_usage(self, usage: Any) -> None:
        """The counts are of the whole answer up to here; one that is null or missing is as before."""
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}

    def _note_stop(self, delta: Any) -> None:
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        if isinstance(reason, str):
            self._finish_reason = _FINISH_REASONS.get(reason, "other")

    def _end(self) -> None:
        for index in list(self._blocks):
            self._end_block(index)
        read = sum(
            count
            for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
            if isinstance(count := self._usage.get(name), int)
        )
        usage = usage_metadata(read, self._usage.get("output_tokens"))
        self._writer.finish(self._finish_reason or "other", usage)
        self.ended = True


def _kept(name: str, value: str) -> ProviderMetadata:
    """Return what a part keeps for the next request, by the names that the AI SDK has for it."""
    return {"anthropic": {name: value}}


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
