"""Translates the answer of an OpenAI-compatible `/responses` into chunks. Sans-I/O.

An answer is a list of items, each a message, reasoning or a call. They come in pieces, then each item once more as a
whole, then the whole answer; what was not written yet is taken from wherever it is said first, so that servers which
leave out the pieces, or the repetition, work too.

| what | where it is found |
|---|---|
| identity | the `id` of the first event that has a response: metadata `{"upstream": {"protocol", "id"}}`, at once |
| text | `output_text` and `refusal` of messages; the part's `phase` is kept for the next request |
| reasoning | summaries and `reasoning_text`; encrypted content is kept for the requests of the same turn |
| tool calls | `function_call`, with arguments in fragments; `custom_tool_call`, whose input is text |
| sources | annotations: `url_citation`, and files |
| tools that the upstream runs | `data-upstream-tool`, replaced in place; what they found is not shown |
| failure | `error`, `response.failed`, also in an answer that came whole |
| the end | `response.completed` or `response.incomplete`; without them the answer was cut |

Source: the API reference of OpenAI, "Responses" and "Responses: streaming events"; and its guide "Reasoning models".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from msgspec import UNSET, UnsetType

from penstock.errors import (
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnreadableError,
)
from penstock.limits import WIRE, WireLimits
from penstock.relay.event_object import read_object
from penstock.relay.part_writer import BLOCKS, OPAQUE_CHARACTERS, PartWriter, make_call_id, usage_metadata
from penstock.relay.sentences import reported_failure
from penstock.wire.chunks import AnyChunk, FinishReason, ProviderMetadata, ReasoningStart, TextStart
from penstock.wire.sse_parser import ServerSentEvent

NAME: Final = "responses"

_DONE = "[DONE]"
RESPONSE_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.:=-]{1,1024}")
"""An id that may stand in a URL's path. A gateway's, which says in it where the response is, may have 500 characters."""

_INCOMPLETE: dict[str, FinishReason] = {"max_output_tokens": "length", "content_filter": "content-filter"}
_PROSE = ("text", "summary", "reasoning")
_PHASES = ("commentary", "final_answer")


class ResponsesTranslator:
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
        make_id: Callable[[], str] = make_call_id,
    ) -> None:
        self._limits = limits
        self._writer = PartWriter(limits=limits, taken=taken, make_id=make_id)
        self._known = False
        """Whether the answer's identity is written."""
        self._items: dict[Any, dict[str, Any]] = {}
        """As they were when they began; by index."""
        self._summaries: dict[Any, tuple[Any, ...]] = {}
        """The reasoning part that is open, by the index of its item."""
        self.ended = False

    @property
    def whole(self) -> bool:
        """The end marker and the finish reason come together."""
        return self.ended

    def feed(self, event: ServerSentEvent) -> Sequence[AnyChunk]:
        """Translate one event.

        Raises:
            UpstreamError: if the event reports a failure, or is not what the API says it is.
        """
        if self.ended or event.data.strip() == _DONE:
            return []
        value = read_object(event.data, self._limits)
        kind = value.get("type") or event.event
        if kind == "error" or isinstance(value.get("error"), dict):
            raise reported_failure(value.get("error") or value)
        if isinstance(response := value.get("response"), dict):
            self._note_response(response)
        elif isinstance(kind, str):
            self._translate(kind.removeprefix("response."), value)
        return self._writer.take()

    def feed_answer(self, body: str) -> Sequence[AnyChunk]:
        """Translate a response that came as one JSON value. One that is not over is one that was cut.

        Raises:
            UpstreamError: if it failed, or is no response.
        """
        response = read_object(body, self._limits)
        if not isinstance(response.get("status"), str) and not isinstance(response.get("output"), list):
            raise (
                reported_failure(response["error"])
                if response.get("error")
                else UpstreamUnreadableError("the answer is no response")
            )
        self._note_response({"status": "completed", **response})
        return self._writer.take()

    def finish(self) -> Sequence[AnyChunk]:
        """Translate the end of the stream. Idempotent.

        Raises:
            UpstreamTruncatedError: if the response was not over.
        """
        if not self.ended:
            raise UpstreamTruncatedError("the stream ended before the response was completed")
        return []

    def _note_response(self, response: dict[str, Any]) -> None:
        """Take in what an event says of the whole response: who it is, and whether and how it is over."""
        self._note_identity(response)
        status = response.get("status")
        if status == "failed" or response.get("error"):
            raise reported_failure(response.get("error"))
        if status == "cancelled":
            raise UpstreamTruncatedError("the response was cancelled")
        if status not in ("completed", "incomplete"):
            return
        for number, item in enumerate(_list(response, "output")):
            self._complete(self._index_of(item, number), item)
        reason: FinishReason = "tool-calls" if self._writer.has_calls else "stop"
        if status == "incomplete":
            details = response.get("incomplete_details")
            why = details.get("reason") if isinstance(details, dict) else None
            reason = _INCOMPLETE.get(str(why), "other")
        usage = response.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        self._writer.finish(
            reason,
            usage_metadata(usage.get("input_tokens"), usage.get("output_tokens"), usage.get("total_tokens")),
        )
        self.ended = True

    def _index_of(self, item: Any, number: int) -> int | str:
        """Return what the pieces of an item were known by: where they have no number, its id."""
        item_id = item.get("id") if isinstance(item, dict) else None
        if isinstance(item_id, str) and any(self._writer.knows((kind, item_id, 0)) for kind in _PROSE):
            return item_id
        return number

    def _note_identity(self, response: dict[str, Any]) -> None:
        if self._known:
            return
        self._known = True
        metadata: dict[str, Any] = {}
        if isinstance(model := response.get("model"), str) and model:
            metadata["model"] = model[:256]
        if isinstance(response_id := response.get("id"), str) and RESPONSE_ID.fullmatch(response_id):
            metadata["upstream"] = {"protocol": NAME, "id": response_id}
        self._writer.begin(metadata)

    def _translate(self, kind: str, event: dict[str, Any]) -> None:
        """Translate an event about an item or a piece of one; of a kind that is not known it is ignored."""
        index = event.get("output_index", event.get("item_id"))
        if not isinstance(index, int | str):
            return
        writer = self._writer
        match kind:
            case "output_item.added":
                self._begin_item(index, event.get("item"))
            case "output_item.done":
                self._complete(index, event.get("item"))
            case "output_text.delta" | "refusal.delta":
                key = ("text", index, _number(event, "content_index"))
                writer.write(TextStart, key, event.get("delta"), self._phase(index))
            case "output_text.done" | "refusal.done":
                key = ("text", index, _number(event, "content_index"))
                text = event.get("text", event.get("refusal"))
                writer.write_whole(TextStart, key, text, self._phase(index))
                writer.close(key)
            case "output_text.annotation.added":
                self._note_annotation(event.get("annotation"))
            case "reasoning_summary_text.delta":
                self._reason(index, ("summary", index, _number(event, "summary_index")), event.get("delta"))
            case "reasoning_text.delta":
                self._reason(index, ("reasoning", index, _number(event, "content_index")), event.get("delta"))
            case "function_call_arguments.delta" | "custom_tool_call_input.delta":
                writer.write_input(index, event.get("delta"))
            case "function_call_arguments.done":
                writer.end_call(index, event.get("arguments"))
            case "custom_tool_call_input.done":
                writer.end_call(index, event.get("input"))
            case _:
                # response.web_search_call.searching, and others of the same form.
                tool, _, state = kind.partition("_call.")
                if state.isidentifier():
                    writer.upstream_tool(event.get("item_id"), tool, state)

    def _begin_item(self, index: int | str, item: Any) -> None:
        if not isinstance(item, dict):
            return
        self._items[index] = item
        if len(self._items) > BLOCKS:
            raise UpstreamTooLongError(f"the answer has more than {BLOCKS} items")
        match item:
            case {"type": "function_call"}:
                self._writer.begin_call(index, item.get("call_id"), item.get("name"))
            case {"type": "custom_tool_call"}:
                self._writer.begin_call(index, item.get("call_id"), item.get("name"), is_text=True)
            case {"type": str(kind)} if kind.endswith("_call"):
                self._writer.upstream_tool(item.get("id"), kind.removesuffix("_call"), item.get("status"))

    def _complete(self, index: int | str, item: Any) -> None:
        """Write what is missing of an item that is whole now."""
        if not isinstance(item, dict):
            return
        self._begin_item(index, item)
        match item.get("type"):
            case "message":
                for number, part in enumerate(_list(item, "content")):
                    self._complete_text(index, number, part)
            case "reasoning":
                self._complete_reasoning(index, item)
            case "function_call":
                self._writer.end_call(index, item.get("arguments"))
            case "custom_tool_call":
                self._writer.end_call(index, item.get("input"))

    def _complete_text(self, index: int | str, number: int, part: Any) -> None:
        if isinstance(part, dict):
            key = ("text", index, number)
            text = part.get("text", part.get("refusal"))
            self._writer.write_whole(TextStart, key, text, self._phase(index))
            self._writer.close(key)
            for annotation in _list(part, "annotations"):
                self._note_annotation(annotation)

    def _complete_reasoning(self, index: int | str, item: dict[str, Any]) -> None:
        for name, field in (("summary", "summary"), ("reasoning", "content")):
            for number, part in enumerate(_list(item, field)):
                if isinstance(part, dict):
                    self._reason(index, (name, index, number), part.get("text"), whole=True)
        metadata = _reasoning_metadata(item)
        encrypted = item.get("encrypted_content")
        if metadata and isinstance(encrypted, str) and 0 < len(encrypted) <= OPAQUE_CHARACTERS:
            metadata["openai"]["reasoningEncryptedContent"] = encrypted
            # It is kept even if nothing of the reasoning may be seen.
            key = self._summaries.setdefault(index, ("summary", index, 0))
            self._writer.open(ReasoningStart, key, metadata)
        if index in self._summaries:
            self._writer.close(self._summaries[index], metadata or UNSET)

    def _reason(self, index: int | str, key: tuple[Any, ...], text: Any, *, whole: bool = False) -> None:
        """Write reasoning. A part stays open until the next of its item or the item's end, which has more metadata."""
        if not isinstance(text, str) or not text:
            return
        if not self._writer.knows(key):
            self._writer.close(self._summaries.get(index))
            self._summaries[index] = key
        write = self._writer.write_whole if whole else self._writer.write
        write(ReasoningStart, key, text, _reasoning_metadata(self._items.get(index, {})) or UNSET)

    def _phase(self, index: int | str) -> ProviderMetadata | UnsetType:
        phase = self._items.get(index, {}).get("phase")
        return {"openai": {"phase": phase}} if phase in _PHASES else UNSET

    def _note_annotation(self, annotation: Any) -> None:
        match annotation:
            case {"type": "url_citation", "url": url}:
                self._writer.source_url(url, annotation.get("title"))
            case {"file_id": str(file_id)} if file_id:
                filename = annotation.get("filename")
                name = filename if isinstance(filename, str) and filename else file_id
                media_type = "application/pdf" if name.lower().endswith(".pdf") else "text/plain"
                self._writer.source_document(file_id, name, media_type, name)


def _reasoning_metadata(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a reasoning part keeps of its item, by the names that the AI SDK has for it."""
    item_id = item.get("id")
    return {"openai": {"itemId": item_id[:256]}} if isinstance(item_id, str) and item_id else {}


def _list(value: dict[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []


def _number(event: dict[str, Any], key: str) -> int:
    found = event.get(key)
    return found if isinstance(found, int) else 0
