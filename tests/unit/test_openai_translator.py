"""The relay's translator: transcripts in the shapes that the public APIs document, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import UpstreamError, UpstreamTruncatedError
from penstock.relay.openai import CompletionTranslator
from penstock.relay.openai_messages import PASSED_BACK
from penstock.relay.sentences import ANSWER_TOO_LONG, BAD_INPUT, BUSY, FAILED, NOT_UNDERSTOOD, TOO_LONG
from penstock.wire.sse_parser import ServerSentEvent, SseParser
from transcripts import NO_EVENTS, UNUSABLE_INPUTS, Transcripts, brief, usage

TRANSCRIPTS = Transcripts("openai", CompletionTranslator)
transcript, translate = TRANSCRIPTS.body, TRANSCRIPTS.translate


def metadata(model: str) -> list[Any]:
    """Show the chunk that says the model's name."""
    return ["message-metadata", {"model": model}]


OPENAI = "gpt-4.1-mini-2025-04-14"

WHOLE: dict[str, list[list[Any]]] = {
    "openai-text": [
        ["start-step"],
        metadata(OPENAI),
        ["text-start", "part-1"],
        ["text-delta", "part-1", "Grüße"],
        ["text-delta", "part-1", " an 🦊"],
        ["text-delta", "part-1", ".\n\nEnd"],
        ["text-end", "part-1"],
        ["finish-step"],
        ["finish", "stop", usage(11, 5)],
    ],
    "openai-tools": [
        ["start-step"],
        metadata(OPENAI),
        ["tool-input-start", "call_a", "get_weather"],
        ["tool-input-delta", "call_a", '{"city": '],
        ["tool-input-delta", "call_a", '"Zürich"}'],
        ["tool-input-start", "call_b", "get_time"],
        ["tool-input-delta", "call_b", "{}"],
        ["tool-input-available", "call_a", "get_weather", {"city": "Zürich"}],
        ["tool-input-available", "call_b", "get_time", {}],
        ["finish-step"],
        ["finish", "tool-calls", usage(50, 30)],
    ],
    "openai-refusal": [
        ["start-step"],
        metadata(OPENAI),
        ["text-start", "part-1"],
        ["text-delta", "part-1", "I can't"],
        ["text-delta", "part-1", " help with that."],
        ["text-end", "part-1"],
        ["finish-step"],
        ["finish", "content-filter"],
    ],
    "openai-choices": [
        ["start-step"],
        metadata(OPENAI),
        ["text-start", "part-1"],
        ["text-delta", "part-1", "one"],
        ["text-delta", "part-1", " and"],
        ["text-delta", "part-1", " only"],
        ["text-end", "part-1"],
        ["finish-step"],
        ["finish", "length"],
    ],
    "openai-function-call": [
        ["start-step"],
        metadata(OPENAI),
        ["tool-input-start", "made-1", "look"],
        ["tool-input-delta", "made-1", '{"at":'],
        ["tool-input-delta", "made-1", "1}"],
        ["tool-input-available", "made-1", "look", {"at": 1}],
        ["finish-step"],
        ["finish", "tool-calls"],
    ],
    "azure": [
        ["start-step"],
        metadata("gpt-4o"),
        ["text-start", "part-1"],
        ["text-delta", "part-1", "Hi."],
        ["text-end", "part-1"],
        ["finish-step"],
        ["finish", "stop"],
    ],
    "deepseek": [
        ["start-step"],
        metadata("deepseek-reasoner"),
        ["reasoning-start", "part-1", PASSED_BACK],
        ["reasoning-delta", "part-1", "Two and"],
        ["reasoning-delta", "part-1", " two."],
        ["reasoning-end", "part-1"],
        ["text-start", "part-2"],
        ["text-delta", "part-2", "Four"],
        ["text-delta", "part-2", "."],
        ["text-end", "part-2"],
        ["finish-step"],
        ["finish", "stop", usage(9, 12)],
    ],
    "openrouter": [
        ["start-step"],
        metadata("vendor/thinker"),
        ["reasoning-start", "part-1"],
        ["reasoning-delta", "part-1", "Hm"],
        ["reasoning-delta", "part-1", ", yes."],
        ["reasoning-end", "part-1"],
        ["text-start", "part-2"],
        ["text-delta", "part-2", "Yes."],
        ["text-end", "part-2"],
        ["finish-step"],
        ["finish", "stop", usage(4, 6)],
    ],
    "ollama": [
        ["start-step"],
        metadata("qwen3"),
        ["reasoning-start", "part-1"],
        ["reasoning-delta", "part-1", "A tool"],
        ["reasoning-delta", "part-1", " will do."],
        ["reasoning-end", "part-1"],
        ["tool-input-start", "call_q1", "get_weather"],
        ["tool-input-delta", "call_q1", '{"city":"Oslo"}'],
        ["tool-input-available", "call_q1", "get_weather", {"city": "Oslo"}],
        ["finish-step"],
        ["finish", "tool-calls"],
    ],
    "vllm": [
        ["start-step"],
        metadata("Qwen/Qwen3-8B"),
        ["reasoning-start", "part-1", PASSED_BACK],
        ["reasoning-delta", "part-1", "Hm."],
        ["reasoning-end", "part-1"],
        ["text-start", "part-2"],
        ["text-delta", "part-2", "Ja."],
        ["text-end", "part-2"],
        ["finish-step"],
        ["finish", "stop", usage(7, 5)],
    ],
    "mistral": [
        ["start-step"],
        metadata("magistral-small"),
        ["reasoning-start", "part-1"],
        ["reasoning-delta", "part-1", "Let me see."],
        ["reasoning-end", "part-1"],
        ["text-start", "part-2"],
        ["text-delta", "part-2", "See"],
        ["text-delta", "part-2", "n."],
        ["text-end", "part-2"],
        ["finish-step"],
        ["finish", "stop", usage(3, 4)],
    ],
    "gemini": [
        ["start-step"],
        metadata("gemini-2.5-flash"),
        ["tool-input-start", "fc-1", "get_weather"],
        ["tool-input-delta", "fc-1", '{"city":"Rome"}'],
        ["tool-input-start", "fc-2", "get_weather"],
        ["tool-input-delta", "fc-2", '{"city":"Bari"}'],
        ["tool-input-available", "fc-1", "get_weather", {"city": "Rome"}],
        ["tool-input-available", "fc-2", "get_weather", {"city": "Bari"}],
        ["finish-step"],
        ["finish", "tool-calls"],
    ],
    "no-end-marker": [
        ["start-step"],
        metadata(OPENAI),
        ["text-start", "part-1"],
        ["text-delta", "part-1", "Done"],
        ["text-end", "part-1"],
        ["finish-step"],
        ["finish", "stop"],
    ],
}

