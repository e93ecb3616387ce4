"""Cuts an assistant's message into the model calls that made it, for request builders. Sans-I/O.

A model call is what stood in one answer of the model: reasoning and text, then tool calls, and with each what it came
to. A step is one; and text after a tool call begins another, because the APIs want a call's outcome right after it.
Calls without an outcome are left out: every call must have one, or the request is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from penstock.wire.codec import encode_json

DENIED = "The user did not allow this tool call."
FAILED = "The tool failed."


class ToolOutcome(NamedTuple):
    """A tool call and what it came to."""

    call_id: str
    name: str
    input: Any
    text: str
    """The output, or why there is none. What is not text is JSON."""
    failed: bool


class ModelCall(NamedTuple):
    """One answer of the model."""

    parts: list[dict[str, Any]]
    """Text and reasoning, as they stand in the message."""
    outcomes: list[ToolOutcome]


def call_ids(parts: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the tool calls among a message's parts."""
    return {str(part["toolCallId"]) for part in parts if "toolCallId" in part}


def model_calls(parts: Sequence[dict[str, Any]]) -> Iterator[ModelCall]:
    """Cut the parts of an assistant's message; none of the model calls is empty.

    Raises LocalProtocolError if a tool's output has no JSON form.
    """
    call = ModelCall([], [])
    for part in parts:
        kind = part.get("type")
        outcome = tool_outcome(part)
        is_spoken = kind in ("text", "reasoning") and isinstance(part.get("text"), str)
        if kind == "step-start" or (is_spoken and call.outcomes):
            if any(call):
                yield call
            call = ModelCall([], [])
        if is_spoken:
            call.parts.append(part)
        elif outcome is not None:
            call.outcomes.append(outcome)
    if any(call):
        yield call


def tool_outcome(part: dict[str, Any]) -> ToolOutcome | None:
    """Return what a tool part's call came to; None if it is no tool part, or came to nothing yet."""
    kind = str(part.get("type"))
    if not kind.startswith(("tool-", "dynamic-tool")):
        return None
    match part.get("state"):
        case "output-available":
            output = part.get("output")
            text = output if isinstance(output, str) else encode_json(output).decode()
        case "output-error":
            text = str(part.get("errorText") or FAILED)
        case "output-denied":
            text = DENIED
        case _:
            return None
    return ToolOutcome(
        call_id=str(part.get("toolCallId")),
        name=str(part.get("toolName")) if kind == "dynamic-tool" else kind.removeprefix("tool-"),
        input=part.get("input"),
        text=text,
        failed=part["state"] != "output-available",
    )
