"""The relay's translator for Anthropic's `/messages`: transcripts as the API reference documents them, however cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from penstock.errors import UpstreamError, UpstreamTooLongError, UpstreamTruncatedError
from penstock.relay.anthropic import AnthropicTranslator
from penstock.relay.part_writer import OPAQUE_CHARACTERS
from penstock.relay.sentences import BAD_INPUT, BUSY, FAILED, NOT_UNDERSTOOD, TOO_LONG
from penstock.wire.sse_parser import ServerSentEvent, SseParser
from transcripts import NO_EVENTS, UNUSABLE_INPUTS, Transcripts, brief, call, text, usage

TRANSCRIPTS = Transcripts("anthropic", AnthropicTranslator)
transcript, make_translator = TRANSCRIPTS.body, TRANSCRIPTS.make_translator


BEGIN: list[list[Any]] = [["start-step"], ["message-metadata", {"model": "claude-sonnet-4-5-20250929"}]]


def end(reason: str, written: int, read: int = 25) -> list[list[Any]]:
    """Show how an answer ends."""
    return [["finish-step"], ["finish", reason, usage(read, written)]]


def search(state: str) -> list[Any]:
    """Show how far the upstream's own search is."""
    return ["data-upstream-tool", "srvtoolu_1", {"tool": "web_search", "state": state}]


WHOLE: dict[str, list[list[Any]]] = {
    "text": [*BEGIN, *text("part-1", "Grüße", " an 🦊", ".\n\nEnd"), *end("stop", 15)],
    "tools": [
        *BEGIN,
        *text("part-1", "I look."),
        *call("toolu_a", "get_weather", {"city": "Zürich"}, '{"city": ', '"Zürich"}'),
        *call("toolu_b", "get_time", {}),
        *end("tool-calls", 89, 135),
    ],
    "thinking": [
        *BEGIN,
        ["reasoning-start", "part-1"],
        ["reasoning-delta", "part-1", "It "],
        ["reasoning-delta", "part-1", "may rain."],
        ["reasoning-end", "part-1", {"anthropic": {"signature": "EqQBsig=="}}],
        ["reasoning-start", "part-2", {"anthropic": {"redactedData": "EmwKopaque"}}],
        ["reasoning-end", "part-2"],
        *text("part-3", "Ask again."),
        *call("toolu_a", "get_weather", {"city": "Oslo"}, '{"city":"Oslo"}'),
        *end("tool-calls", 120),
    ],
    "hidden-thinking": [
        *BEGIN,
        ["reasoning-start", "part-1"],
        ["reasoning-end", "part-1", {"anthropic": {"signature": "EqQBhidden=="}}],
        *text("part-2", "Yes."),
        *end("stop", 40),
    ],
    "web-search": [
        *BEGIN,
        search("running"),
        search("completed"),
        ["source-url", "source-1ae4d80693b737d3", "https://example.org/trio", "Trio 0.35"],
        ["source-url", "source-55208e33e68eaa69", "https://example.org/other", "Other"],
        *text("part-1", "Trio 0.35 is out."),
        *end("stop", 60),
    ],
    "search-failed": [
        *BEGIN,
        search("running"),
        search("failed"),
        *text("part-1", "I don't know."),
        *end("other", 30),
    ],
    "citations": [
        *BEGIN,
        *text("part-1", "They are "),
        ["text-start", "part-2"],
        ["text-delta", "part-2", "green and red"],
        ["source-document", "source-19af7c216ad6f2eb", "text/plain", "Colours"],
        ["source-document", "source-0d8736d510528a9d", "application/pdf", "Document 2"],
        ["source-url", "source-dbb89944874400f5", "https://example.org/kb", "KB"],
        ["text-end", "part-2"],
        *text("part-3", "."),
        *end("stop", 33),
    ],
    "max-tokens": [*BEGIN, *text("part-1", "Once upon"), *end("length", 2)],
    "refusal": [*BEGIN, *text("part-1", "I can"), *end("content-filter", 3)],
    "no-end-marker": [*BEGIN, *text("part-1", "Done"), *end("stop", 2)],
}

BROKEN = {
    "overloaded": (UpstreamError, BUSY),
    "cut": (UpstreamTruncatedError, UpstreamTruncatedError.error_text),
}


