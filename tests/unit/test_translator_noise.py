"""The relay's translators, given transcripts in which something is not what it should be."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UpstreamError
from penstock.relay.anthropic import AnthropicTranslator
from penstock.relay.openai import CompletionTranslator
from penstock.relay.protocol import Translator
from penstock.relay.responses import ResponsesTranslator
from penstock.wire.chunks import Start
from penstock.wire.codec import encode
from penstock.wire.grammar import Grammar
from penstock.wire.sse_parser import ServerSentEvent, SseParser

DATA = Path(__file__).parent.parent / "data"

MAKERS: dict[str, Callable[[], Translator]] = {
    "openai": CompletionTranslator,
    "responses": ResponsesTranslator,
    "anthropic": AnthropicTranslator,
}


def read(path: Path) -> list[ServerSentEvent]:
    """Read a transcript's events."""
    return SseParser().feed(path.read_bytes())


EVENTS = {name: [read(path) for path in sorted((DATA / name).iterdir())] for name in MAKERS}

# What stands in for a value: everything that JSON has, in the shapes that translators look for.
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        2.5,
        10**30,
        "",
        "x",
        "error",
        [],
        {},
        [None],
        [{}],
        {"type": "text"},
        {"error": 1},
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths to all that is in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """Return the value with another one at a place."""
    if not path:
        return by
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = by
    return value


@settings(max_examples=50)
@given(data=st.data())
def test_noise_is_ignored_or_an_upstream_error(data: st.DataObject) -> None:
    """A value may be anything, an event may be missing or come twice: what is written is legal all the same."""
    name = data.draw(st.sampled_from(sorted(MAKERS)))
    events = list(data.draw(st.sampled_from(EVENTS[name])))
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(events) - 1))
        one = events[index]
        what = data.draw(st.sampled_from(["value", "drop", "twice"]))
        if what == "value" and one.data.startswith("{"):
            value = json.loads(one.data)
            value = replaced(value, data.draw(st.sampled_from(places(value))), data.draw(VALUES))
            events[index] = one._replace(data=json.dumps(value))
        elif what == "drop" and len(events) > 1:
            del events[index]
        else:
            events.insert(index, one)
    translator, grammar = MAKERS[name](), Grammar()
    grammar.apply(Start(message_id="m"))
    try:
        for one in events:
            for chunk in translator.feed(one):
                encode(chunk)
                grammar.apply(chunk)
        for chunk in translator.finish():
            grammar.apply(chunk)
    except UpstreamError:
        return
    assert grammar.ended


@settings(max_examples=50)
@given(data=st.data())
def test_noise_in_a_whole_answer_is_ignored_or_an_upstream_error(data: st.DataObject) -> None:
    """The same of an answer that comes as one JSON value."""
    name = data.draw(st.sampled_from(sorted(MAKERS)))
    value = ANSWERS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        value = replaced(value, data.draw(st.sampled_from(places(value))), data.draw(VALUES))
    translator, grammar = MAKERS[name](), Grammar()
    grammar.apply(Start(message_id="m"))
    try:
        for chunk in [*translator.feed_answer(json.dumps(value)), *translator.finish()]:
            encode(chunk)
            grammar.apply(chunk)
    except UpstreamError:
        return
    assert grammar.ended


def last_response(name: str) -> Any:
    """Return the response that the last event of a transcript has."""
    return json.loads(read(DATA / "responses" / f"{name}.sse")[-1].data)["response"]


ANSWERS: dict[str, Any] = {
    "responses": {
        **last_response("reasoning"),
        "output": last_response("reasoning")["output"] + last_response("web-search")["output"],
    },
    "anthropic": {
        "type": "message",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
            {
                "type": "web_search_tool_result",
                "tool_use_id": "s1",
                "content": [{"type": "web_search_result", "url": "https://example.org", "title": "t"}],
            },
            {
                "type": "text",
                "text": "a",
                "citations": [
                    {"type": "char_location", "document_index": 0, "document_title": "d"},
                    {"type": "search_result_location", "source": "kb", "title": "t"},
                ],
            },
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    },
    "openai": {
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "content": "a",
                    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    },
}
