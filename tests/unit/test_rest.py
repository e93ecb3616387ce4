"""The rest of an answer: wherever it broke off, what is written then makes the whole of it, and nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UpstreamTruncatedError
from penstock.relay.responses import ResponsesTranslator
from penstock.relay.rest import Written, rest_of
from penstock.turns.runner import INTERRUPTED
from penstock.wire.assembly import Assembly
from penstock.wire.chunks import (
    AnyChunk,
    Finish,
    FinishStep,
    Start,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolInputAvailable,
    ToolInputDelta,
    ToolInputStart,
)
from penstock.wire.grammar import Grammar
from penstock.wire.sse_parser import SseParser

TRANSCRIPTS = Path(__file__).parent.parent / "data" / "responses"
NAMES = ["text", "tools", "interleaved", "reasoning", "web-search", "refusal", "incomplete", "custom-tool"]


class Message:
    """A turn's message, as the runner keeps it."""

    def __init__(self, chunks: Iterable[AnyChunk] = ()) -> None:
        self.grammar = Grammar()
        self._assembly = Assembly("m")
        self.add([Start(message_id="m"), *chunks])

    def add(self, chunks: Iterable[AnyChunk]) -> None:
        """Write chunks, which must be legal."""
        for chunk in chunks:
            self.grammar.apply(chunk)
            self._assembly.apply(chunk)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Its parts."""
        parts: list[dict[str, Any]] = self._assembly.message()["parts"]
        return parts

    @property
    def written(self) -> Written:
        """What a recoverer sees of it."""
        return Written(self.parts, self.grammar.text_ends(), in_step=self.grammar.in_step)

    def text(self, kind: str = "text") -> str:
        """All the text of a kind."""
        return "".join(part["text"] for part in self.parts if part["type"] == kind)

    @property
    def calls(self) -> dict[str, Any]:
        """The inputs of the tool calls that were not interrupted."""
        return {
            part["toolCallId"]: part["input"]
            for part in self.parts
            if "toolCallId" in part and part.get("errorText") != INTERRUPTED
        }


def _is_source(part: dict[str, Any]) -> bool:
    return str(part["type"]).startswith("source-")


def answers(name: str) -> tuple[list[AnyChunk], list[AnyChunk]]:
    """Return the chunks of a transcript as they stream, and as they are when the response is asked for."""
    events = SseParser().feed((TRANSCRIPTS / f"{name}.sse").read_bytes())
    streaming, asking = ResponsesTranslator(), ResponsesTranslator()
    streamed = [chunk for event in events for chunk in streaming.feed(event)]
    response = json.loads(events[-1].data)["response"]
    return streamed, [*asking.feed_answer(json.dumps(response)), *asking.finish()]


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_that_lost_its_upstream_becomes_the_whole_message(name: str) -> None:
    """Wherever it stopped: the parts that are open go on."""
    streamed, asked = answers(name)
    whole = Message(streamed).parts
    for cut in range(2, len(streamed)):
        message = Message(streamed[:cut])
        rest = rest_of(asked, message.written)
        if any(isinstance(chunk, FinishStep) for chunk in streamed[:cut]):
            assert [type(chunk) for chunk in rest if not isinstance(chunk, Finish)] == [type(asked[1])]
        message.add(rest)
        assert message.grammar.ended
        assert sorted(message.parts, key=_is_source) == sorted(whole, key=_is_source)


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_whose_process_died_gets_the_rest_in_parts_of_its_own(name: str) -> None:
    """What the runner closed stays closed; the text is whole, and the calls are made."""
    streamed, asked = answers(name)
    whole = Message(streamed)
    for cut in range(2, len(streamed)):
        message = Message(streamed[:cut])
        if message.grammar.ended:
            continue
        message.add(message.grammar.closing_chunks(INTERRUPTED))
        once = len(message.parts)
        message.add(rest_of(asked, message.written))
        assert message.text() == whole.text()
        assert message.text("reasoning") == whole.text("reasoning")
        assert list(message.calls.values()) == list(whole.calls.values())
        assert {"type": "text", "text": "", "state": "done"} not in message.parts[once:]


def test_it_may_die_again() -> None:
    """A second recovery adds what the first did not, and makes the call under a third id."""
    streamed, asked = answers("tools")
    message = Message(streamed[:3])
    for _ in range(2):
        message.add(message.grammar.closing_chunks(INTERRUPTED))
        message.add(rest_of(asked, message.written)[:3])
    message.add(message.grammar.closing_chunks(INTERRUPTED))
    message.add(rest_of(asked, message.written))
    assert message.calls == {"call_a-4": {"city": "Zürich"}, "call_b": {}}
    assert [part["toolCallId"] for part in message.parts if "toolCallId" in part] == [
        "call_a",
        "call_a-2",
        "call_a-3",
        "call_a-4",
        "call_b",
    ]


def said(*texts: str) -> list[AnyChunk]:
    """Make an answer of text parts."""
    chunks: list[AnyChunk] = [StartStep()]
    for number, words in enumerate(texts):
        part_id = f"p{number}"
        chunks += [TextStart(id=part_id), TextDelta(id=part_id, delta=words), TextEnd(id=part_id)]
    return [*chunks, FinishStep(), Finish(finish_reason="stop")]


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (["Hello"], ["Hallo, world"]),
        (["Hello, world"], ["Hello"]),
        (["Hello"], []),
        (["a", "b"], ["a", "c"]),
    ],
)
def test_another_answer_is_not_the_rest_of_this_one(written: Sequence[str], answer: Sequence[str]) -> None:
    """Two halves of different answers are no answer."""
    message = Message(said(*written)[:-3])
    with pytest.raises(UpstreamTruncatedError):
        rest_of(said(*answer), message.written)


def test_a_call_that_the_answer_does_not_have_makes_it_another() -> None:
    """Its input would never end."""
    call: list[AnyChunk] = [StartStep(), ToolInputStart(tool_call_id="c", tool_name="f")]
    with pytest.raises(UpstreamTruncatedError):
        rest_of(said("a"), Message(call).written)


def test_other_reasoning_is_left_as_it_is() -> None:
    """It is not the answer, and providers keep another version of it than they stream."""
    streamed, _ = answers("reasoning")
    cut = next(i for i, chunk in enumerate(streamed) if getattr(chunk, "delta", "") == "may rain.")
    message = Message(streamed[:cut])
    message.add(rest_of(said("I look."), message.written))
    assert message.text("reasoning") == "**Weighing**\n\nIt "
    assert message.text() == "I look."


def test_an_empty_part_that_the_answer_does_not_have_is_ended() -> None:
    """Or the step could not end."""
    message = Message(said("")[:2])
    message.add(rest_of(said(), message.written))
    assert message.grammar.ended


def test_only_the_newest_answer_counts() -> None:
    """Of an earlier step nothing is repeated, and nothing compared."""
    call: list[AnyChunk] = [
        ToolInputStart(tool_call_id="c", tool_name="f"),
        ToolInputDelta(tool_call_id="c", input_text_delta="{}"),
        ToolInputAvailable(tool_call_id="c", tool_name="f", input={}),
    ]
    first = [StartStep(), *said("Earlier.")[1:-2], *call, FinishStep()]
    message = Message([*first, *said("Now this")[:3]])
    assert message.written.earlier_calls == {"c"}
    message.add(rest_of(said("Now this and that"), message.written))
    assert message.text() == "Earlier.Now this and that"
