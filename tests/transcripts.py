"""Recorded streams of model APIs, in `tests/data`, and what a translator makes of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UpstreamError
from penstock.wire.assembly import Assembly
from penstock.wire.chunks import AnyChunk, Start
from penstock.wire.codec import encode
from penstock.wire.grammar import Grammar
from penstock.wire.sse_parser import SseParser

UNUSABLE_INPUTS = [
    '{"x":',
    '{"x":1,"x":2}',
    '{"__proto__":{}}',
    json.dumps("x" * 300_000),
    "[" * 100 + "]" * 100,
]
"""Inputs of tool calls that no client takes."""

NO_EVENTS = ["ping", "[]", "1", '{"a": ' * 100 + "1" + "}" * 100, '"\\ud800"', "\ud800"]
"""Data that is no event of any API."""


class Transcripts:
    """Those of one API.

    Args:
        folder: where in `tests/data`.
        translator: its class.
    """

    def __init__(self, folder: str, translator: Callable[..., Any]) -> None:
        self._folder = Path(__file__).parent / "data" / folder
        self._translator = translator

    @property
    def names(self) -> set[str]:
        """All that there are."""
        return {path.stem for path in self._folder.iterdir()}

    def make_translator(self, **options: Any) -> Any:
        """Make a translator that counts the ids it makes."""
        ids = itertools.count(1)
        return self._translator(make_id=lambda: f"made-{next(ids)}", **options)

    def body(self, name: str) -> bytes:
        """Read a recorded stream."""
        return (self._folder / f"{name}.sse").read_bytes()

    def translate(self, pieces: Iterable[bytes]) -> list[AnyChunk]:
        """Parse and translate a body that arrives in pieces."""
        parser = SseParser()
        translator = self.make_translator()
        chunks: list[AnyChunk] = []
        for piece in pieces:
            for event in parser.feed(piece):
                chunks.extend(translator.feed(event))
        chunks.extend(translator.finish())
        assert translator.ended
        assert translator.whole
        return chunks

    def check_whole(self, name: str, expected: list[list[Any]]) -> None:
        """Check that a stream becomes these chunks, at once and byte by byte, and they a legal turn and a message."""
        body = self.body(name)
        chunks = self.translate([body])
        assert brief(chunks) == expected
        grammar = Grammar()
        for chunk in [Start(message_id="m"), *chunks]:
            grammar.apply(chunk)
        assert grammar.ended
        states = {part["state"] for part in message(chunks)["parts"] if "state" in part}
        assert states <= {"done", "input-available"}
        assert brief(self.translate(body[i : i + 1] for i in range(len(body)))) == expected

    def check_answer(self, name: str, answer: Any) -> None:
        """Check that an answer which comes whole makes the same message as the stream, at the same cost."""
        chunks = self.translate([self.body(name)])
        translator = self.make_translator()
        whole = [*translator.feed_answer(json.dumps(answer)), *translator.finish()]
        assert message(whole) == message(chunks)
        assert brief(whole)[-1] == brief(chunks)[-1]

    def check_broken(self, name: str, kind: type[UpstreamError], sentence: str) -> None:
        """Check that a stream fails. The user reads our sentence; the upstream's own words are for the log."""
        with pytest.raises(UpstreamError) as caught:
            self.translate([self.body(name)])
        assert type(caught.value) is kind
        assert caught.value.error_text == sentence
        assert "secret" not in caught.value.error_text


def message(chunks: Iterable[AnyChunk]) -> dict[str, Any]:
    """Assemble the message that chunks make; its sources last, for they may stand before or behind what cites them."""
    assembly = Assembly("m")
    for chunk in chunks:
        assembly.apply(chunk)
    made = assembly.message()
    made["parts"].sort(key=lambda part: part["type"].startswith("source-"))
    return made


def brief(chunks: Iterable[AnyChunk]) -> list[list[Any]]:
    """Show each chunk as its type and its values, in the order of the wire."""
    return [list(json.loads(encode(chunk)).values()) for chunk in chunks]


def usage(read: int, written: int) -> dict[str, Any]:
    """Show what the chunk at the end says of the cost."""
    return {"usage": {"inputTokens": read, "outputTokens": written, "totalTokens": read + written}}


def text(part_id: str, *deltas: str) -> list[list[Any]]:
    """Show a text part."""
    return [
        ["text-start", part_id],
        *(["text-delta", part_id, delta] for delta in deltas),
        ["text-end", part_id],
    ]


def call(call_id: str, name: str, value: Any, *deltas: str) -> list[list[Any]]:
    """Show a tool call."""
    return [
        ["tool-input-start", call_id, name],
        *(["tool-input-delta", call_id, delta] for delta in deltas),
        ["tool-input-available", call_id, name, value],
    ]
