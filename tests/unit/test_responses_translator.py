"""The relay's translator for `/responses`: transcripts in the shapes that the API reference documents, however cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from penstock.errors import UpstreamError, UpstreamTooLongError, UpstreamTruncatedError
from penstock.relay.part_writer import OPAQUE_CHARACTERS
from penstock.relay.responses import ResponsesTranslator
from penstock.relay.sentences import BAD_INPUT, BUSY, FAILED, NOT_UNDERSTOOD, TOO_LONG
from penstock.wire.sse_parser import ServerSentEvent, SseParser
from transcripts import NO_EVENTS, UNUSABLE_INPUTS, Transcripts, brief, call, text, usage

TRANSCRIPTS = Transcripts("responses", ResponsesTranslator)
transcript, make_translator = TRANSCRIPTS.body, TRANSCRIPTS.make_translator


def begin(name: str, model: str = "gpt-5-mini-2025-08-07") -> list[list[Any]]:
    """Show how an answer begins: with its identity, at once."""
    identity = {"model": model, "upstream": {"protocol": "responses", "id": f"resp_{name}01"}}
    return [["start-step"], ["message-metadata", identity]]


def end(reason: str, read: int, written: int) -> list[list[Any]]:
    """Show how it ends."""
    return [["finish-step"], ["finish", reason, usage(read, written)]]


REASONING = {"openai": {"itemId": "rs_01"}}
ENCRYPTED = {"openai": {"itemId": "rs_01", "reasoningEncryptedContent": "gAAAAABencrypted=="}}
TRIO = ["source-url", "source-1ae4d80693b737d3", "https://example.org/trio", "Trio 0.35"]
NOTES = ["source-document", "source-c2bb3ccfff6a5dec", "application/pdf", "notes.pdf", "notes.pdf"]

WHOLE: dict[str, list[list[Any]]] = {
    "text": [*begin("text"), *text("part-1", "Grüße", " an 🦊", ".\n\nEnd"), *end("stop", 11, 5)],
    "tools": [
        *begin("tools"),
        *call("call_a", "get_weather", {"city": "Zürich"}, '{"city"', ': "Zürich"}'),
        *call("call_b", "get_time", {}, "{}"),
        *end("tool-calls", 50, 30),
    ],
    "interleaved": [
        *begin("inter"),
        ["tool-input-start", "call_a", "first"],
        ["tool-input-start", "call_b", "second"],
        ["tool-input-delta", "call_b", "["],
        ["tool-input-delta", "call_a", '{"a":'],
        ["tool-input-delta", "call_b", "1]"],
        ["tool-input-delta", "call_a", "1}"],
        ["tool-input-available", "call_a", "first", {"a": 1}],
        ["tool-input-available", "call_b", "second", [1]],
        *end("tool-calls", 9, 9),
    ],
    "reasoning": [
        *begin("reason"),
        ["reasoning-start", "part-1", REASONING],
        ["reasoning-delta", "part-1", "**Weighing**\n\nIt "],
        ["reasoning-delta", "part-1", "may rain."],
        ["reasoning-end", "part-1"],
        ["reasoning-start", "part-2", REASONING],
        ["reasoning-delta", "part-2", "**Deciding** ask."],
        ["reasoning-end", "part-2", ENCRYPTED],
        ["text-start", "part-3", {"openai": {"phase": "commentary"}}],
        ["text-delta", "part-3", "I look."],
        ["text-end", "part-3"],
        *call("call_a", "get_weather", {"city": "Oslo"}, '{"city":"Oslo"}'),
        *end("tool-calls", 20, 40),
    ],
    "web-search": [
        *begin("web"),
        ["data-upstream-tool", "ws_1", {"tool": "web_search", "state": "in_progress"}],
        ["data-upstream-tool", "ws_1", {"tool": "web_search", "state": "searching"}],
        ["data-upstream-tool", "ws_1", {"tool": "web_search", "state": "completed"}],
        ["text-start", "part-1"],
        ["text-delta", "part-1", "Trio 0.35"],
        ["text-delta", "part-1", " is out."],
        TRIO,
        NOTES,
        ["text-end", "part-1"],
        *end("stop", 300, 20),
    ],
    "refusal": [*begin("refusal"), *text("part-1", "I can't", " help with that."), *end("stop", 8, 7)],
    "incomplete": [*begin("incomplete"), *text("part-1", "Once upon"), *end("length", 6, 2)],
    "filtered": [*begin("filtered"), *text("part-1", "Once upon"), *end("content-filter", 6, 2)],
    "custom-tool": [
        *begin("custom"),
        ["tool-input-start", "call_c", "run_sql", "text"],
        ["tool-input-delta", "call_c", "select"],
        ["tool-input-delta", "call_c", " 1;"],
        ["tool-input-available", "call_c", "run_sql", "select 1;"],
        *end("tool-calls", 5, 5),
    ],
    # A server that repeats nothing, and says nothing of parts.
    "terse": [
        *begin("open", "gpt-oss-20b"),
        ["reasoning-start", "part-1", {"openai": {"itemId": "rs_1"}}],
        ["reasoning-delta", "part-1", "Hm, "],
        ["reasoning-delta", "part-1", "yes."],
        ["text-start", "part-2"],
        ["text-delta", "part-2", "Ja"],
        ["text-delta", "part-2", "."],
        ["reasoning-end", "part-1"],
        ["text-end", "part-2"],
        *end("stop", 4, 6),
    ],
    # A gateway that streams in name only.
    "only-at-the-end": [*begin("whole"), *text("part-1", "All at once."), *end("stop", 3, 3)],
}

BROKEN = {
    "failed": (UpstreamError, FAILED),
    "error": (UpstreamError, BUSY),
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
    """Wherever it stops before its last event, it is an error."""
    events = SseParser().feed(transcript("reasoning"))
    for count in range(len(events)):
        translator = make_translator()
        for event in events[:count]:
            translator.feed(event)
        assert not translator.whole
        with pytest.raises(UpstreamTruncatedError):
            translator.finish()


@pytest.mark.parametrize("name", ["text", "tools", "reasoning", "refusal", "filtered", "custom-tool"])
def test_an_answer_that_comes_whole_is_the_same(name: str) -> None:
    """The last event's response alone makes the same message as all the events."""
    TRANSCRIPTS.check_answer(name, json.loads(SseParser().feed(transcript(name))[-1].data)["response"])


