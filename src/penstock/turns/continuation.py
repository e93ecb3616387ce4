"""What a client's POST says about tool calls that its last answer left open, as chunks of the turn that goes on.

The AI SDK's client has no message for "approved" or "here is the output": it sets the parts of its own copy of the
assistant's message, and sends that copy with its next request. This file compares the copy with what the journal knows.
Only decisions are taken from it; everything else that a client might have changed in an assistant's words is ignored.

Source: `addToolApprovalResponse` and `addToolOutput` of `AbstractChat`, `ai` 6 and 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import UNSET

from penstock.wire.chunks import (
    AnyChunk,
    ToolApprovalResponse,
    ToolOutputAvailable,
    ToolOutputDenied,
    ToolOutputError,
)
from penstock.wire.grammar import Call, Grammar
from penstock.wire.messages import UIMessage

DENIED_WITHOUT_WORDS = "The client's tool failed."


def decisions(message: UIMessage, grammar: Grammar) -> Iterator[AnyChunk]:
    """Yield what the client decided of the calls that wait for it. Apply each chunk before asking for the next."""
    for part in message.parts:
        call_id = part.get("toolCallId")
        if not isinstance(call_id, str):
            continue
        state = grammar.call_state(call_id)
        if state is Call.REQUESTED:
            yield from _approval(call_id, part)
        elif state is Call.AVAILABLE:
            yield from _output(call_id, part, dynamic=grammar.is_dynamic(call_id))


def _approval(call_id: str, part: Mapping[str, Any]) -> Iterator[AnyChunk]:
    approval = part.get("approval")
    if not isinstance(approval, Mapping):
        return
    approval_id, approved, reason = (approval.get(name) for name in ("id", "approved", "reason"))
    if isinstance(approval_id, str) and isinstance(approved, bool):
        yield ToolApprovalResponse(
            approval_id=approval_id, approved=approved, reason=reason if isinstance(reason, str) else UNSET
        )
        if not approved:
            yield ToolOutputDenied(tool_call_id=call_id)


def _output(call_id: str, part: Mapping[str, Any], *, dynamic: bool) -> Iterator[AnyChunk]:
    said = dynamic or UNSET
    if part.get("state") == "output-available" and "output" in part:
        yield ToolOutputAvailable(tool_call_id=call_id, output=part["output"], dynamic=said)
    elif part.get("state") == "output-error":
        text = part.get("errorText")
        yield ToolOutputError(
            tool_call_id=call_id,
            error_text=text if isinstance(text, str) else DENIED_WITHOUT_WORDS,
            dynamic=said,
        )
