"""Chunks to the `UIMessage` that a real client ends with, when it is sent those chunks.

Theory of operation. A message is a list of parts, in the order in which they began. Text, reasoning and tool input come
in pieces, which are joined when somebody asks for the message or the part ends, never one by one. Field for field it is
what `AbstractChat` of `ai` hands to `onFinish`, as JSON: what is undefined there is absent here. Chunks that a version
doesn't speak are not sent to it (`versions.py`), and so make nothing of its message.

Where the versions differ (7 is the rule, these are its exceptions):

| | 6 | 5 |
|---|---|---|
| `text-end.citations` | dropped | dropped |
| `file.providerMetadata` | kept | dropped |
| a tool call's `title`, `toolMetadata`, `inputEncoding` | kept | dropped; text input is read as JSON |
| `providerMetadata` of tool input | last one is kept | of `tool-input-available` only |
| `providerMetadata` of tool output | kept | dropped |
| `providerExecuted` of a dynamic tool's output | kept | dropped |
| `tool-input-error.input` of a tool that is not dynamic | becomes `rawInput` | becomes `rawInput` |
| `providerMetadata` of `tool-input-error` | kept, as that of an output | kept if the call began with this chunk |
| `tool-approval-request.reason`, `.isAutomatic` | dropped | not spoken |

Other facts, of all three: `title` of a `tool-input-error` is dropped; `rawInput` is kept only while the input comes and
if the call fails then, and in the latter case not of a dynamic tool; metadata that is null changes nothing; a
`step-start` that nothing follows is in the message, and not in the list of messages that `useChat` shows.

Differences from all of them, of which no legal program makes use: metadata that is not an object is replaced, where the
client makes an object of indices or fails; and the list in `partial_json.py`.

The chunks must be legal (`grammar.py`). This file knows nothing of positions, stores or frames.

Source: `processUIMessageStream`, `mergeObjects` and `AbstractChat` of the npm package `ai` 5.0, 6.0 and 7.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from penstock.wire.chunks import (
    AnyChunk,
    Custom,
    Data,
    File,
    Finish,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningFile,
    ReasoningStart,
    ResetStep,
    SourceDocument,
    SourceUrl,
    Start,
    StartStep,
    SteeringMessage,
    TextDelta,
    TextEnd,
    TextStart,
    ToolApprovalRequest,
    ToolApprovalResponse,
    ToolInputAvailable,
    ToolInputDelta,
    ToolInputError,
    ToolInputStart,
    ToolOutputAvailable,
    ToolOutputDenied,
    ToolOutputError,
)
from penstock.wire.pieces import Pieces, ToolInput, keep, put
from penstock.wire.versions import SdkVersion, speaks


def assemble(chunks: Iterable[AnyChunk], message_id: str, sdk: SdkVersion = 7) -> dict[str, Any]:
    """Assemble legal chunks into the message that a client of this version makes of them."""
    assembly = Assembly(message_id, sdk)
    for chunk in chunks:
        assembly.apply(chunk)
    return assembly.message()


class Assembly:
    """A message that grows, chunk by chunk; each costs the same, however long the message is."""

    def __init__(self, message_id: str, sdk: SdkVersion = 7) -> None:
        self._id = message_id
        self._sdk = sdk
        self._metadata: Any = None
        self._parts: list[dict[str, Any]] = []
        self._step = 0
        """Where the parts of the current step begin."""
        self._text: dict[str, Pieces] = {}
        self._reasoning: dict[str, Pieces] = {}
        self._inputs: dict[str, ToolInput] = {}
        self._calls: dict[str, dict[str, Any]] = {}
        self._step_calls: set[str] = set()
        """Those that began in the current step. Of others, input makes a new part: an id may be used again after its
        step was reset, which versions before 7 aren't told."""
        self._data: dict[tuple[str, str], dict[str, Any]] = {}

    def apply(self, chunk: AnyChunk) -> None:
        """Take in a legal chunk. Its values are copied: the producer may change them afterwards."""
        if type(chunk) is TextDelta and chunk.provider_metadata is UNSET:
            self._text[chunk.id].pieces.append(chunk.delta)
        elif type(chunk) is ToolInputDelta:
            self._inputs[chunk.tool_call_id].pieces.append(chunk.input_text_delta)
        elif speaks(chunk, self._sdk):
            act = _ACTS.get(type(chunk))
            if act is not None:
                act(self, chunk)

    def apply_deltas(self, chunks: Sequence[AnyChunk]) -> None:
        """Take in legal deltas of one part, without provider metadata."""
        first = chunks[0]
        if isinstance(first, ToolInputDelta):
            self._inputs[first.tool_call_id].pieces += [chunk.input_text_delta for chunk in chunks]  # type: ignore[union-attr]
        else:
            assert isinstance(first, TextDelta | ReasoningDelta)
            pieces = (self._text if isinstance(first, TextDelta) else self._reasoning)[first.id].pieces
            pieces += [chunk.delta for chunk in chunks]  # type: ignore[union-attr]

    def message(self) -> dict[str, Any]:
        """Return the message so far, ready for JSON. What is nested in its parts must not be changed."""
        for pieces in (*self._text.values(), *self._reasoning.values(), *self._inputs.values()):
            pieces.settle()
        message: dict[str, Any] = {"id": self._id, "role": "assistant"}
        message["parts"] = [dict(part) for part in self._parts]
        if self._metadata is not None:
            message["metadata"] = self._metadata
        return message

    def _start(self, chunk: Start) -> None:
        if chunk.message_id is not UNSET:
            self._id = chunk.message_id
        self._merge_metadata(chunk)

    def _merge_metadata(self, chunk: Start | Finish | MessageMetadata) -> None:
        if chunk.message_metadata not in (UNSET, None):
            self._metadata = _merged(self._metadata, msgspec.to_builtins(chunk.message_metadata))

    def _start_step(self, chunk: StartStep) -> None:
        self._parts.append({"type": "step-start"})
        self._step = len(self._parts)
        self._step_calls.clear()

    def _reset_step(self, chunk: ResetStep) -> None:
        dropped = {id(part) for part in self._parts[self._step :]}
        del self._parts[self._step :]
        self._text.clear()
        self._reasoning.clear()
        self._inputs.clear()
        self._step_calls.clear()
        self._calls = {key: part for key, part in self._calls.items() if id(part) not in dropped}
        self._data = {key: part for key, part in self._data.items() if id(part) not in dropped}

    def _start_text(self, chunk: TextStart) -> None:
        self._open(self._text, chunk.id, {"type": "text"}, chunk)

    def _start_reasoning(self, chunk: ReasoningStart) -> None:
        self._open(self._reasoning, chunk.id, {"type": "reasoning", "id": chunk.id}, chunk)

    def _open(
        self,
        open_parts: dict[str, Pieces],
        part_id: str,
        part: dict[str, Any],
        chunk: TextStart | ReasoningStart,
    ) -> None:
        part |= {"text": "", "state": "streaming"}
        put(part, providerMetadata=chunk.provider_metadata)
        if part_id in open_parts:  # of a step that was reset, which versions before 7 aren't told
            open_parts[part_id].settle()
        open_parts[part_id] = Pieces(part)
        self._parts.append(part)

    def _add_text(self, chunk: TextDelta | ReasoningDelta) -> None:
        pieces = (self._text if type(chunk) is TextDelta else self._reasoning)[chunk.id]
        pieces.pieces.append(chunk.delta)
        keep(pieces.part, providerMetadata=chunk.provider_metadata)

    def _end_text(self, chunk: TextEnd | ReasoningEnd) -> None:
        pieces = (self._text if isinstance(chunk, TextEnd) else self._reasoning).pop(chunk.id)
        pieces.settle()
        pieces.part["state"] = "done"
        keep(pieces.part, providerMetadata=chunk.provider_metadata)
        if isinstance(chunk, TextEnd) and self._sdk == 7:
            keep(pieces.part, citations=chunk.citations)

    def _add_part(
        self, chunk: File | ReasoningFile | SourceUrl | SourceDocument | Custom | SteeringMessage
    ) -> None:
        part = msgspec.to_builtins(chunk)
        if self._sdk == 5 and isinstance(chunk, File):
            part.pop("providerMetadata", None)
        self._parts.append(part)

    def _add_data(self, chunk: Data) -> None:
        if chunk.transient is True:
            return
        part = msgspec.to_builtins(chunk)
        if chunk.id is not UNSET:
            known = self._data.setdefault((chunk.type, chunk.id), part)
            if known is not part:
                known["data"] = part["data"]
                return
        self._parts.append(part)

    def _start_input(self, chunk: ToolInputStart) -> None:
        part = self._call(chunk, "input-streaming", inputEncoding=self._unless_5(chunk.input_encoding))
        is_text = chunk.input_encoding == "text" and self._sdk > 5
        self._inputs[chunk.tool_call_id] = ToolInput(part, is_text, self._sdk)
        keep(
            part,
            title=self._unless_5(chunk.title),
            callProviderMetadata=self._unless_5(chunk.provider_metadata),
        )

    def _set_input(self, chunk: ToolInputAvailable) -> None:
        part = self._call(chunk, "input-available", input=chunk.input)
        keep(part, title=self._unless_5(chunk.title), callProviderMetadata=chunk.provider_metadata)

    def _fail_input(self, chunk: ToolInputError) -> None:
        is_new = chunk.tool_call_id not in self._step_calls
        key = "input" if self._sdk == 7 or chunk.dynamic is True else "rawInput"
        part = self._call(chunk, "output-error", errorText=chunk.error_text, **{key: chunk.input})
        if self._sdk > 5:
            keep(part, resultProviderMetadata=chunk.provider_metadata)
        elif is_new:
            keep(part, callProviderMetadata=chunk.provider_metadata)

    def _set_output(self, chunk: ToolOutputAvailable) -> None:
        part = self._call(
            chunk,
            "output-available",
            input=self._input(chunk),
            output=chunk.output,
            preliminary=chunk.preliminary,
        )
        keep(part, resultProviderMetadata=self._unless_5(chunk.provider_metadata))

    def _fail(self, chunk: ToolOutputError) -> None:
        input = self._input(chunk)
        part = self._calls[chunk.tool_call_id]
        raw_input = UNSET if part["type"] == "dynamic-tool" else part.get("rawInput", UNSET)
        self._call(chunk, "output-error", input=input, rawInput=raw_input, errorText=chunk.error_text)
        keep(part, resultProviderMetadata=self._unless_5(chunk.provider_metadata))

    def _deny(self, chunk: ToolOutputDenied) -> None:
        self._calls[chunk.tool_call_id]["state"] = "output-denied"

    def _ask(self, chunk: ToolApprovalRequest) -> None:
        part = self._calls[chunk.tool_call_id]
        part["state"] = "approval-requested"
        approval: dict[str, Any] = {"id": chunk.approval_id}
        keep(approval, descriptor=chunk.approval_descriptor, signature=chunk.signature)
        put(approval, inputSchemaInput=chunk.input_schema_input)
        if self._sdk == 7:
            keep(approval, requestReason=chunk.reason, isAutomatic=chunk.is_automatic or UNSET)
        part["approval"] = approval

    def _answer(self, chunk: ToolApprovalResponse) -> None:
        part = next(
            part for part in self._calls.values() if part.get("approval", {}).get("id") == chunk.approval_id
        )
        part["state"] = "approval-responded"
        part["approval"] = part["approval"] | {"approved": chunk.approved}
        keep(part["approval"], reason=chunk.reason)
        keep(part, providerExecuted=chunk.provider_executed, callProviderMetadata=chunk.provider_metadata)

    def _call(
        self,
        chunk: ToolInputStart | ToolInputAvailable | ToolInputError | ToolOutputAvailable | ToolOutputError,
        state: str,
        **fields: Any,
    ) -> dict[str, Any]:
        """Bring a tool call's part, which may be a new one, to a state; of these fields it has only those given."""
        call_id = chunk.tool_call_id
        pieces = self._inputs.pop(call_id, None)
        if isinstance(chunk, ToolOutputAvailable | ToolOutputError) or call_id in self._step_calls:
            part = self._calls[call_id]
        else:
            if pieces is not None:
                pieces.settle()
            name = chunk.tool_name
            part = (
                {"type": f"tool-{name}"}
                if chunk.dynamic is not True
                else {"type": "dynamic-tool", "toolName": name}
            )
            part["toolCallId"] = call_id
            self._calls[call_id] = part
            self._step_calls.add(call_id)
            self._parts.append(part)
        part["state"] = state
        put(part, **{**_CALL_FIELDS, **fields})
        if self._sdk > 5 or chunk.dynamic is not True or not isinstance(chunk, ToolOutputAvailable):
            keep(part, providerExecuted=chunk.provider_executed)
        keep(part, toolMetadata=self._unless_5(chunk.tool_metadata))
        return part

    def _input(self, chunk: ToolOutputAvailable | ToolOutputError) -> Any:
        """Return the input that a call has now, even if not all of it came."""
        if (pieces := self._inputs.get(chunk.tool_call_id)) is not None:
            pieces.settle()
        return self._calls[chunk.tool_call_id].get("input", UNSET)

    def _unless_5(self, value: Any) -> Any:
        return UNSET if self._sdk == 5 else value


