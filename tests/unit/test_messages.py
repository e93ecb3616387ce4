"""Chat requests, as the real client sends them and as others may."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import LimitExceededError, RemoteProtocolError
from penstock.limits import WireLimits
from penstock.wire.codec import convert, decode_json, encode_json
from penstock.wire.messages import ChatRequest, UIMessage, check_chat_id, read_chat_request

USER: dict[str, Any] = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}
ASSISTANT: dict[str, Any] = {
    "id": "a1",
    "role": "assistant",
    "metadata": {"model": "eliza", "usage": None},
    "parts": [
        {"type": "step-start"},
        {"type": "text", "text": "Hi", "state": "done"},
        {"type": "tool-weather", "toolCallId": "k", "state": "output-available", "input": {}, "output": None},
        {"type": "text", "text": " there"},
    ],
}


def read(limits: WireLimits | None = None, **fields: Any) -> ChatRequest:
    data = json.dumps({"id": "c1"} | fields).encode()
    return read_chat_request(data) if limits is None else read_chat_request(data, limits)


def refusal(limits: WireLimits | None = None, **fields: Any) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        read(limits, **fields)
    assert caught.value.status == (413 if isinstance(caught.value, LimitExceededError) else 400)
    return str(caught.value)


def test_the_whole_history_form() -> None:
    request = read(
        messages=[USER, ASSISTANT], trigger="regenerate-message", messageId="a1", model="big", n=None
    )
    assert request.chat_id == "c1"
    assert [message.id for message in request.messages] == ["u1", "a1"]
    assert request.message is None
    assert request.trigger == "regenerate-message"
    assert request.message_id == "a1"
    assert request.body == {"model": "big", "n": None}


def test_the_last_message_form() -> None:
    request = read(message=USER)
    assert request.messages == []
    assert request.message == UIMessage(id="u1", role="user", parts=USER["parts"])
    assert request.trigger == "submit-message"
    assert request.message_id is None
    assert request.body == {}


def test_both_forms_together() -> None:
    request = read(messages=[USER], message=USER)
    assert [request.message] == request.messages


def test_null_is_absence_for_clients_that_are_not_javascript() -> None:
    request = read(message=USER | {"metadata": None}, messageId=None)
    assert request.message_id is None
    assert request.message is not None
    assert json.loads(encode_json(request.message)) == USER


@pytest.mark.parametrize("message", [USER, ASSISTANT])
def test_a_message_comes_back_as_it_was(message: dict[str, Any]) -> None:
    request = read(messages=[message])
    assert json.loads(encode_json(request.messages)) == [message]
    assert convert(decode_json(encode_json(request.messages[0])), UIMessage, "It") == request.messages[0]


def test_top_level_fields_of_a_message_that_no_client_has_are_dropped() -> None:
    message = read(message=USER | {"createdAt": 1, "content": "Hello"}).message
    assert json.loads(encode_json(message)) == USER


def test_the_text_of_a_message_is_that_of_its_text_parts() -> None:
    assert convert(ASSISTANT, UIMessage, "It").text == "Hi there"
    assert (
        UIMessage(
            id="1", role="user", parts=[{"type": "text", "text": 5}, {"type": "file", "text": "x"}]
        ).text
        == ""
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "The request has no message."),
        ({"messages": []}, "The request has no message."),
        ({"messages": {}}, "The request has a wrong value at messages."),
        ({"messages": [USER, "EVIL"]}, "The request has a wrong value at messages[1]."),
        ({"messages": [USER, USER | {"role": "EVIL"}]}, "The request has a wrong value at messages[1].role."),
        ({"message": USER | {"role": "tool"}}, "The request has a wrong value at message.role."),
        ({"message": {"id": "u1", "role": "user"}}, "The request lacks parts in message."),
        ({"message": USER | {"parts": [1]}}, "The request has a wrong value at message.parts[0]."),
        ({"message": USER | {"id": 5}}, "The request has a wrong value at message.id."),
        ({"messages": [USER], "trigger": "EVIL"}, "The request has a wrong value at trigger."),
        ({"messages": [USER], "messageId": 5}, "The request has a wrong value at messageId."),
        ({"messages": [USER, ASSISTANT, USER]}, "The request has two messages with the same id."),
        ({"id": 5, "messages": [USER]}, "The request has a wrong value at id."),
    ],
)
def test_what_is_wrong_with_a_request_is_said_without_echo(fields: dict[str, Any], sentence: str) -> None:
    assert refusal(**fields) == sentence


@pytest.mark.parametrize("part", [{}, {"type": None}, {"type": 5}, {"text": "x"}])
def test_a_part_without_a_type_is_refused(part: dict[str, Any]) -> None:
    assert "string as its type" in refusal(message=USER | {"parts": [part]})
    assert "string as its type" in refusal(messages=[USER | {"parts": [*USER["parts"], part]}])


@pytest.mark.parametrize("bad", ["", "x" * 129, "a\nb", "\0", "a\x7f", "\x85", "\u2028", "a\r\n\r\nb"])
def test_a_message_id_is_short_and_without_control_characters(bad: str) -> None:
    assert "message id" in refusal(messages=[USER | {"id": bad}])
    assert "message id" in refusal(message=USER | {"id": bad})
    assert "message id" in refusal(message=USER, messageId=bad)


@pytest.mark.parametrize("good", ["x", "x" * 128, "msg_ab-12.3~", "mensagem é 1", "消息"])
def test_any_printable_message_id_is_taken(good: str) -> None:
    request = read(message=USER | {"id": good}, messageId=good)
    assert request.message is not None
    assert request.message.id == request.message_id == good


def test_a_body_that_is_no_object_is_refused() -> None:
    for data in (b"[]", b"null", b'"x"'):
        with pytest.raises(RemoteProtocolError, match=r"^The request must be a JSON object\.$"):
            read_chat_request(data)
    with pytest.raises(RemoteProtocolError, match=r"^The request lacks id\.$"):
        read_chat_request(b'{"messages":[]}')


def test_counts_are_bounded() -> None:
    limits = WireLimits(messages=2, message_parts=3, json_bytes=2_000)
    three = [USER | {"id": str(n)} for n in range(3)]
    assert len(read(limits, messages=three[:2]).messages) == 2
    assert refusal(limits, messages=three) == "The request has too many messages."
    assert read(limits, message=USER | {"parts": USER["parts"] * 3})
    assert (
        refusal(limits, message=USER | {"parts": USER["parts"] * 4})
        == "A message of the request has too many parts."
    )
    assert refusal(limits, message=USER, extra="x" * 2_000) == "The JSON is too long."


@pytest.mark.parametrize("good", ["a", "x" * 128, "AZaz09._~-", "...", ".a", "-"])
def test_a_chat_id_is_returned(good: str) -> None:
    assert check_chat_id(good) == good
    assert read(id=good, message=USER).chat_id == good


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "x" * 129, "a b", "a/b", "a%2e", "é", "a\n", "٣", "a:b", "\0"]
)
def test_a_chat_id_that_is_unfit_for_a_path_is_refused(bad: str) -> None:
    with pytest.raises(RemoteProtocolError, match="chat id") as caught:
        check_chat_id(bad)
    assert caught.value.status == 400
    assert "chat id" in refusal(id=bad, message=USER)


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["user", "text", "c1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "role", "parts", "type", "metadata"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["id", "messages", "message", "trigger", "messageId", "x"]), JUNK))
def test_any_object_is_a_request_or_refused(fields: dict[str, Any]) -> None:
    try:
        request = read_chat_request(json.dumps(fields).encode())
    except RemoteProtocolError:
        return
    assert request.message is not None or request.messages