def event(kind: str, **fields: Any) -> ServerSentEvent:
    """Make one event."""
    return ServerSentEvent(kind, json.dumps({"type": kind, **fields}), "")


def run(*events: ServerSentEvent, **options: Any) -> list[list[Any]]:
    """Translate events and a good end, without the frame that every answer has."""
    translator = make_translator(**options)
    chunks = [chunk for one in events for chunk in translator.feed(one)]
    chunks += translator.feed(event("response.completed", response={"status": "completed"}))
    chunks += translator.finish()
    shown = brief(chunks)
    assert shown[0] == ["start-step"]
    assert shown[-2] == ["finish-step"]
    return shown[1:-2]


def function_call(index: int, arguments: str, call_id: Any = "c", name: str = "f") -> ServerSentEvent:
    """Make the event of a whole tool call."""
    item = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    return event("response.output_item.done", output_index=index, item=item)


def test_the_identity_comes_with_the_first_event() -> None:
    """It is in the journal before any text is."""
    first = SseParser().feed(transcript("text"))[0]
    assert brief(make_translator().feed(first)) == begin("text")


@pytest.mark.parametrize("numbered", [True, False])
def test_what_came_in_pieces_is_not_said_again(numbered: bool) -> None:
    """Also by a server that says the item of a piece by its id, and not by its number."""
    where = {"item_id": "msg", **({"output_index": 0} if numbered else {})}
    content = [{"type": "output_text", "text": "Hello"}]
    whole = {"status": "completed", "output": [{"type": "message", "id": "msg", "content": content}]}
    shown = run(
        event("response.output_text.delta", **where, delta="Hel"), event("response.completed", response=whole)
    )
    assert shown == text("part-1", "Hel", "lo")


