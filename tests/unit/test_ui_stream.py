"""The relay in front of a backend of the AI SDK: what it passes on, of transcripts of real routes, however they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from penstock.errors import (
    LocalProtocolError,
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnreadableError,
)
from penstock.relay.ui_stream import FORWARDED, UiStreamProtocol, UiStreamTranslator
from penstock.turns.turn import TurnRequest
from penstock.web.request import Headers
from penstock.wire.chunks import AnyChunk, Error, Finish, Start
from penstock.wire.codec import encode
from penstock.wire.grammar import Grammar
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent, SseParser
from penstock.wire.websocket import Send, read_client_frame

TRANSCRIPTS = Path(__file__).parent.parent / "data" / "ui-stream"
NEW = UIMessage(id="m", role="assistant", parts=[])


def asked(**part: Any) -> UIMessage:
    """Make an answer that stopped at a tool call, and goes on now."""
    call = {"type": "tool-delete", "toolCallId": "call-delete", "input": {"file": "a"}, **part}
    return UIMessage(id="m", role="assistant", parts=[{"type": "step-start"}, call])


def translate(pieces: Iterable[bytes], message: UIMessage = NEW) -> list[AnyChunk]:
    """Parse and translate a body that arrives in pieces."""
    parser = SseParser()
    translator = UiStreamTranslator(message)
    chunks: list[AnyChunk] = []
    for piece in pieces:
        for event in parser.feed(piece):
            chunks.extend(translator.feed(event))
    chunks.extend(translator.finish())
    return chunks


def events(*chunks: Any, end: str = "data: [DONE]\n\n") -> bytes:
    """Make a body of chunks."""
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + end.encode()


def transcript(name: str) -> bytes:
    """Read a recorded stream."""
    return (TRANSCRIPTS / f"{name}.sse").read_bytes()


def sent(body: bytes) -> list[Any]:
    """Decode what a body holds."""
    return [json.loads(event.data) for event in SseParser().feed(body) if event.data != "[DONE]"]


def passed_on(chunks: Iterable[AnyChunk]) -> list[Any]:
    """Show chunks as their JSON."""
    return [json.loads(encode(chunk)) for chunk in chunks]


@pytest.mark.parametrize("name", ["all-7", "data-7", "error-7", "approved-7"])
def test_what_a_real_route_sends_is_passed_on_as_it_is(name: str) -> None:
    assert passed_on(translate([transcript(name)])) == sent(transcript(name))


@pytest.mark.parametrize("name", ["all-7", "data-7", "invalid-6", "merged-7"])
def test_what_a_real_route_sends_is_legal(name: str) -> None:
    """As a turn takes it: without the beginning and the end of its own."""
    grammar = Grammar()
    grammar.apply(Start())
    for chunk in translate([transcript(name)]):
        if not isinstance(chunk, Start | Finish):
            grammar.apply(chunk)
    grammar.apply(Finish())


@pytest.mark.parametrize("name", ["all-7", "data-7", "invalid-6", "error-7"])
def test_the_cut_makes_no_difference(name: str) -> None:
    body = transcript(name)
    whole = translate([body])
    for cut in range(1, len(body)):
        assert translate([body[:cut], body[cut:]]) == whole
    assert translate(bytes([byte]) for byte in body) == whole


@pytest.mark.parametrize("name", ["all-7", "data-7"])
def test_a_stream_that_ends_anywhere_before_finish_is_cut_off(name: str) -> None:
    """After `finish` it is whole: some backends write no end marker."""
    body = transcript(name)
    finish_ends = body.index(b"\n\n", body.index(b'{"type":"finish",')) + 2
    for length in range(len(body)):
        if length < finish_ends:
            with pytest.raises(UpstreamTruncatedError):
                translate([body[:length]])
        else:
            assert isinstance(translate([body[:length]])[-1], Finish) or name == "data-7"


def test_only_the_end_marker_says_that_nothing_more_comes() -> None:
    """Data may follow `finish`; what follows the marker is ignored."""
    translator = UiStreamTranslator(NEW)
    for event in SseParser().feed(events({"type": "finish"}, {"type": "data-title", "data": 1}, end="")):
        assert translator.feed(event)
        assert not translator.whole
    translator.feed(ServerSentEvent("message", "[DONE]", ""))
    assert translator.whole
    assert translator.ended
    assert translator.feed(ServerSentEvent("message", '{"type":"data-late","data":1}', "")) == ()


def test_a_stream_without_finish_may_end_with_the_marker() -> None:
    """As with `sendFinish: false`."""
    assert len(translate([events({"type": "start-step"}, {"type": "finish-step"})])) == 2


def test_what_a_continued_turn_has_already_is_left_out() -> None:
    """The user's denial was in the request, and the backend says it again."""
    approval = {"id": "a", "approved": False, "reason": "so be it"}
    denied = asked(state="output-denied", approval=approval)
    kinds = [chunk.kind for chunk in translate([transcript("denied-7")], denied)]
    assert kinds[:3] == ["start", "start-step", "text-start"]
    response = {"type": "tool-approval-response", "approvalId": "a", "approved": False}
    assert translate([events(response)], denied) == []
    waiting = asked(state="approval-requested", approval={"id": "a"})
    denial = {"type": "tool-output-denied", "toolCallId": "call-delete"}
    assert passed_on(translate([events(response, denial)], waiting)) == [response, denial]


