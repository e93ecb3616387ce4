"""Writes the parts of one model's answer as chunks: text, reasoning, tool calls, sources. Sans-I/O.

A translator says what came, under a key of its choice; this file knows which parts are open, gives them their ids,
cuts what is too long for a chunk, and bounds how many there are. What is said in pieces and then said again as a whole
is written once. The answer is one step, and ends with `Finish`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Hashable
from typing import Any, TypeAlias

from msgspec import UNSET, UnsetType

from penstock.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    UpstreamTooLongError,
    UpstreamUnreadableError,
)
from penstock.limits import WIRE, WireLimits
from penstock.relay.sentences import BAD_INPUT
from penstock.wire.chunks import (
    AnyChunk,
    Data,
    Finish,
    FinishReason,
    FinishStep,
    MessageMetadata,
    ProviderMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    SourceDocument,
    SourceUrl,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolInputAvailable,
    ToolInputDelta,
    ToolInputError,
    ToolInputStart,
)
from penstock.wire.codec import decode_json, encode

DELTA_CHARACTERS = 16 << 10
"""The longest delta that is written. At six bytes a character it stays within a chunk's limit."""

OPAQUE_CHARACTERS = 128 << 10
"""The longest signature or encrypted text that is kept for the next request. Real ones have a few thousand."""

CALLS = 256
"""Tool calls of one answer. Models are offered at most 128 tools."""

_PARTS = 512
"""Text and reasoning parts of one answer: fewer than a message may have when the client sends it back."""

BLOCKS = CALLS + _PARTS
"""What an answer may be made of, of whatever kind: a translator remembers each."""

_SOURCES = 200
"""Sources of one answer; more are left out."""

_NAME_CHARACTERS = 256
"""A tool's name, and a tool call's id. The APIs allow 64 to 128."""

_URL_CHARACTERS = 4_096
_TITLE_CHARACTERS = 500

UPSTREAM_TOOL = "data-upstream-tool"
"""A tool that the upstream runs itself, `{"tool", "state"}`, replaced in place: a web search under way."""

PartKind: TypeAlias = type[TextStart] | type[ReasoningStart]


def make_call_id() -> str:
    """Make the id of a tool call that came without one."""
    return f"call_{secrets.token_hex(12)}"


class _Part:
    """A text or reasoning part."""

    def __init__(self, kind: PartKind, part_id: str) -> None:
        self.kind = kind
        self.id = part_id
        self.written = 0
        """Characters."""
        self.open = True


class _Call:
    """A tool call. Its input may come before its name."""

    def __init__(self) -> None:
        self.id = ""
        """The id that it has in the turn; empty until it has begun there."""
        self.name = ""
        self.is_text = False
        self.input: list[str] = []
        self.characters = 0
        self.ended = False