@pytest.mark.parametrize("response_id", ["resp_1", "resp_" + "aA0_-" * 90 + "=="])
def test_an_id_of_a_gateways_is_an_id(response_id: str) -> None:
    """LiteLLM's say where the response is, encrypted."""
    created = event("response.created", response={"id": response_id})
    assert run(created) == [["message-metadata", {"upstream": {"protocol": "responses", "id": response_id}}]]


@pytest.mark.parametrize("response_id", [None, 7, "", "a/../b", "x?y", "resp\n", "r" * 2_000])
def test_an_id_that_may_not_stand_in_a_url_is_none(response_id: object) -> None:
    """What an upstream says is not trusted with the path of the next request."""
    created = event("response.created", response={"id": response_id, "model": "m"})
    assert run(created) == [["message-metadata", {"model": "m"}]]


@pytest.mark.parametrize("arguments", UNUSABLE_INPUTS)
def test_tool_input_that_no_client_takes_is_an_error_of_the_tool(arguments: str) -> None:
    """The turn goes on: the model may try again."""
    shown = run(function_call(0, arguments), function_call(1, "{}", "d"))
    assert ["tool-input-error", "c", "f", arguments[: 16 << 10], BAD_INPUT] in shown
    assert shown[-1] == ["tool-input-available", "d", "f", {}]


def test_input_may_come_before_the_call() -> None:
    """Nothing is lost, if an event is late."""
    delta = event("response.function_call_arguments.delta", item_id="fc", output_index=0, delta='{"a":')
    assert run(delta, function_call(0, '{"a":1}')) == call("c", "f", {"a": 1}, '{"a":', "1}")


@pytest.mark.parametrize("call_id", [None, "", "taken", "i" * 300, 5])
def test_a_call_without_an_id_of_its_own_gets_one(call_id: object) -> None:
    """As does one whose id an earlier step of the turn has."""
    assert run(function_call(0, "{}", call_id), taken=["taken"])[0][1] == "made-1"


def test_calls_parts_and_sources_have_bounds() -> None:
    """An upstream that never stops is given up; one that cites too much is cut short."""
    with pytest.raises(UpstreamTooLongError):
        run(*(function_call(index, "{}", f"c{index}") for index in range(1_000)))
    deltas = (event("response.output_text.delta", output_index=index, delta="x") for index in range(1_000))
    with pytest.raises(UpstreamTooLongError):
        run(*deltas)
    items = (
        event("response.output_item.added", output_index=index, item={"type": "new"})
        for index in range(1_000)
    )
    with pytest.raises(UpstreamTooLongError):
        run(*items)
    annotations = [{"type": "url_citation", "url": f"https://example.org/{i}"} for i in range(1_000)]
    shown = run(
        *(
            event("response.output_text.annotation.added", output_index=0, annotation=one)
            for one in annotations
        )
    )
    assert len(shown) == 200


def test_a_long_text_is_cut_into_chunks_that_may_be_sent() -> None:
    """No chunk passes the wire's limit, even when every character is escaped; the text stays whole."""
    words = "\x01é" * 200_000
    shown = run(
        event("response.output_text.delta", output_index=0, delta=words),
        function_call(1, f'"{"x" * 100_000}"'),
    )
    deltas = [chunk[2] for chunk in shown if chunk[0] == "text-delta"]
    assert "".join(deltas) == words
    assert max(map(len, deltas)) <= 16 << 10
    assert max(len(chunk[2]) for chunk in shown if chunk[0] == "tool-input-delta") <= 16 << 10


