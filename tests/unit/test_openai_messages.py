"""The relay's request: a conversation of UI messages as an OpenAI-compatible server wants it."""

from __future__ import annotations

from typing import Any

import pytest

from message_parts import OUTCOMES, UNFINISHED, text, tool
from penstock.relay.openai_messages import openai_messages
from penstock.wire.messages import Role, UIMessage


def translate(role: Role, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Translate one message."""
    return openai_messages([UIMessage(id="m", role=role, parts=list(parts))])


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"é"}'}}


def test_text_is_a_string() -> None:
    """Small servers know no other form."""
    assert openai_messages(
        [
            UIMessage(id="1", role="system", parts=[text("Be "), text("brief.")]),
            UIMessage(id="2", role="user", parts=[text("a"), text("b"), {"type": "data-x", "data": 1}]),
            UIMessage(id="3", role="assistant", parts=[{"type": "step-start"}, text("c")]),
            UIMessage(id="4", role="user", parts=[]),
        ]
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "https://example.org/a.png"])
def test_an_image_is_an_image(url: str) -> None:
    """By data or by address."""
    assert translate("user", text("What is it?"), {"type": "file", "mediaType": "image/png", "url": url}) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (
            {"mediaType": "application/pdf", "url": "data:application/pdf;base64,AAAA", "filename": "a.pdf"},
            "a.pdf",
        ),
        ({"mediaType": "image/png", "url": "file:///etc/passwd"}, "image/png"),
        ({"mediaType": "image/png", "url": "data:text/html,x"}, "image/png"),
    ],
)
def test_another_file_is_mentioned(file: dict[str, Any], name: str) -> None:
    """The model can say that it does not see it."""
    assert translate("user", {"type": "file", **file}) == [
        {"role": "user", "content": f"[a file that can't be read here: {name}]"}
    ]


@pytest.mark.parametrize(("part", "content", "_"), OUTCOMES)
def test_a_finished_call_is_answered(part: dict[str, Any], content: str, _: bool) -> None:
    """Every call has its answer, and the text after it is another message of the assistant."""
    assert translate("assistant", text("Wait."), part, text("Done.")) == [
        {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": content},
        {"role": "assistant", "content": "Done."},
    ]


@pytest.mark.parametrize("part", UNFINISHED)
def test_an_unfinished_call_is_left_out(part: dict[str, Any]) -> None:
    """A server refuses a call without an answer."""
    assert translate("assistant", part) == []


def test_parallel_calls_stay_together_and_steps_apart() -> None:
    """One model call, one message of the assistant."""
    first, second = tool("output-available", output=1), tool("output-available", output=2, toolCallId="c2")
    shown = translate("assistant", {"type": "step-start"}, first, second, {"type": "step-start"}, first)
    assert [message["role"] for message in shown] == ["assistant", "tool", "tool", "assistant", "tool"]
    assert [call["id"] for call in shown[0]["tool_calls"]] == ["c1", "c2"]
    assert shown[0]["content"] is None


def test_what_a_model_cannot_use_is_left_out() -> None:
    """Reasoning, sources, files of the answer, and a broken input."""
    assert translate(
        "assistant",
        {"type": "reasoning", "text": "hm"},
        {"type": "source-url", "sourceId": "s", "url": "https://example.org"},
        {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"},
        {"type": "text"},
        {
            "type": "tool-look",
            "toolCallId": "c1",
            "state": "output-error",
            "errorText": "bad",
            "rawInput": "{",
        },
    ) == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "bad"},
    ]
