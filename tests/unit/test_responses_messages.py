"""The relay's request: a conversation of UI messages as `/responses` wants it."""

from __future__ import annotations

from typing import Any, cast

import httpx2
import msgspec
import pytest

from message_parts import OUTCOMES, UNFINISHED, text, tool
from penstock.relay.responses_messages import responses_input
from penstock.relay.responses_protocol import ResponsesProtocol
from penstock.relay.tool_schema import ToolSchema
from penstock.turns.turn import Turn
from penstock.wire.messages import Role, UIMessage


def translate(role: Role, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Translate one message."""
    return responses_input([UIMessage(id="m", role=role, parts=list(parts))])


def reasoning(words: str, **kept: str) -> dict[str, Any]:
    """Make a reasoning part with what was kept of its item."""
    return {"type": "reasoning", "text": words, "providerMetadata": {"openai": kept}}


CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at":"é"}'}


def test_text_is_a_string() -> None:
    """The simplest form of an item is the one that all servers know."""
    assert responses_input(
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


@pytest.mark.parametrize(
    ("media_type", "url", "piece"),
    [
        ("image/png", "data:image/png;base64,AAAA", {"type": "input_image", "detail": "auto"}),
        ("image/png", "https://example.org/a.png", {"type": "input_image", "detail": "auto"}),
        ("application/pdf", "data:application/pdf;base64,AA", {"type": "input_file", "filename": "a.pdf"}),
        ("application/pdf", "https://example.org/a.pdf", {"type": "input_file"}),
    ],
)
def test_images_and_pdfs_go_along(media_type: str, url: str, piece: dict[str, Any]) -> None:
    """By data or by address."""
    [item] = translate(
        "user", text("See:"), {"type": "file", "mediaType": media_type, "url": url, "filename": "a.pdf"}
    )
    assert item["content"][0] == {"type": "input_text", "text": "See:"}
    sent = item["content"][1]
    assert url in sent.values()
    assert piece.items() <= sent.items()


@pytest.mark.parametrize(
    "file",
    [
        {"mediaType": "text/csv", "url": "data:text/csv,a", "filename": "a.csv"},
        {"mediaType": "image/png", "url": "file:///etc/passwd", "filename": "a.csv"},
        {"mediaType": "application/pdf", "url": "data:text/html,x", "filename": "a.csv"},
    ],
)
def test_another_file_is_mentioned(file: dict[str, Any]) -> None:
    """The model can say that it does not see it."""
    assert translate("user", {"type": "file", **file}) == [
        {"role": "user", "content": "[a file that can't be read here: a.csv]"}
    ]


@pytest.mark.parametrize(("part", "output", "_"), OUTCOMES)
def test_a_finished_call_is_answered(part: dict[str, Any], output: str, _: bool) -> None:
    """Every call has its output right after it."""
    assert translate("assistant", text("Wait."), part, text("Done.")) == [
        {"role": "assistant", "content": "Wait."},
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": output},
        {"role": "assistant", "content": "Done."},
    ]


@pytest.mark.parametrize("part", UNFINISHED)
def test_an_unfinished_call_is_left_out(part: dict[str, Any]) -> None:
    """A server refuses a call without an output."""
    assert translate("assistant", part) == []


def test_parallel_calls_stay_together_and_steps_apart() -> None:
    """One model call: all its calls, then all their outputs."""
    first, second = tool("output-available", output=1), tool("output-available", output=2, toolCallId="c2")
    shown = translate("assistant", {"type": "step-start"}, first, second, {"type": "step-start"}, first)
    assert [(item["type"].removeprefix("function_"), item["call_id"]) for item in shown] == [
        ("call", "c1"),
        ("call", "c2"),
        ("call_output", "c1"),
        ("call_output", "c2"),
        ("call", "c1"),
        ("call_output", "c1"),
    ]


def test_a_tool_whose_input_is_text_gets_it_as_text() -> None:
    """A custom tool's calls and outputs have names of their own."""
    assert translate("assistant", tool("output-available", input="select 1;", output="1")) == [
        {"type": "custom_tool_call", "call_id": "c1", "name": "look", "input": "select 1;"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "1"},
    ]


def test_reasoning_goes_back_encrypted_within_the_turn() -> None:
    """Put together from its parts; what is not encrypted, or of an earlier turn, stays away."""
    parts = [
        {"type": "step-start"},
        reasoning("One. ", itemId="rs_1"),
        reasoning("Two.", itemId="rs_1", reasoningEncryptedContent="e=="),
        reasoning("", itemId="rs_2", reasoningEncryptedContent="f=="),
        reasoning("Not kept.", itemId="rs_3"),
        {"type": "reasoning", "text": "Another provider's."},
        text("I look.", providerMetadata={"openai": {"phase": "commentary"}}),
        tool("output-available", output=1),
    ]
    user = UIMessage(id="u", role="user", parts=[text("Go.")])
    assistant = UIMessage(id="a", role="assistant", parts=parts)
    said = {"role": "assistant", "content": "I look.", "phase": "commentary"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "1"}
    assert responses_input([user, assistant])[1:] == [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [
                {"type": "summary_text", "text": "One. "},
                {"type": "summary_text", "text": "Two."},
            ],
            "encrypted_content": "e==",
        },
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "f=="},
        said,
        CALL,
        output,
    ]
    assert responses_input([user, assistant, user])[1:-1] == [said, CALL, output]


def test_what_a_model_cannot_use_is_left_out() -> None:
    """Sources, files of the answer, text that is none, and a broken input."""
    assert translate(
        "assistant",
        {"type": "source-url", "sourceId": "s", "url": "https://example.org"},
        {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"},
        {"type": "text"},
        text(""),
        {"type": "tool-look", "toolCallId": "c1", "state": "output-error", "errorText": "bad"},
    ) == [
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "bad"},
    ]


class Asked:
    """What a protocol reads of a turn."""

    messages = (UIMessage(id="u", role="user", parts=[text("Hi")]),)


def test_the_request() -> None:
    """The answer is stored, unless the app says otherwise; what makes the stream is ours."""
    turn = cast("Turn", Asked())
    extra = {"background": True, "store": False, "model": "other", "stream": False}
    assert msgspec.json.decode(ResponsesProtocol("m").body(turn)) == {
        "store": True,
        "model": "m",
        "input": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }
    assert msgspec.json.decode(ResponsesProtocol("m", extra).body(turn)) == {
        "background": True,
        "store": False,
        "model": "m",
        "input": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }
    look = ToolSchema("look", "Looks.", {"type": "object"})
    asked = msgspec.json.decode(ResponsesProtocol("m").model_body(turn.messages, [look]))
    assert asked["tools"] == [
        {
            "type": "function",
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object"},
            "strict": False,
        }
    ]
    assert ResponsesProtocol("m").headers(turn, "") == {}
    assert ResponsesProtocol("m").headers(turn, "k") == {"authorization": "Bearer k"}


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h", "http://h/v1/responses"),
        ("http://h/", "http://h/v1/responses"),
        ("http://h/api/v2/", "http://h/api/v2/responses"),
        ("http://h/v1/responses", "http://h/v1/responses"),
        ("http://h/openai/v1?api-version=1", "http://h/openai/v1/responses?api-version=1"),
    ],
)
def test_where_to_ask(base: str, url: str) -> None:
    """For the API's base or for the endpoint itself."""
    assert str(ResponsesProtocol("m").url(httpx2.URL(base))) == url