def test_encrypted_reasoning_is_kept_unless_it_is_absurd() -> None:
    """Even where none of it may be seen."""

    def item(encrypted: str) -> ServerSentEvent:
        value = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": encrypted}
        return event("response.output_item.done", output_index=0, item=value)

    kept = {"openai": {"itemId": "rs", "reasoningEncryptedContent": "e"}}
    assert run(item("e")) == [["reasoning-start", "part-1", kept], ["reasoning-end", "part-1", kept]]
    assert run(item("e" * (OPAQUE_CHARACTERS + 1))) == []


@pytest.mark.parametrize(
    ("failed", "sentence"),
    [
        (event("error", code="context_length_exceeded", message="m"), TOO_LONG),
        (event("error", error={"code": "server_is_overloaded"}), BUSY),
        (event("response.failed", response={"status": "failed", "error": {"code": "server_error"}}), FAILED),
        (event("response.failed", response={"status": "failed"}), FAILED),
        (
            event("response.cancelled", response={"status": "cancelled"}),
            UpstreamTruncatedError.error_text,
        ),
    ],
)
def test_a_failure_has_a_sentence_for_the_user(failed: ServerSentEvent, sentence: str) -> None:
    """Well-known errors have their own, all others one."""
    with pytest.raises(UpstreamError) as caught:
        make_translator().feed(failed)
    assert caught.value.error_text == sentence


FEEDS: tuple[Callable[[ResponsesTranslator, str], object], ...] = (
    lambda translator, data: translator.feed(ServerSentEvent("message", data, "")),
    lambda translator, data: translator.feed_answer(data),
)
"""As an event of a stream, and in place of one."""


@pytest.mark.parametrize("data", NO_EVENTS)
def test_an_event_of_another_shape_is_an_upstream_error(data: str) -> None:
    """Never an exception of a library, whatever comes."""
    for feed in FEEDS:
        with pytest.raises(UpstreamError) as caught:
            feed(make_translator(), data)
        assert caught.value.error_text == NOT_UNDERSTOOD


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"object": "list"}, NOT_UNDERSTOOD),
        ({"error": {"code": "rate_limit_exceeded"}}, BUSY),
        ({"status": "failed", "error": {"code": "server_error"}}, FAILED),
        ({"status": "in_progress", "output": []}, UpstreamTruncatedError.error_text),
    ],
)
def test_an_answer_that_is_no_whole_response_is_an_error(answer: dict[str, Any], kind: str) -> None:
    """Also where it does not come in events."""
    translator = make_translator()
    with pytest.raises(UpstreamError) as caught:
        assert not [*translator.feed_answer(json.dumps(answer)), *translator.finish()]
    assert caught.value.error_text == kind


@pytest.mark.parametrize(
    "ignored",
    [
        event("response.later_invention.delta", output_index=0, delta="x"),
        event("response.output_text.delta", output_index=[0], delta="x"),
        event("response.output_text.delta", output_index=0, delta=7),
        event("response.output_item.added", output_index=0, item=None),
        event("response.output_item.done", output_index=0, item={"type": "message", "content": [None, {}]}),
        event("response.output_item.done", output_index=0, item={"type": ["message"]}),
        event("response.reasoning_summary_text.delta", output_index=0, summary_index="one", delta=None),
        event("response.output_text.annotation.added", output_index=0, annotation={"type": "file_path"}),
        event("response.image_generation_call.partial_image", output_index=0, item_id=3),
        event("keepalive"),
    ],
)
def test_what_is_not_understood_is_ignored(ignored: ServerSentEvent) -> None:
    """A field more, or of another kind than ours, is no reason to fail an answer."""
    assert run(ignored) == []


def test_the_end_comes_once() -> None:
    """After the end nothing is said, whatever is fed."""
    events = SseParser().feed(transcript("text"))
    translator = make_translator()
    for one in events:
        translator.feed(one)
    assert [*translator.feed(events[-1]), *translator.finish(), *translator.finish()] == []