class PartWriter:
    """The parts of one answer. What is written waits to be taken.

    Args:
        limits: how large and deep a tool's input may be.
        taken: ids of tool calls that the turn has already.
        make_id: makes the ids of tool calls that came without one, or with one that is taken.
    """

    def __init__(
        self,
        *,
        limits: WireLimits = WIRE,
        taken: Collection[str] = (),
        make_id: Callable[[], str] = make_call_id,
    ) -> None:
        self._limits = limits
        self._make_id = make_id
        self._taken = set(taken)
        self._chunks: list[AnyChunk] = []
        self._begun = False
        self._parts: dict[Hashable, _Part] = {}
        self._calls: dict[Hashable, _Call] = {}
        self._sources: set[str] = set()
        self._upstream_tools: dict[str, dict[str, str]] = {}

    def take(self) -> list[AnyChunk]:
        """Return what was written since the last time."""
        chunks, self._chunks = self._chunks, []
        return chunks

    @property
    def has_calls(self) -> bool:
        """Whether a tool call has begun."""
        return any(call.id for call in self._calls.values())

    def begin(self, metadata: dict[str, Any] | None = None) -> None:
        """Begin the answer, unless it has begun; metadata is the message's."""
        if not self._begun:
            self._begun = True
            self._chunks.append(StartStep())
        if metadata:
            self._chunks.append(MessageMetadata(message_metadata=metadata))

    def knows(self, key: Hashable) -> bool:
        """Whether there is such a text or reasoning part, open or closed."""
        return key in self._parts

    def open(self, kind: PartKind, key: Hashable, metadata: ProviderMetadata | UnsetType = UNSET) -> None:
        """Open a part, even if nothing is to be written into it."""
        if key in self._parts:
            return
        if len(self._parts) == _PARTS:
            raise UpstreamTooLongError(f"the answer has more than {_PARTS} parts")
        self.begin()
        part = self._parts[key] = _Part(kind, f"part-{len(self._parts) + 1}")
        self._chunks.append(kind(id=part.id, provider_metadata=metadata))

    def write(
        self, kind: PartKind, key: Hashable, text: Any, metadata: ProviderMetadata | UnsetType = UNSET
    ) -> None:
        """Write more of a part, which is opened if it is not; what is no text is nothing."""
        if not isinstance(text, str) or not text:
            return
        self.open(kind, key, metadata)
        part = self._parts[key]
        if not part.open:
            return
        part.written += len(text)
        delta = TextDelta if part.kind is TextStart else ReasoningDelta
        for first in range(0, len(text), DELTA_CHARACTERS):
            self._chunks.append(delta(id=part.id, delta=text[first : first + DELTA_CHARACTERS]))

    def write_whole(
        self, kind: PartKind, key: Hashable, text: Any, metadata: ProviderMetadata | UnsetType = UNSET
    ) -> None:
        """Write what is missing of a part whose whole text is known now."""
        if isinstance(text, str):
            written = self._parts[key].written if key in self._parts else 0
            self.write(kind, key, text[written:], metadata)

    def close(self, key: Hashable, metadata: ProviderMetadata | UnsetType = UNSET) -> None:
        """Close a part, if it is open."""
        part = self._parts.get(key)
        if part is not None and part.open:
            part.open = False
            end = TextEnd if part.kind is TextStart else ReasoningEnd
            self._chunks.append(end(id=part.id, provider_metadata=metadata))

    def begin_call(self, key: Hashable, call_id: Any, name: Any, *, is_text: bool = False) -> None:
        """Begin a tool call, unless it has begun.

        Args:
            call_id: the upstream's own, which it knows the call by; another is made if it can't be had.
            is_text: the input is not JSON but text.
        """
        call = self._call(key)
        if call.id:
            return
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS:
            raise UpstreamUnreadableError("a tool call has no name, or one that is too long")
        if not isinstance(call_id, str) or not 0 < len(call_id) <= _NAME_CHARACTERS or call_id in self._taken:
            call_id = self._make_id()
        self._taken.add(call_id)
        call.id, call.name, call.is_text = call_id, name, is_text
        self.begin()
        encoding: Any = "text" if is_text else UNSET
        self._chunks.append(ToolInputStart(tool_call_id=call_id, tool_name=name, input_encoding=encoding))
        self._write_input(call, "".join(call.input))

    def write_input(self, key: Hashable, text: Any) -> None:
        """Write more of a tool call's input, which may come before its name."""
        call = self._call(key)
        if not isinstance(text, str) or not text or call.ended:
            return
        # Of an input that can't be used anyway, only the beginning is kept.
        if call.characters <= self._limits.json_bytes:
            call.input.append(text)
        call.characters += len(text)
        if call.id:
            self._write_input(call, text)

    def end_call(self, key: Hashable, whole: Any = None) -> None:
        """End a tool call's input. `whole` is all of it, where the upstream says it again or says it only now."""
        call = self._call(key)
        if not call.id or call.ended:
            return
        if isinstance(whole, str):
            self.write_input(key, whole[call.characters :])
        call.ended = True
        self._chunks.append(self._call_input(call))

    def source_url(self, url: Any, title: Any = None) -> None:
        """Write a web page as a source, once; what a browser should not be sent to is left out."""
        if (
            not isinstance(url, str)
            or not url.startswith(("https://", "http://"))
            or len(url) > _URL_CHARACTERS
        ):
            return
        if (source_id := self._new_source(url)) is not None:
            title = title[:_TITLE_CHARACTERS] if isinstance(title, str) and title else UNSET
            self._chunks.append(SourceUrl(source_id=source_id, url=url, title=title))

    def source_document(self, key: str, title: str, media_type: str, filename: str | None = None) -> None:
        """Write a document as a source, once by its key."""
        if (source_id := self._new_source(key)) is not None:
            self._chunks.append(
                SourceDocument(
                    source_id=source_id,
                    media_type=media_type,
                    title=title[:_TITLE_CHARACTERS],
                    filename=filename[:_TITLE_CHARACTERS] if filename else UNSET,
                )
            )

    def upstream_tool(self, call_id: Any, tool: Any, state: Any) -> None:
        """Say how far a tool is that the upstream runs itself; `tool` may be left out where it was said before."""
        if not isinstance(call_id, str) or not isinstance(state, str) or len(call_id) > _NAME_CHARACTERS:
            return
        known = self._upstream_tools.get(call_id)
        if known is not None:
            tool = known["tool"]
        if not isinstance(tool, str) or (known is None and len(self._upstream_tools) == CALLS):
            return
        data = {"tool": tool[:_NAME_CHARACTERS], "state": state[:_NAME_CHARACTERS]}
        if data != known:
            self._upstream_tools[call_id] = data
            self.begin()
            self._chunks.append(Data(type=UPSTREAM_TOOL, id=call_id, data=data))

    def finish(self, reason: FinishReason, usage: dict[str, int]) -> None:
        """End the answer: close what is open, and say why the model stopped and what it cost."""
        self.begin()
        for key in self._parts:
            self.close(key)
        for key in self._calls:
            self.end_call(key)
        self._chunks.append(FinishStep())
        self._chunks.append(
            Finish(finish_reason=reason, message_metadata={"usage": usage} if usage else UNSET)
        )

    def _call(self, key: Hashable) -> _Call:
        call = self._calls.get(key)
        if call is None:
            if len(self._calls) == CALLS:
                raise UpstreamTooLongError(f"the answer has more than {CALLS} tool calls")
            call = self._calls[key] = _Call()
        return call

    def _write_input(self, call: _Call, text: str) -> None:
        for first in range(0, len(text), DELTA_CHARACTERS):
            self._chunks.append(
                ToolInputDelta(tool_call_id=call.id, input_text_delta=text[first : first + DELTA_CHARACTERS])
            )

    def _call_input(self, call: _Call) -> AnyChunk:
        text = "".join(call.input)
        try:
            if call.is_text:
                value: Any = text
            else:
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

    def _new_source(self, key: str) -> str | None:
        """Return the id of a source, the same for the same; None if it is written already, or there are too many."""
        source_id = f"source-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if source_id in self._sources or len(self._sources) == _SOURCES:
            return None
        self._sources.add(source_id)
        self.begin()
        return source_id


def usage_metadata(read: Any, written: Any, total: Any = None) -> dict[str, int]:
    """Return what an answer cost, in tokens, as the message's metadata says it; empty if that is not known."""
    read, written = _count(read), _count(written)
    total = _count(total) or read + written
    return {"inputTokens": read, "outputTokens": written, "totalTokens": total} if total else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
