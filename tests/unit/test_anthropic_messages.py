"""The relay's request: a conversation of UI messages as Anthropic wants it."""

from __future__ import annotations

import itertools
from typing import Any, cast

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_parts import OUTCOMES, UNFINISHED, text, tool
from penstock.limits import RELAY
from penstock.relay.anthropic import AnthropicProtocol
from penstock.relay.anthropic_messages import anthropic_conversation
from penstock.relay.tool_schema import ToolSchema
from penstock.turns.turn import Turn
from penstock.wire.messages import Role, UIMessage


def translate(role: Role, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Translate one message."""
    return anthropic_conversation([UIMessage(id="m", role=role, parts=list(parts))])[1]


def block(words: str) -> dict[str, Any]:
    """Make a text block."""
    return {"type": "text", "text": words}


USE = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "é"}}


def test_the_system_prompt_stands_apart_and_roles_take_turns() -> None:
    """Messages of the same role become one, and empty text is no text."""
    assert anthropic_conversation(
        [
            UIMessage(id="1", role="system", parts=[text("Be "), text("brief.")]),
            UIMessage(id="2", role="user", parts=[text("a"), text(" \n"), {"type": "data-x", "data": 1}]),
            UIMessage(id="3", role="user", parts=[text("b")]),
            UIMessage(id="4", role="assistant", parts=[{"type": "step-start"}, text("c")]),
            UIMessage(id="5", role="user", parts=[]),
            UIMessage(id="6", role="assistant", parts=[text("d")]),
            UIMessage(id="7", role="system", parts=[text("Now long.")]),
        ]
    ) == (
        [block("Be brief."), block("Now long.")],
        [
            {"role": "user", "content": [block("a"), block("b")]},
            {"role": "assistant", "content": [block("c"), block("d")]},
        ],
    )


@pytest.mark.parametrize(
    ("media_type", "url", "sent"),
    [
        (
            "image/png",
            "data:image/png;base64,AAA=",
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAA="}},
        ),
        (
            "image/webp",
            "https://example.org/a.webp",
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.webp"}},
        ),
        (
            "application/pdf",
            "data:application/pdf;base64,AAAA",
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
            },
        ),
        (
            "application/pdf",
            "https://example.org/a.pdf",
            {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
        ),
        ("image/svg+xml", "data:image/svg+xml;base64,AAAA", block("[a file that can't be read here: f]")),
        ("image/png", "http://example.org/a.png", block("[a file that can't be read here: f]")),
        ("image/png", "data:image/jpeg;base64,AAAA", block("[a file that can't be read here: f]")),
        ("image/png", "data:image/png,AAAA", block("[a file that can't be read here: f]")),
        ("image/png", "file:///etc/passwd", block("[a file that can't be read here: f]")),
    ],
)
def test_images_and_pdfs_go_along_and_other_files_are_mentioned(
    media_type: str, url: str, sent: dict[str, Any]
) -> None:
    """In the formats that the API takes, by data or by a safe address."""
    file = {"type": "file", "mediaType": media_type, "url": url, "filename": "f"}
    assert translate("user", file) == [{"role": "user", "content": [sent]}]


@pytest.mark.parametrize(("part", "content", "failed"), OUTCOMES)
def test_a_finished_call_is_answered(part: dict[str, Any], content: str, failed: bool) -> None:
    """By the user, right after it."""
    result = {"type": "tool_result", "tool_use_id": "c1", "content": content}
    assert translate("assistant", text("Wait."), part, text("Done.")) == [
        {"role": "assistant", "content": [block("Wait."), USE]},
        {"role": "user", "content": [{**result, "is_error": True} if failed else result]},
        {"role": "assistant", "content": [block("Done.")]},
    ]


@pytest.mark.parametrize("part", UNFINISHED)
def test_an_unfinished_call_is_left_out(part: dict[str, Any]) -> None:
    """The API refuses a call without a result."""
    assert translate("assistant", part) == []


def test_results_come_before_what_the_user_says_next() -> None:
    """In one message: the API wants them first, and the roles in turn."""
    calls = [tool("output-available", output=1), tool("output-available", output=2, toolCallId="c2")]
    _, messages = anthropic_conversation(
        [
            UIMessage(id="1", role="assistant", parts=calls),
            UIMessage(id="2", role="user", parts=[text("Go on.")]),
        ]
    )
    assert [message["role"] for message in messages] == ["assistant", "user"]
    assert [one["type"] for one in messages[1]["content"]] == ["tool_result", "tool_result", "text"]


def test_thinking_goes_back_as_it_came() -> None:
    """With its signature, in its place; without one it is another provider's."""
    assert translate(
        "assistant",
        {"type": "reasoning", "text": "Hm.", "providerMetadata": {"anthropic": {"signature": "s"}}},
        {"type": "reasoning", "text": "", "providerMetadata": {"anthropic": {"redactedData": "d"}}},
        {"type": "reasoning", "text": "Theirs.", "providerMetadata": {"openai": {"itemId": "rs"}}},
        {"type": "reasoning", "text": "Nobody's."},
        text("I look."),
        tool("output-available", output=1),
    )[0]["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        block("I look."),
        USE,
    ]


@pytest.mark.parametrize(("given_input", "sent"), [(None, {}), ([1], {"input": [1]}), ("x", {"input": "x"})])
def test_an_input_is_an_object(given_input: Any, sent: dict[str, Any]) -> None:
    """And an id is of the form that the API demands."""
    part = tool("output-error", errorText="bad", input=given_input, toolCallId="call:1.a")
    assistant, user = translate("assistant", part)
    assert assistant["content"] == [{**USE, "id": "call_1_a", "input": sent}]
    assert user["content"][0]["tool_use_id"] == "call_1_a"


PARTS = st.sampled_from(
    [
        {"type": "step-start"},
        text("a"),
        text(" "),
        tool("output-available", output=1),
        tool("output-error", errorText="e", toolCallId="c2"),
        tool("input-available", toolCallId="c3"),
        {"type": "reasoning", "text": "t", "providerMetadata": {"anthropic": {"signature": "s"}}},
        {"type": "file", "mediaType": "image/png", "url": "https://example.org/a.png"},
        {"type": "data-x", "data": 1},
    ]
)
ROLES: st.SearchStrategy[Role] = st.sampled_from(["user", "assistant", "system"])


@given(st.lists(st.tuples(ROLES, st.lists(PARTS, max_size=6)), max_size=6))
def test_whatever_the_conversation_the_rules_hold(said: list[tuple[Role, list[dict[str, Any]]]]) -> None:
    """Roles take turns, nothing is empty, and every call has its result first in the next message."""
    _, messages = anthropic_conversation(
        [UIMessage(id=str(number), role=role, parts=parts) for number, (role, parts) in enumerate(said)]
    )
    roles = [message["role"] for message in messages]
    assert all(one != other for one, other in itertools.pairwise(roles))
    for message, following in itertools.pairwise([*messages, None]):
        assert message is not None
        assert message["content"]
        if message["role"] == "assistant":
            calls = [one["id"] for one in message["content"] if one["type"] == "tool_use"]
            if calls:
                assert following is not None
                results = following["content"][: len(calls)]
                assert [one.get("tool_use_id") for one in results] == calls


class Asked:
    """What a protocol reads of a turn."""

    messages = (
        UIMessage(id="s", role="system", parts=[text("Be brief.")]),
        UIMessage(id="u", role="user", parts=[text("Hi")]),
    )


@pytest.mark.parametrize(
    ("own", "system"),
    [
        ({}, [block("Be brief.")]),
        ({"system": "Be kind."}, [block("Be kind."), block("Be brief.")]),
        ({"system": [block("Be kind.")]}, [block("Be kind."), block("Be brief.")]),
    ],
)
def test_the_request(own: dict[str, Any], system: list[dict[str, Any]]) -> None:
    """The app's own system prompt comes first; a number of tokens is demanded, and there is one."""
    turn = cast("Turn", Asked())
    body = {"system": system, "model": "m", "stream": True}
    messages = [{"role": "user", "content": [block("Hi")]}]
    assert msgspec.json.decode(AnthropicProtocol("m", own).body(turn)) == {
        **body,
        "messages": messages,
        "max_tokens": RELAY.max_tokens,
    }
    assert msgspec.json.decode(AnthropicProtocol("m", {**own, "max_tokens": 7}).body(turn))["max_tokens"] == 7
    look = ToolSchema("look", "Looks.", {"type": "object"})
    asked = msgspec.json.decode(AnthropicProtocol("m", {"tools": [1]}).model_body(turn.messages, [look]))
    assert asked["tools"] == [
        1,
        {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}},
    ]
    assert AnthropicProtocol("m").headers(turn, "k") == {"anthropic-version": "2023-06-01", "x-api-key": "k"}
    assert AnthropicProtocol("m").headers(turn, "") == {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com/v1/messages"),
        ("http://h/v1/", "http://h/v1/messages"),
        ("http://h/proxy/messages", "http://h/proxy/messages"),
    ],
)
def test_where_to_ask(base: str, url: str) -> None:
    """For the API's base or for the endpoint itself."""
    assert str(AnthropicProtocol("m").url(httpx2.URL(base))) == url