BROKEN = {
    "openrouter-error": (UpstreamError, FAILED),
    "vllm-error": (UpstreamError, FAILED),
    "cut": (UpstreamTruncatedError, UpstreamTruncatedError.error_text),
}


def test_every_transcript_is_expected() -> None:
    """A transcript without an expectation proves nothing."""
    assert TRANSCRIPTS.names == WHOLE.keys() | BROKEN.keys()


@pytest.mark.parametrize("name", WHOLE)
def test_a_dialect_becomes_these_chunks(name: str) -> None:
    TRANSCRIPTS.check_whole(name, WHOLE[name])


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_an_error_with_a_public_sentence(name: str) -> None:
    TRANSCRIPTS.check_broken(name, *BROKEN[name])


@pytest.mark.parametrize("name", ["openai-text", "vllm"])
def test_no_single_cut_changes_anything(name: str) -> None:
    """Cut at each boundary, one after the other: within a character, a line end, an event."""
    body = transcript(name)
    events = SseParser().feed(body)
    for cut in range(len(body)):
        parser = SseParser()
        assert parser.feed(body[:cut]) + parser.feed(body[cut:]) == events


@pytest.mark.parametrize("cut", range(0, 1_872, 13))
def test_a_cut_stream_is_never_taken_for_a_whole_one(cut: int) -> None:
    """Wherever it stops before its finish reason, it is an error; after that, it is whole."""
    body = transcript("openai-text")
    parser, translator = SseParser(), CompletionTranslator()
    for event in parser.feed(body[:cut]):
        translator.feed(event)
    if b'"finish_reason":"stop"' in body[:cut].rpartition(b"\n\n")[0]:
        assert brief(translator.finish())[-1][:2] == ["finish", "stop"]
    else:
        with pytest.raises(UpstreamTruncatedError):
            translator.finish()


def said(data: str) -> ServerSentEvent:
    """Make an event of its data."""
    return ServerSentEvent("message", data, "")


DONE = said("[DONE]")


def event(delta: dict[str, Any], finish_reason: str | None = None) -> ServerSentEvent:
    """Make one event."""
    return said(json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}))


def call(**fields: Any) -> dict[str, Any]:
    """Make a delta of one tool call fragment."""
    return {"tool_calls": [fields]}