def test_an_input_error_is_said_once() -> None:
    """`ai` 6 says it as the input's and as the output's."""
    body = transcript("invalid-6")
    says = [chunk for chunk in sent(body) if chunk["type"].endswith("-error")]
    assert [chunk["type"] for chunk in says] == ["tool-input-error", "tool-output-error"]
    assert says[0]["errorText"] == says[1]["errorText"]
    assert passed_on(translate([body])) == [chunk for chunk in sent(body) if chunk != says[1]]


def test_a_tool_that_turns_out_to_be_unknown_stays_one_part() -> None:
    """`ai` finds that it is dynamic only with the whole input."""
    call = {"toolCallId": "c", "toolName": "nope"}
    start = {"type": "tool-input-start", **call}
    bad = {"type": "tool-input-error", **call, "input": {}, "errorText": "no such tool"}
    chunks = translate([events(start, {**bad, "dynamic": True})])
    assert passed_on(chunks) == [start, bad]
    dynamic = {**start, "dynamic": True}
    output = {"type": "tool-output-available", "toolCallId": "c", "output": 1}
    known = {"type": "tool-input-available", **call, "input": {}}
    assert passed_on(translate([events(dynamic, known, output)])) == [
        dynamic,
        {**known, "dynamic": True},
        {**output, "dynamic": True},
    ]
    earlier = asked(type="dynamic-tool", toolName="nope", toolCallId="c", state="input-available")
    assert passed_on(translate([events(output)], earlier)) == [{**output, "dynamic": True}]


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"type":"text-delta","id":"t"}',
        '{"type":"text-delta","id":"t","delta":null}',
        '{"type":"start","messageId":1}',
        '{"type":"text-delta","id":"t","delta":"a"',
        '{"type":"a-kind-of-ai-9"}',
    ],
)
def test_what_is_no_chunk_is_one_clear_error(data: str) -> None:
    with pytest.raises(
        UpstreamUnreadableError, match="a chunk of the upstream's can't be passed on"
    ) as raised:
        UiStreamTranslator(NEW).feed(ServerSentEvent("message", data, ""))
    assert raised.value.error_text == "The model's answer could not be understood."


@pytest.mark.parametrize("data", ["[" * 200 + "]" * 200, json.dumps("a" * (1 << 20))])
def test_a_chunk_beyond_the_limits_is_too_long(data: str) -> None:
    """As an image is that comes as a `data:` URL."""
    with pytest.raises(UpstreamTooLongError):
        UiStreamTranslator(NEW).feed(ServerSentEvent("message", f'{{"type":"data-x","data":{data}}}', ""))


def test_fields_that_no_client_knows_are_left_out() -> None:
    chunk = {"type": "text-start", "id": "t"}
    assert passed_on(translate([events({**chunk, "seq": 1})])) == [chunk]


def test_what_is_not_legal_is_the_grammars_business() -> None:
    """It passes here, and the turn refuses it."""
    [delta] = translate([events({"type": "text-delta", "id": "t", "delta": "a"})])
    grammar = Grammar()
    grammar.apply(Start())
    with pytest.raises(LocalProtocolError, match="is not open"):
        grammar.apply(delta)


def test_an_error_chunk_ends_the_stream_well_enough() -> None:
    """It says itself that the turn failed."""
    assert translate([events({"type": "error", "errorText": "No."}, end="")]) == [Error(error_text="No.")]
    assert translate([events({"type": "abort"}, end="")])


def test_one_json_answer_is_its_text() -> None:
    translator = UiStreamTranslator(NEW)
    text = "é" * 20_000
    chunks = passed_on(translator.feed_answer(json.dumps({"text": text, "usage": {}})))
    assert [chunk["type"] for chunk in (chunks[0], chunks[-1])] == ["start-step", "finish-step"]
    assert "".join(chunk.get("delta", "") for chunk in chunks) == text
    assert translator.whole
    assert translator.finish() == ()
    for body in ("", "[]", '{"error":"no"}'):
        with pytest.raises(UpstreamUnreadableError):
            UiStreamTranslator(NEW).feed_answer(body)