_CALL_FIELDS = dict.fromkeys(
    ("input", "output", "errorText", "rawInput", "inputEncoding", "preliminary"), UNSET
)

_ACTS: dict[type[AnyChunk], Callable[[Assembly, Any], None]] = {
    Start: Assembly._start,
    Finish: Assembly._merge_metadata,
    MessageMetadata: Assembly._merge_metadata,
    StartStep: Assembly._start_step,
    ResetStep: Assembly._reset_step,
    TextStart: Assembly._start_text,
    TextDelta: Assembly._add_text,
    TextEnd: Assembly._end_text,
    ReasoningStart: Assembly._start_reasoning,
    ReasoningDelta: Assembly._add_text,
    ReasoningEnd: Assembly._end_text,
    ReasoningFile: Assembly._add_part,
    File: Assembly._add_part,
    SourceUrl: Assembly._add_part,
    SourceDocument: Assembly._add_part,
    Custom: Assembly._add_part,
    SteeringMessage: Assembly._add_part,
    Data: Assembly._add_data,
    ToolInputStart: Assembly._start_input,
    ToolInputAvailable: Assembly._set_input,
    ToolInputError: Assembly._fail_input,
    ToolApprovalRequest: Assembly._ask,
    ToolApprovalResponse: Assembly._answer,
    ToolOutputAvailable: Assembly._set_output,
    ToolOutputError: Assembly._fail,
    ToolOutputDenied: Assembly._deny,
}
"""What is not here leaves no trace: `error`, `abort`, `finish-step`."""


def _merged(old: Any, new: Any) -> Any:
    """Merge objects deeply; whatever else is new replaces the old."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    merged = dict(old)
    for key, value in new.items():
        # The client guards JavaScript's prototypes so, and loses these keys.
        if key not in ("__proto__", "constructor", "prototype"):
            merged[key] = _merged(old.get(key), value)
    return merged