def run(*deltas: dict[str, Any]) -> list[list[Any]]:
    """Translate deltas and a good end, without the frame that every answer has."""
    translator = TRANSCRIPTS.make_translator()
    chunks = [chunk for delta in deltas for chunk in translator.feed(event(delta))]
    chunks += translator.feed(event({}, "stop"))
    chunks += translator.feed(DONE)
    shown = brief(chunks)
    assert shown[0] == ["start-step"]
    assert shown[-2:] == [["finish-step"], ["finish", "stop"]]
    return shown[1:-2]


def test_the_end_comes_once() -> None:
    """After the end marker nothing is said, whatever is fed."""
    translator = CompletionTranslator()
    translator.feed(event({"content": "a"}, "stop"))
    assert brief(translator.feed(DONE))[-1] == ["finish", "stop"]
    assert translator.feed(DONE) == translator.finish() == translator.feed(event({"content": "b"})) == []


def test_an_end_marker_alone_is_an_end() -> None:
    """Some servers give no reason."""
    translator = CompletionTranslator()
    translator.feed(event({"content": "a"}))
    assert brief(translator.feed(DONE)) == [["text-end", "part-1"], ["finish-step"], ["finish", "other"]]


def test_usage_is_the_last_that_came() -> None:
    """Some servers count on in every event, and say null in the last."""
    translator = CompletionTranslator()
    for usage_now in (
        {"prompt_tokens": 1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 2},
        None,
    ):
        translator.feed(said(json.dumps({"usage": usage_now})))
    assert brief(translator.feed(DONE))[-1] == ["finish", "other", usage(1, 2)]


def test_text_between_tool_calls_is_a_part_of_its_own() -> None:
    """A part is closed when something else begins."""
    assert run({"content": "a"}, call(index=0, id="c", function={"name": "f"}), {"content": "b"}) == [
        ["text-start", "part-1"],
        ["text-delta", "part-1", "a"],
        ["text-end", "part-1"],
        ["tool-input-start", "c", "f"],
        ["text-start", "part-2"],
        ["text-delta", "part-2", "b"],
        ["text-end", "part-2"],
        ["tool-input-available", "c", "f", {}],
    ]


def test_parallel_calls_may_be_interleaved() -> None:
    """Fragments belong to their index, in whatever order they come."""
    shown = run(
        call(index=1, id="b", function={"name": "g", "arguments": "["}),
        call(index=0, id="a", function={"name": "f", "arguments": "{"}),
        call(index=1, function={"arguments": "1]"}),
        call(index=0, function={"arguments": "}"}),
    )
    assert shown[-2:] == [["tool-input-available", "b", "g", [1]], ["tool-input-available", "a", "f", {}]]


@pytest.mark.parametrize(
    "fragments",
    [
        # The name after the input has begun.
        [
            {"index": 0, "id": "a", "function": {"arguments": '{"x"'}},
            {"index": 0, "function": {"name": "f", "arguments": ":1}"}},
        ],
        # Id and name again in every fragment.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": "1}"}},
        ],
        # Empty strings for what was said before.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"index": 0, "id": "", "function": {"name": "", "arguments": "1}"}},
        ],
        # Another id in every fragment.
        [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"index": 0, "id": "z", "function": {"name": None, "arguments": "1}"}},
        ],
        # No index.
        [{"id": "a", "function": {"name": "f", "arguments": '{"x":'}}, {"function": {"arguments": "1}"}}],
        [
            {"id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"id": "a", "function": {"arguments": "1}"}},
        ],
        # Input that is no string.
        [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}],
    ],
)
def test_one_call_in_the_servers_ways_of_cutting_it(fragments: list[dict[str, Any]]) -> None:
    """However it comes, it is one call."""
    shown = run(*[call(**fragment) for fragment in fragments])
    assert shown[0] == ["tool-input-start", "a", "f"]
    assert "".join(chunk[2] for chunk in shown[1:-1]) == '{"x":1}'
    assert shown[-1] == ["tool-input-available", "a", "f", {"x": 1}]


def test_calls_without_ids_get_their_own() -> None:
    """Two whole calls without index and id are two calls; so are two with the same id."""
    whole = {"function": {"name": "f", "arguments": "{}"}}
    assert [
        chunk[1] for chunk in run(call(**whole), call(**whole)) if chunk[0] == "tool-input-available"
    ] == [
        "made-1",
        "made-2",
    ]
    same = [call(index=index, id="a", **whole) for index in range(2)]
    assert [chunk[1] for chunk in run(*same) if chunk[0] == "tool-input-available"] == ["a", "made-1"]


