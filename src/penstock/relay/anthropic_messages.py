"""Translates a conversation of `UIMessage`s into the `system` and `messages` of an Anthropic request. Sans-I/O.

The API wants user and assistant in turn, every tool call's result at the beginning of the user message right after it,
no text that is empty, and thinking as it came, with its signature: thinking without one (another provider's) is left
out. So are sources, data, and tool calls without an outcome.

Source: the API reference of Anthropic, "Messages", "Tool use", "Extended thinking", "Vision", "PDF support"; parts as
in `UIMessage` of the npm package `ai`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from penstock.relay.model_calls import ModelCall, ToolOutcome, model_calls
from penstock.relay.tool_schema import ToolSchema
from penstock.wire.messages import UIMessage

_FILE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp", "application/pdf")
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,([A-Za-z0-9+/=]+)")
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9_-]")

Block = dict[str, Any]


def anthropic_tools(tools: Sequence[ToolSchema]) -> list[dict[str, Any]]:
    """Return tools as the API wants them."""
    return [
        {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
        for tool in tools
    ]


def anthropic_conversation(messages: Sequence[UIMessage]) -> tuple[list[Block], list[dict[str, Any]]]:
    """Return the system prompt's blocks and the messages, as the API wants them.

    Raises LocalProtocolError if a tool's output has no JSON form.
    """
    system: list[Block] = []
    translated: list[dict[str, Any]] = []

    def add(role: str, blocks: list[Block]) -> None:
        if blocks and translated and translated[-1]["role"] == role:
            translated[-1]["content"] += blocks
        elif blocks:
            translated.append({"role": role, "content": blocks})

    for message in messages:
        if message.role == "system":
            system += _text(message.text)
        elif message.role == "user":
            add("user", [block for part in message.parts for block in _user_blocks(part)])
        else:
            for call in model_calls(message.parts):
                add("assistant", list(_assistant_blocks(call)))
                add("user", [_result(outcome) for outcome in call.outcomes])
    return system, translated


def _text(text: Any) -> list[Block]:
    """Return a block of text; white space alone is refused."""
    return [{"type": "text", "text": text}] if isinstance(text, str) and text.strip() else []


def _user_blocks(part: dict[str, Any]) -> list[Block]:
    match part:
        case {"type": "text", "text": str(text)}:
            return _text(text)
        case {"type": "file", "url": str(url), "mediaType": str(media_type)}:
            source = _source(url, media_type)
            if source is None:
                return _text(f"[a file that can't be read here: {part.get('filename') or media_type}]")
            return [{"type": "image" if media_type.startswith("image/") else "document", "source": source}]
    return []


def _source(url: str, media_type: str) -> dict[str, str] | None:
    """Return an image or a PDF by its data or its address; None if the API takes neither."""
    if data_url := _DATA_URL.fullmatch(url):
        if data_url[1] == media_type and media_type in _FILE_TYPES:
            return {"type": "base64", "media_type": media_type, "data": data_url[2]}
    elif url.startswith("https://") and media_type in _FILE_TYPES:
        return {"type": "url", "url": url}
    return None


def _assistant_blocks(call: ModelCall) -> Iterator[Block]:
    for part in call.parts:
        if part["type"] == "text":
            yield from _text(part["text"])
            continue
        match part.get("providerMetadata"):
            case {"anthropic": {"signature": str(signature)}}:
                yield {"type": "thinking", "thinking": part["text"], "signature": signature}
            case {"anthropic": {"redactedData": str(data)}}:
                yield {"type": "redacted_thinking", "data": data}
    for outcome in call.outcomes:
        given = outcome.input
        yield {
            "type": "tool_use",
            "id": _call_id(outcome),
            "name": outcome.name,
            # It must be an object; of an input that could not be used there is only text.
            "input": given if isinstance(given, dict) else {} if given is None else {"input": given},
        }


def _result(outcome: ToolOutcome) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": _call_id(outcome), "content": outcome.text}
    return {**block, "is_error": True} if outcome.failed else block


def _call_id(outcome: ToolOutcome) -> str:
    """Return an id of the form that the API demands; one of another provider may have another."""
    return _NOT_IN_ID.sub("_", outcome.call_id)
