"""The relay in front of a simple chat service: its frames, and the rest of an answer that broke off."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import httpx2
import pytest

from penstock.errors import UpstreamError, UpstreamTruncatedError, UpstreamUnreadableError
from penstock.relay.chat import ChatProtocol, ChatRecoverer, ChatTranslator
from penstock.relay.recovery import Missing
from penstock.relay.sentences import BUSY, FAILED
from penstock.testing import user_message
from penstock.wire.chunks import AnyChunk, Finish, Start, TextDelta
from penstock.wire.codec import encode
from penstock.wire.grammar import Grammar
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent, SseParser

BODY = (
    b': hello\n\ndata: {"kind":"conversation","id":"c-17"}\n\n'
    b'event: heartbeat\ndata: {}\n\ndata: {"kind":"meta","model":"m","upstream":"no","load":{"cpu":1}}\n\n'
    b'data: {"type":"chunk","text":"Die na\xc3\xafve "}\n\nevent: heartbeat\ndata\n\n'
    b'data: {"kind":"chunk","content":"Forelle \xf0\x9f\x90\x9f"}\n\nevent: other\ndata: {"kind":"chunk","text":"no"}\n\n'
    b'data: {"kind":"later","text":"no"}\n\n'
    b'data: {"kind":"done","finish_reason":"length","usage":{"input_tokens":2,"output_tokens":3}}\n\n'
    b'data: {"kind":"chunk","text":"no"}\n\n'
)
WHOLE = [
    {"type": "start-step"},
    {"type": "message-metadata", "messageMetadata": {"upstream": {"protocol": "chat", "id": "c-17"}}},
    {"type": "message-metadata", "messageMetadata": {"model": "m", "load": {"cpu": 1}}},
    {"type": "text-start", "id": "part-1"},
    {"type": "text-delta", "id": "part-1", "delta": "Die naïve "},
    {"type": "text-delta", "id": "part-1", "delta": "Forelle 🐟"},
    {"type": "text-end", "id": "part-1"},
    {"type": "finish-step"},
    {
        "type": "finish",
        "finishReason": "length",
        "messageMetadata": {"usage": {"inputTokens": 2, "outputTokens": 3, "totalTokens": 5}},
    },
]


class _Turn(NamedTuple):
    """What a recoverer sees of a turn."""

    messages: list[UIMessage]
    message: UIMessage
    ends: tuple[AnyChunk, ...] = ()
    in_step: bool = False

    @property
    def prompt(self) -> str:
        return self.messages[-1].text

    def open_text_ends(self) -> list[AnyChunk]:
        return list(self.ends)


def translate(pieces: Iterable[bytes]) -> list[AnyChunk]:
    """Parse and translate a body that arrives in pieces."""
    parser = SseParser()
    translator = ChatTranslator()
    chunks: list[AnyChunk] = []
    for piece in pieces:
        for event in parser.feed(piece):
            chunks.extend(translator.feed(event))
    chunks.extend(translator.finish())
    return chunks


def shown(chunks: Iterable[AnyChunk]) -> list[Any]:
    """Show chunks as their JSON."""
    return [json.loads(encode(chunk)) for chunk in chunks]


def feed(**frame: Any) -> list[AnyChunk]:
    """Translate one frame."""
    return list(ChatTranslator().feed(ServerSentEvent("message", json.dumps(frame), "")))


def test_an_answer_is_one_text_with_its_metadata() -> None:
    chunks = translate([BODY])
    assert shown(chunks) == WHOLE
    grammar = Grammar()
    for chunk in [Start(), *chunks]:
        grammar.apply(chunk)


def test_the_cut_makes_no_difference() -> None:
    for cut in range(1, len(BODY)):
        assert shown(translate([BODY[:cut], BODY[cut:]])) == WHOLE


def test_without_done_the_answer_is_cut_off() -> None:
    done = BODY.index(b"\n\n", BODY.index(b'"done"')) + 2
    for length in range(done):
        with pytest.raises(UpstreamTruncatedError):
            translate([BODY[:length]])
    assert shown(translate([BODY[:done]])) == WHOLE
    assert isinstance(translate([b'data: {"kind":"chunk","text":"a"}\n\ndata: [DONE]\n\n'])[-1], Finish)


def test_the_conversation_is_known_as_soon_as_it_is_said() -> None:
    [_, metadata] = feed(kind="conversation", conversation_id="c")
    assert shown([metadata]) == [
        {"type": "message-metadata", "messageMetadata": {"upstream": {"protocol": "chat", "id": "c"}}}
    ]
    twice = b'data: {"kind":"conversation","id":"d"}\n\n' + BODY
    assert shown(translate([twice]))[2] == WHOLE[2]
    for bad in ("", "..", "a/b", "a b", "é", 7, None):
        assert feed(kind="conversation", id=bad) == []


@pytest.mark.parametrize("data", ["", "{", "[]", "null", '"a"', "[" * 300 + "]" * 300])
def test_a_frame_that_is_no_object_is_one_clear_error(data: str) -> None:
    with pytest.raises(UpstreamUnreadableError):
        ChatTranslator().feed(ServerSentEvent("message", data, ""))


def test_an_error_keeps_its_words_for_the_log() -> None:
    with pytest.raises(UpstreamError, match="disk 7") as raised:
        feed(kind="error", message="disk 7 is full")
    assert raised.value.error_text == FAILED
    with pytest.raises(UpstreamError) as raised:
        feed(kind="error", code="rate_limit_exceeded")
    assert raised.value.error_text == BUSY


def test_one_json_answer_is_its_text() -> None:
    translator = ChatTranslator()
    chunks = shown(translator.feed_answer('{"text": "Hi.", "conversation_id": "c"}'))
    assert [chunk["type"] for chunk in chunks] == [
        "start-step",
        "message-metadata",
        "text-start",
        "text-delta",
        "text-end",
        "finish-step",
        "finish",
    ]
    assert translator.whole
    for body in ("{}", '{"error": "x"}', "[]", ""):
        with pytest.raises(UpstreamError):
            ChatTranslator().feed_answer(body)


@pytest.mark.parametrize(
    ("base", "endpoint", "turns"),
    [
        ("http://h", "http://h/chat", "http://h/chat/conversations/c/turns"),
        ("http://h/api/", "http://h/api/chat", "http://h/api/chat/conversations/c/turns"),
        ("http://h/api/chat", "http://h/api/chat", "http://h/api/chat/conversations/c/turns"),
        ("http://h/chat/stream", "http://h/chat/stream", "http://h/chat/conversations/c/turns"),
        ("http://h/chatty", "http://h/chatty/chat", "http://h/chatty/chat/conversations/c/turns"),
    ],
)
def test_where_to_ask(base: str, endpoint: str, turns: str) -> None:
    protocol = ChatProtocol()
    assert str(protocol.url(httpx2.URL(base))) == endpoint
    asked = protocol.recoverer(httpx2.URL(base), "key").request(broken("", id="c"))  # type: ignore[arg-type]
    assert asked is not None
    assert (asked.method, str(asked.url), asked.headers["authorization"]) == ("GET", turns, "Bearer key")


def broken(text: str, *questions: str, id: str | None = "c-17") -> _Turn:
    """Make a turn whose answer broke off after some text."""
    metadata = {} if id is None else {"upstream": {"protocol": "chat", "id": id}}
    parts: list[dict[str, Any]] = [{"type": "step-start"}]
    if text:
        parts.append({"type": "text", "text": text})
    message = UIMessage(id="m", role="assistant", metadata=metadata, parts=parts)
    return _Turn([user_message(question) for question in questions or ("Why?",)], message)


def read(turn: _Turn, *turns: Any, bare: bool = False) -> str | Missing:
    """Recover, and return the text that is to be written."""
    body = json.dumps(turns if bare else {"turns": turns}).encode()
    recovered = ChatRecoverer(httpx2.URL("http://h/chat"), {}).read(body, turn)  # type: ignore[arg-type]
    if isinstance(recovered, Missing):
        return recovered
    assert isinstance(recovered[-1], Finish)
    return "".join(chunk.delta for chunk in recovered if isinstance(chunk, TextDelta))


def user(text: str, **more: Any) -> dict[str, Any]:
    """A user's turn."""
    return {"role": "user", "text": text, **more}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    """An assistant's turn."""
    return {"role": "assistant", "content": text, **more}


