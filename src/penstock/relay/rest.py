"""What is left to write of an answer, when a part of it is written and all of it has become known. Sans-I/O.

The text that is written must be the beginning of the answer's text; the rest follows it in the same part, if that is
still open, or else in one of its own. Where reasoning is not the same, what is written of it stands, and no more is
written: it is not the answer. A tool call whose input was under way gets its input; one that was ended because its
process died is made again under another id, because a call that has ended can't go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from penstock.errors import UpstreamTruncatedError
from penstock.relay.model_calls import call_ids
from penstock.turns.runner import INTERRUPTED
from penstock.turns.turn import Turn
from penstock.wire.chunks import (
    AnyChunk,
    Data,
    FinishStep,
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

_OTHER = "the upstream has another answer than the one that was written"


class Written:
    """What a turn has of its newest answer: all since the last step began."""

    def __init__(
        self,
        parts: Sequence[dict[str, Any]],
        open_text_ends: Sequence[AnyChunk] = (),
        *,
        in_step: bool = False,
    ) -> None:
        begins = [index for index, part in enumerate(parts) if part.get("type") == "step-start"]
        self.begun = bool(begins)
        first = begins[-1] + 1 if begins else 0
        self.parts = parts[first:]
        self.earlier_calls = call_ids(parts[:first])
        self.calls = {str(part["toolCallId"]): part for part in self.parts if "toolCallId" in part}
        self.in_step = in_step
        self.open_text = [end.id for end in open_text_ends if isinstance(end, TextEnd)]
        self.open_reasoning = [end.id for end in open_text_ends if isinstance(end, ReasoningEnd)]

    @classmethod
    def of(cls, turn: Turn) -> Written:
        """Look at a turn."""
        return cls(turn.message.parts, turn.open_text_ends(), in_step=turn.in_step)

    @property
    def has_outcomes(self) -> bool:
        """Whether a tool call has come to something, so that this answer is over and the next one was due."""
        return any(
            str(part.get("state")).startswith(("output-", "approval-")) and not _was_interrupted(part)
            for part in self.calls.values()
        )


class _Prose:
    """The text of an answer, or its reasoning: how much of it is still to be skipped, and where the rest goes."""

    def __init__(self, kind: str, written: Written, answer: Sequence[AnyChunk], open_ids: list[str]) -> None:
        parts = [part for part in written.parts if part.get("type") == kind]
        texts = [str(part.get("text", "")) for part in parts]
        start, delta = (TextStart, TextDelta) if kind == "text" else (ReasoningStart, ReasoningDelta)
        whole = ""
        self._open_in_answer: str | None = None
        """The part of the answer that the turn has begun and not ended."""
        for chunk in answer:
            if isinstance(chunk, delta):
                whole += chunk.delta
            elif isinstance(chunk, start) and open_ids and len(whole) <= len("".join(texts[:-1])):
                self._open_in_answer = chunk.id
        self._open_in_turn = open_ids[-1] if open_ids else ""
        self.fits = whole.startswith("".join(texts))
        goes_on = self.fits and self._open_in_answer is not None
        self.abandoned = open_ids[:-1] if goes_on else open_ids
        """Ids of parts that are open in the turn, and get no more."""
        self._skip = len("".join(texts))
        self._metadata = [part["providerMetadata"] for part in parts if "providerMetadata" in part]
        self._starts: dict[str, TextStart | ReasoningStart] = {}
        """Of the parts that are begun in the answer, and not yet in the turn."""
        self._ids: dict[str, str] = {}
        """Ids in the answer to those in the turn."""

    def start(self, chunk: TextStart | ReasoningStart) -> None:
        if chunk.id == self._open_in_answer:
            self._ids[chunk.id] = self._open_in_turn
        else:
            self._starts[chunk.id] = chunk

    def delta(self, chunk: TextDelta | ReasoningDelta) -> list[AnyChunk]:
        text = chunk.delta[self._skip :]
        self._skip -= len(chunk.delta) - len(text)
        return [*self._begun(chunk.id), type(chunk)(id=self._ids[chunk.id], delta=text)] if text else []

    def end(self, chunk: TextEnd | ReasoningEnd) -> list[AnyChunk]:
        metadata = chunk.provider_metadata
        begun: list[AnyChunk] = []
        if chunk.id not in self._ids:
            if self._skip or metadata is UNSET or metadata in self._metadata:
                return []  # the turn has all of it
            begun = self._begun(chunk.id)
        return [*begun, type(chunk)(id=self._ids[chunk.id], provider_metadata=metadata)]

    def _begun(self, part_id: str) -> list[AnyChunk]:
        if part_id in self._ids:
            return []
        self._ids[part_id] = part_id
        return [self._starts.pop(part_id)]


def rest_of(answer: Sequence[AnyChunk], written: Written) -> list[AnyChunk]:
    """Return the chunks that are left to write.

    Args:
        answer: the whole answer, as its translator gives it.
        written: what the turn has of it.

    Raises:
        UpstreamTruncatedError: if what is written is not the beginning of the answer.
    """
    text = _Prose("text", written, answer, written.open_text)
    reasoning = _Prose("reasoning", written, answer, written.open_reasoning)
    streaming = {key for key, part in written.calls.items() if part.get("state") == "input-streaming"}
    calls = {chunk.tool_call_id for chunk in answer if isinstance(chunk, ToolInputStart)}
    if not text.fits or not streaming <= calls:
        raise UpstreamTruncatedError(_OTHER)
    sources = {part.get("sourceId") for part in written.parts}
    in_step = written.in_step
    rest: list[AnyChunk] = []
    rest += [TextEnd(id=part_id) for part_id in text.abandoned]
    rest += [ReasoningEnd(id=part_id) for part_id in reasoning.abandoned]
    for chunk in answer:
        match chunk:
            case StartStep():
                # After a step that was closed for want of an owner, the rest stands outside one: a step is a model call.
                if not written.begun and not in_step:
                    in_step = True
                    rest.append(chunk)
            case FinishStep():
                if in_step:
                    rest.append(chunk)
            case TextStart():
                text.start(chunk)
            case TextDelta():
                rest += text.delta(chunk)
            case TextEnd():
                rest += text.end(chunk)
            case ReasoningStart():
                reasoning.start(chunk)
            case ReasoningDelta():
                rest += reasoning.delta(chunk) if reasoning.fits else []
            case ReasoningEnd():
                rest += reasoning.end(chunk) if reasoning.fits else []
            case ToolInputStart() | ToolInputDelta() | ToolInputAvailable() | ToolInputError():
                rest += _call(chunk, written)
            case SourceUrl(source_id=source_id) | SourceDocument(source_id=source_id):
                if source_id not in sources:
                    rest.append(chunk)
            case Data() if chunk.id is not UNSET:
                known = {"type": chunk.type, "id": chunk.id, "data": chunk.data}
                if known not in written.parts:
                    rest.append(chunk)
            case _:
                rest.append(chunk)
    return rest


def _call(
    chunk: ToolInputStart | ToolInputDelta | ToolInputAvailable | ToolInputError, written: Written
) -> list[AnyChunk]:
    part = written.calls.get(chunk.tool_call_id)
    if part is None:
        return [chunk]
    if _was_interrupted(part):
        return [_renamed(chunk, written)]
    if part.get("state") == "input-streaming" and isinstance(chunk, ToolInputAvailable | ToolInputError):
        return [chunk]
    return []


def _renamed(
    chunk: ToolInputStart | ToolInputDelta | ToolInputAvailable | ToolInputError, written: Written
) -> AnyChunk:
    count = 2
    while (call_id := f"{chunk.tool_call_id}-{count}") in written.calls:
        count += 1
    match chunk:
        case ToolInputStart(tool_name=name, input_encoding=encoding):
            return ToolInputStart(tool_call_id=call_id, tool_name=name, input_encoding=encoding)
        case ToolInputDelta(input_text_delta=text):
            return ToolInputDelta(tool_call_id=call_id, input_text_delta=text)
        case ToolInputAvailable(tool_name=name, input=value):
            return ToolInputAvailable(tool_call_id=call_id, tool_name=name, input=value)
        case ToolInputError(tool_name=name, input=value, error_text=text):
            return ToolInputError(tool_call_id=call_id, tool_name=name, input=value, error_text=text)


def _was_interrupted(part: dict[str, Any]) -> bool:
    """Whether a call was ended only because its process died."""
    return part.get("state") == "output-error" and part.get("errorText") == INTERRUPTED
