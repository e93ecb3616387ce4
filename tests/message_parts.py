"""Parts of UI messages, for the tests of what a relay makes of a conversation."""

from __future__ import annotations

from typing import Any


def text(words: str, **fields: Any) -> dict[str, Any]:
    """Make a text part."""
    return {"type": "text", "text": words, "state": "done", **fields}


def tool(state: str, **fields: Any) -> dict[str, Any]:
    """Make a tool part."""
    return {"type": "tool-look", "toolCallId": "c1", "state": state, "input": {"at": "é"}, **fields}


OUTCOMES = [
    (tool("output-available", output={"n": [1, None]}), '{"n":[1,null]}', False),
    (tool("output-available", output="as it is"), "as it is", False),
    (tool("output-available", output=None), "null", False),
    (tool("output-error", errorText="no view"), "no view", True),
    (tool("output-denied"), "The user did not allow this tool call.", True),
    ({**tool("output-available", output=1), "type": "dynamic-tool", "toolName": "look"}, "1", False),
]
"""Calls that came to something, what the model reads of it, and whether they failed."""

UNFINISHED = [
    tool(state)
    for state in ("input-streaming", "input-available", "approval-requested", "approval-responded")
]
"""Calls that came to nothing yet: of these no server wants to know."""