def test_every_transcript_is_expected() -> None:
    """A transcript without an expectation proves nothing."""
    assert TRANSCRIPTS.names == WHOLE.keys() | BROKEN.keys()


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_becomes_these_chunks(name: str) -> None:
    TRANSCRIPTS.check_whole(name, WHOLE[name])


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_an_error_with_a_public_sentence(name: str) -> None:
    TRANSCRIPTS.check_broken(name, *BROKEN[name])


def test_a_cut_stream_is_never_taken_for_a_whole_one() -> None:
    """Wherever it stops before the stop reason, it is an error; after it, it is whole."""
    events = SseParser().feed(transcript("thinking"))
    for count in range(len(events)):
        translator = make_translator()
        for event in events[:count]:
            translator.feed(event)
        assert translator.whole is (count == len(events) - 1)
        if not translator.whole:
            with pytest.raises(UpstreamTruncatedError):
                translator.finish()


def message_of(name: str) -> dict[str, Any]:
    """Put the events of a transcript together, as the API would have answered without a stream."""
    message: dict[str, Any] = {}
    for one in SseParser().feed(transcript(name)):
        value = json.loads(one.data)
        match value:
            case {"type": "message_start"}:
                message = value["message"]
            case {"type": "content_block_start"}:
                message["content"].append(value["content_block"])
            case {"type": "message_delta"}:
                message |= {"usage": message["usage"] | value["usage"], **value["delta"]}
            case {"type": "content_block_delta", "delta": delta}:
                block = message["content"][-1]
                for key, field in (("text", "text"), ("thinking", "thinking"), ("signature", "signature")):
                    block[field] = block.get(field, "") + delta[key] if key in delta else block.get(field)
                if delta["type"] == "citations_delta":
                    block["citations"].append(delta["citation"])
                if delta["type"] == "input_json_delta":
                    block["json"] = block.get("json", "") + delta["partial_json"]
                    block["input"] = json.loads(block["json"]) if block["json"].endswith("}") else {}
    return message


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_that_comes_whole_is_the_same(name: str) -> None:
    """The message without a stream makes the same message as all the events."""
    TRANSCRIPTS.check_answer(name, message_of(name))


def event(kind: str, **fields: Any) -> ServerSentEvent:
    """Make one event."""
    return ServerSentEvent(kind, json.dumps({"type": kind, **fields}), "")