class _Turn(NamedTuple):
    """What a protocol sees of a turn."""

    request: TurnRequest | None
    id: str = "msg_1"
    chat_id: str = "c"
    messages: tuple[UIMessage, ...] = ()
    body: Mapping[str, Any] = MappingProxyType({})


def headers_of(turn: _Turn, *forwarded: str, api_key: str = "") -> Mapping[str, str]:
    """Return what a backend is sent beside content types."""
    return UiStreamProtocol(forward_headers=forwarded).headers(turn, api_key)  # type: ignore[arg-type]


def test_only_headers_that_are_allowed_go_along() -> None:
    came = {
        "host": "h",
        "cookie": "a=1",
        "authorization": "Bearer user",
        "user-agent": "x",
        "content-length": "7",
    }
    turn = _Turn(TurnRequest(b"{}", came))
    assert headers_of(turn) == {"x-penstock-turn": "msg_1", "user-agent": "x"}
    assert headers_of(turn, "Cookie")["cookie"] == "a=1"
    assert "authorization" not in headers_of(turn, "Cookie")


def test_whoever_is_asked_for_is_either_the_user_or_the_server() -> None:
    """A user who has not signed in doesn't get the server's own rights."""
    user, nobody = _Turn(TurnRequest(b"{}", {"authorization": "Bearer user"})), _Turn(TurnRequest(b"{}", {}))
    assert headers_of(user, api_key="key")["authorization"] == "Bearer key"
    assert headers_of(user, "authorization", api_key="key")["authorization"] == "Bearer user"
    assert "authorization" not in headers_of(nobody, "authorization", api_key="key")


def test_a_programs_own_turn_is_asked_as_a_client_would() -> None:
    message = UIMessage(id="u", role="user", parts=[{"type": "text", "text": "Hello"}])
    turn = _Turn(None, messages=(message,), body={"custom": 1})
    assert json.loads(UiStreamProtocol().body(turn)) == {  # type: ignore[arg-type]
        "custom": 1,
        "id": "c",
        "messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}],
        "trigger": "submit-message",
    }
    assert set(headers_of(turn)) == {"x-penstock-turn"}


def test_a_websockets_frame_is_the_request_that_a_post_would_be() -> None:
    """Of its own headers only an authorization counts: no proxy has seen them."""
    message = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}
    chat = {"id": "c", "messages": [message], "trigger": "submit-message", "messageId": "m"}
    frame = {
        **chat,
        "type": "send",
        "requestId": "r",
        "headers": {"Authorization": "Bearer user", "x-user": "admin"},
        "body": {"custom": 1, "id": "other"},
        "metadata": {"a": 1},
    }
    send = read_client_frame(json.dumps(frame).encode())
    assert isinstance(send, Send)
    scope = {"headers": [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-b", b"1"), (b"x-b", b"2")]}
    request = TurnRequest(send.fields, Headers(scope, send.headers))
    assert json.loads(request.body) == {"custom": 1, **chat}
    assert request.headers == {"cookie": "a=1; b=2", "x-b": "1, 2", "authorization": "Bearer user"}
    assert Headers({"headers": [(b"authorization", b"proxy")]}, send.headers) == {"authorization": "proxy"}
    assert "user" not in repr(request)
    for no_header in ("", "a\r\nx-role: admin", " a", "\u20ac"):
        assert Headers({"headers": []}, {"authorization": no_header}) == {}


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        ("text/plain; charset=utf-8", "Your plan has no more answers.\n", "Your plan has no more answers."),
        ("application/json", '{"error": "no"}', '{"error": "no"}'),
        ("text/html", "<h1>Oh</h1>", None),
        ("", "noise", None),
        ("text/plain", " ", None),
    ],
)
def test_a_refusal_is_shown_as_the_sdks_client_shows_it(kind: str, body: str, sentence: str | None) -> None:
    """But for pages."""
    assert UiStreamProtocol().refusal(kind, body) == sentence


@pytest.mark.parametrize(
    "name", ["Host", "content-length", "Transfer-Encoding", "proxy-authorization", "x-penstock-turn"]
)
def test_headers_of_the_connection_and_of_the_body_are_never_passed_on(name: str) -> None:
    with pytest.raises(ValueError, match=name.lower()):
        UiStreamProtocol(forward_headers=[name])
    assert name.lower() not in FORWARDED