@pytest.mark.parametrize("arguments", UNUSABLE_INPUTS)
def test_tool_input_that_no_client_takes_is_an_error_of_the_tool(arguments: str) -> None:
    """The turn goes on: a client may let the model try again."""
    assert run(call(index=0, id="a", function={"name": "f", "arguments": arguments}))[-1] == [
        "tool-input-error",
        "a",
        "f",
        arguments[: 16 << 10],
        BAD_INPUT,
    ]


def test_tool_calls_have_a_bound() -> None:
    """An upstream that never stops calling is given up."""
    fragments = [{"index": index, "id": f"c{index}", "function": {"name": "f"}} for index in range(1_000)]
    with pytest.raises(UpstreamError) as caught:
        CompletionTranslator().feed(event({"tool_calls": fragments}))
    assert caught.value.error_text == ANSWER_TOO_LONG


def test_an_answer_that_comes_whole_is_an_answer() -> None:
    """A server without streaming sends `message` instead of deltas."""
    translator = CompletionTranslator()
    chunks = translator.feed_answer(
        json.dumps(
            {
                "object": "chat.completion",
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "message": {
                            "role": "assistant",
                            "content": "Look.",
                            "tool_calls": [
                                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                            ],
                        },
                        "finish_reason": "tool_calls",
                    }
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2},
            }
        )
    )
    assert brief(chunks + translator.finish()) == [
        ["start-step"],
        metadata("m"),
        ["text-start", "part-1"],
        ["text-delta", "part-1", "Look."],
        ["text-end", "part-1"],
        ["tool-input-start", "a", "f"],
        ["tool-input-delta", "a", "{}"],
        ["tool-input-available", "a", "f", {}],
        ["finish-step"],
        ["finish", "tool-calls", usage(1, 2)],
    ]


def test_a_long_text_is_cut_into_chunks_that_may_be_sent() -> None:
    """No chunk passes the wire's limit, even when every character is escaped; the text stays whole."""
    text = "\x01é" * 200_000
    shown = run(
        {"content": text},
        call(index=0, id="a", function={"name": "f", "arguments": json.dumps("x" * 100_000)}),
    )
    deltas = [chunk[2] for chunk in shown if chunk[0] == "text-delta"]
    assert "".join(deltas) == text
    assert max(map(len, deltas)) < 40_000
    assert max(len(chunk[2]) for chunk in shown if chunk[0] == "tool-input-delta") < 40_000


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ({"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}, BUSY),
        ({"message": "slow down", "code": 429}, BUSY),
        ({"message": "long", "type": "invalid_request_error", "code": "context_length_exceeded"}, TOO_LONG),
        ({"message": "boom", "code": ["odd"]}, FAILED),
        ("boom", FAILED),
        (["boom"], FAILED),
    ],
)
def test_an_error_event_has_a_sentence_for_the_user(error: object, sentence: str) -> None:
    """Well-known errors have their own sentence, all others one."""
    with pytest.raises(UpstreamError) as caught:
        CompletionTranslator().feed(said(json.dumps({"error": error})))
    assert caught.value.error_text == sentence


@pytest.mark.parametrize(
    "data",
    [
        *NO_EVENTS,
        '{"choices": 1}',
        '{"choices": [{"delta": []}]}',
        '{"choices": [{"delta": {"tool_calls": [1]}}]}',
        '{"choices"',
        '{"choices":[{"delta":{"content":"\\ud800"}}]}',
    ],
)
def test_an_event_of_another_shape_is_an_upstream_error(data: str) -> None:
    """Never an exception of a library, whatever comes."""
    with pytest.raises(UpstreamError) as caught:
        CompletionTranslator().feed(said(data))
    assert caught.value.error_text == NOT_UNDERSTOOD


@pytest.mark.parametrize(
    "data",
    [
        "{}",
        '{"choices": null}',
        '{"choices": []}',
        '{"error": null, "choices": [{}]}',
        '{"choices": [{"delta": null}]}',
        '{"choices": [{"delta": {"content": 5, "reasoning": {"effort": 1}, "role": "assistant"}}]}',
        '{"choices": [{"delta": {"content": [{"type": "image"}, 7, {"type": "thinking", "thinking": [3]}]}}]}',
        '{"usage": {"prompt_tokens": "many", "completion_tokens": true}}',
        '{"usage": 7}',
    ],
)
def test_what_is_not_understood_is_ignored(data: str) -> None:
    """A field more, or of another kind than ours, is no reason to fail an answer."""
    translator = CompletionTranslator()
    assert brief(translator.feed(said(data))) == [["start-step"]]
    assert brief(translator.feed(DONE)) == [["finish-step"], ["finish", "other"]]