def test_only_what_is_missing_is_written() -> None:
    turns = (user("Hello"), assistant("Hi."), user(" Why? \n"), assistant("Because it is so."))
    assert read(broken("Because "), *turns) == "it is so."
    assert read(broken(""), *turns, bare=True) == "Because it is so."
    assert read(broken("Because it is so."), *turns) == ""


def test_another_answer_than_the_one_that_was_written_is_refused() -> None:
    with pytest.raises(UpstreamTruncatedError):
        read(broken("Besides"), user("Why?"), assistant("Because."))


def test_an_answer_that_is_not_there_yet_is_waited_for() -> None:
    assert read(broken("Be"), user("Hello"), assistant("Because")) is Missing.NOT_YET
    assert read(broken("Be"), user("Why?")) is Missing.NOT_YET
    assert read(broken("Be"), user("Why?"), user("Another")) is Missing.NOT_YET
    assert read(broken("Be"), user("Why?"), assistant("Because", done=False)) is Missing.NOT_YET
    assert read(broken("Be"), user("Why?"), assistant("Because", done=True)) == "cause"


def test_the_newest_of_the_same_questions_is_ours() -> None:
    turns = (user("Why?"), assistant("A"), user("Why?"), assistant("B"))
    assert read(broken("", "Why?"), *turns) == "B"
    # The service may know only the first yet.
    assert read(broken("", "Why?", "Why?"), *turns) is Missing.NOT_YET
    assert read(broken("B", "Why?", "Why?"), *turns) == ""


def test_a_service_that_keeps_message_ids_is_asked_by_them() -> None:
    turn = broken("", "Why?", "Why?")
    first, second = (message.id for message in turn.messages)
    turns = (user("Why?", message_id=first), assistant("A"), user("?", message_id=second), assistant("B"))
    assert read(turn, *turns) == "B"
    assert read(turn, *turns[:2]) is Missing.NOT_YET


def test_without_an_identity_nothing_is_asked() -> None:
    recoverer = ChatRecoverer(httpx2.URL("http://h/chat"), {})
    assert recoverer.request(broken("", id=None)) is None  # type: ignore[arg-type]
    assert recoverer.request(broken("", id="..")) is None  # type: ignore[arg-type]


def test_turns_that_can_t_be_read_are_an_error() -> None:
    recoverer = ChatRecoverer(httpx2.URL("http://h/chat"), {})
    for body in (b"", b"{}", b'{"turns": 1}', b"7"):
        with pytest.raises(UpstreamUnreadableError):
            recoverer.read(body, broken(""))  # type: ignore[arg-type]
    with pytest.raises(UpstreamError, match="disk 7"):
        read(broken(""), user("Why?"), assistant("", error="disk 7"))
