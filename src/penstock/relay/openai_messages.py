"""Translates a conversation of `UIMessage`s into the `messages` of an OpenAI-compatible request. Sans-I/O.

What a model could not use is left out: reasoning (DeepSeek refuses its own), sources, data, tool calls without an
outcome (every call must be answered by a message of the role `tool`, or the request is refused). A user's file that is not an
image becomes a line of text, so that the model can say that it does not see it.

Source: the API reference of OpenAI, "Create chat completion"; parts as in `UIMessage` of the npm package `ai`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.wire.codec import encode_json
from penstock.wire.messages import UIMessage

DENIED = "The user did not allow this tool call."


def openai_messages(messages: Sequence[UIMessage]) -> list[dict[str, Any]]:
    """Return the conversation as the API wants it.

    Raises LocalProtocolError if a tool's input or output has no JSON form.
    """
    translated: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "assistant":
            translated.extend(_assistant(message.parts))
        elif message.role == "user":
            translated.append({"role": "user", "content": _user_content(message.parts)})
        else:
            translated.append({"role": "system", "content": message.text})
    return translated


def _user_content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    content = [piece for part in parts if (piece := _user_piece(part)) is not None]
    if all(piece["type"] == "text" for piece in content):
        # Text alone goes as a string: small servers know no other form.
        return "\n".join(piece["text"] for piece in content)
    return content


def _user_piece(part: dict[str, Any]) -> dict[str, Any] | None:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "file", "url": str(url), "mediaType": str(media_type)}:
            if media_type.startswith("image/") and url.startswith(("data:image/", "https://", "http://")):
                return {"type": "image_url", "image_url": {"url": url}}
            return {
                "type": "text",
                "text": f"[a file that can't be read here: {part.get('filename') or media_type}]",
            }
    return None


def _assistant(parts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cut one assistant message into model calls: text, then tool calls, then what the tools said."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    outcomes: list[dict[str, Any]] = []

    def model_call() -> Iterator[dict[str, Any]]:
        if calls:
            yield {"role": "assistant", "content": "".join(texts) or None, "tool_calls": calls.copy()}
            yield from outcomes
        elif texts:
            yield {"role": "assistant", "content": "".join(texts)}
        texts.clear()
        calls.clear()
        outcomes.clear()

    for part in parts:
        kind = str(part.get("type"))
        if kind == "step-start":
            yield from model_call()
        elif kind == "text" and isinstance(text := part.get("text"), str):
            if calls:
                yield from model_call()
            texts.append(text)
        elif (outcome := _outcome(part)) is not None:
            name = str(part.get("toolName")) if kind == "dynamic-tool" else kind.removeprefix("tool-")
            call_id = str(part.get("toolCallId"))
            arguments = encode_json(part.get("input") or {}).decode()
            calls.append(
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            )
            outcomes.append({"role": "tool", "tool_call_id": call_id, "content": outcome})
    yield from model_call()


def _outcome(part: dict[str, Any]) -> str | None:
    """Return what a tool part's call came to, as text; None if it is no tool part, or came to nothing yet."""
    if not str(part.get("type")).startswith(("tool-", "dynamic-tool")):
        return None
    match part.get("state"):
        case "output-available":
            output = part.get("output")
            return output if isinstance(output, str) else encode_json(output).decode()
        case "output-error":
            return str(part.get("errorText") or "The tool failed.")
        case "output-denied":
            return DENIED
    return None