def block(index: int, content: Any, *deltas: Any) -> list[ServerSentEvent]:
    """Make the events of one content block."""
    return [
        event("content_block_start", index=index, content_block=content),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def tool(index: int, arguments: str, call_id: Any = "c") -> list[ServerSentEvent]:
    """Make the events of a tool call."""
    delta = {"type": "input_json_delta", "partial_json": arguments}
    return block(index, {"type": "tool_use", "id": call_id, "name": "f", "input": {}}, delta)


def run(*events: ServerSentEvent, **options: Any) -> list[list[Any]]:
    """Translate events and a good end, without the frame that every answer has."""
    translator = make_translator(**options)
    chunks = list(translator.feed(event("message_start", message={})))
    chunks += [chunk for one in events for chunk in translator.feed(one)]
    chunks += translator.feed(event("message_delta", delta={"stop_reason": "end_turn"}))
    chunks += translator.feed(event("message_stop"))
    shown = brief(chunks)
    assert shown[0] == ["start-step"]
    assert shown[-2:] == [["finish-step"], ["finish", "stop"]]
    return shown[1:-2]


@pytest.mark.parametrize("arguments", UNUSABLE_INPUTS)
def test_tool_input_that_no_client_takes_is_an_error_of_the_tool(arguments: str) -> None:
    """The turn goes on: the model may try again."""
    shown = run(*tool(0, arguments), *tool(1, "{}", "d"))
    assert ["tool-input-error", "c", "f", arguments[: 16 << 10], BAD_INPUT] in shown
    assert shown[-1] == ["tool-input-available", "d", "f", {}]


@pytest.mark.parametrize("call_id", [None, "", "taken", "i" * 300, 5])
def test_a_call_without_an_id_of_its_own_gets_one(call_id: object) -> None:
    """As does one whose id an earlier step of the turn has."""
    assert run(*tool(0, "{}", call_id), taken=["taken"])[0][1] == "made-1"


def test_what_is_not_ended_is_ended_with_the_answer() -> None:
    """A block without its end is as whole as the answer is."""
    opened = [*block(0, {"type": "text", "text": "a"})[:1], *tool(1, '{"a":1}')[:2]]
    assert run(*opened) == [
        ["text-start", "part-1"],
        ["text-delta", "part-1", "a"],
        ["tool-input-start", "c", "f"],
        ["tool-input-delta", "c", '{"a":1}'],
        ["text-end", "part-1"],
        ["tool-input-available", "c", "f", {"a": 1}],
    ]


def test_calls_and_parts_have_bounds() -> None:
    """An upstream that never stops is given up."""
    with pytest.raises(UpstreamTooLongError):
        run(*(one for index in range(1_000) for one in tool(index, "{}", f"c{index}")))
    with pytest.raises(UpstreamTooLongError):
        run(*(one for index in range(1_000) for one in block(index, {"type": "text", "text": "x"})))
    with pytest.raises(UpstreamTooLongError):
        run(*(block(index, {"type": "of-next-year"})[0] for index in range(1_000)))


def test_a_long_text_is_cut_into_chunks_that_may_be_sent() -> None:
    """No chunk passes the wire's limit, even when every character is escaped; the text stays whole."""
    words = "\x01é" * 200_000
    shown = run(*block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": words}))
    deltas = [chunk[2] for chunk in shown if chunk[0] == "text-delta"]
    assert "".join(deltas) == words
    assert max(map(len, deltas)) <= 16 << 10


def test_what_is_kept_for_the_next_request_has_a_bound() -> None:
    """A signature that no chunk could carry is left out, and its thinking is shown all the same."""
    signature = {"type": "signature_delta", "signature": "s" * (OPAQUE_CHARACTERS + 1)}
    assert run(*block(0, {"type": "thinking", "thinking": "hm"}, signature))[-1] == [
        "reasoning-end",
        "part-1",
    ]
    assert run(*block(0, {"type": "redacted_thinking", "data": "s" * (OPAQUE_CHARACTERS + 1)})) == []


FEEDS: tuple[Callable[[AnthropicTranslator, str], object], ...] = (
    lambda translator, data: translator.feed(ServerSentEvent("message", data, "")),
    lambda translator, data: translator.feed_answer(data),
)
"""As an event of a stream, and in place of one."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, BUSY),
        ({"type": "rate_limit_error", "message": "slow"}, BUSY),
        (
            {"type": "invalid_request_error", "message": "prompt is too long: 250000 tokens > 200000"},
            TOO_LONG,
        ),
        ({"type": "invalid_request_error", "message": "no"}, FAILED),
        ({"type": "api_error"}, FAILED),
        (None, FAILED),
    ],
)
def test_an_error_has_a_sentence_for_the_user(error: object, sentence: str) -> None:
    """Well-known errors have their own, all others one; in the stream or in place of the message."""
    data = json.dumps({"type": "error", "error": error})
    for feed in FEEDS:
        with pytest.raises(UpstreamError) as caught:
            feed(make_translator(), data)
        assert caught.value.error_text == sentence


@pytest.mark.parametrize("data", NO_EVENTS)
def test_an_event_of_another_shape_is_an_upstream_error(data: str) -> None:
    """Never an exception of a library, whatever comes."""
    for feed in FEEDS:
        with pytest.raises(UpstreamError) as caught:
            feed(make_translator(), data)
        assert caught.value.error_text == NOT_UNDERSTOOD


@pytest.mark.parametrize(
    "ignored",
    [
        [event("ping")],
        [event("later_invention", index=0)],
        block(0, None),
        block(0, {"type": "text"}, None),
        block(0, {"type": "text", "text": 5, "citations": None}, {"type": "text_delta", "text": 7}),
        block(0, {"type": "later_block", "text": "x"}, {"type": "later_delta"}),
        block(0, {"type": "thinking", "signature": None}, {"type": "signature_delta", "signature": 4}),
        block(0, {"type": "text", "text": ""}, {"type": "citations_delta", "citation": {"type": "new"}}),
        block(0, {"type": "web_search_tool_result", "tool_use_id": "x", "content": [None, {"url": 4}]}),
        block(0, {"type": "server_tool_use", "name": "x"}),
        [event("message_delta", delta=None, usage={"output_tokens": "many"})],
    ],
)
def test_what_is_not_understood_is_ignored(ignored: list[ServerSentEvent]) -> None:
    """A field more, or of another kind than ours, is no reason to fail an answer."""
    assert run(*ignored) == []


def test_the_end_comes_once() -> None:
    """After the end nothing is said, whatever is fed."""
    events = SseParser().feed(transcript("text"))
    translator = make_translator()
    for one in events:
        translator.feed(one)
    assert [*translator.feed(events[1]), *translator.finish(), *translator.finish()] == []
