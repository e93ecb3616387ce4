"""A compaction is a legal message that makes the same `UIMessage` in every version of the client, whenever it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest

from penstock.journal.compaction import Compaction
from penstock.journal.entry import Entry
from penstock.wire.assembly import assemble
from penstock.wire.chunks import (
    AnyChunk,
    Data,
    Finish,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    Start,
    TextDelta,
    TextEnd,
    TextStart,
)
from penstock.wire.codec import encode
from penstock.wire.grammar import Grammar
from penstock.wire.versions import SdkVersion
from random_turns import random_turn


def entries(chunks: Sequence[AnyChunk]) -> list[Entry]:
    """Put chunks into a journal."""
    return [Entry(offset, chunk, encode(chunk), b"m.1-") for offset, chunk in enumerate(chunks)]


def compacted(chunks: Sequence[AnyChunk], *, fed_at: Sequence[int] = ()) -> list[AnyChunk]:
    """Compact chunks, fed in pieces and asked after each."""
    compaction = Compaction()
    journal = entries(chunks)
    for start, end in zip([0, *fed_at], [*fed_at, len(journal)], strict=True):
        compaction.feed(journal[start:end])
        compaction.chunks()
    assert compaction.fed == len(journal)
    return compaction.chunks()


@pytest.mark.parametrize("first_seed", range(0, 500, 50))
def test_it_makes_the_same_message_and_is_legal(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        turn = random_turn(seed)
        for length in (len(turn), len(turn) // 2, len(turn) // 3):
            part = turn[:length]
            short = compacted(part, fed_at=(length // 4, length // 2))
            for sdk in get_args(SdkVersion):
                version: SdkVersion = sdk
                assert assemble(short, "m", version) == assemble(part, "m", version), (seed, length)
            grammar = Grammar()
            for chunk in short:
                grammar.apply(chunk)


def test_one_delta_for_each_part_also_of_interleaved_ones() -> None:
    turn: list[AnyChunk] = [Start(message_id="m"), TextStart(id="1"), ReasoningStart(id="1")]
    for number in range(1000):
        turn.append(TextDelta(id="1", delta=str(number)))
        turn.append(ReasoningDelta(id="1", delta="r"))
    turn += [TextEnd(id="1"), ReasoningEnd(id="1")]
    assert compacted(turn) == [
        Start(message_id="m"),
        TextStart(id="1"),
        ReasoningStart(id="1"),
        TextDelta(id="1", delta="".join(map(str, range(1000)))),
        ReasoningDelta(id="1", delta="r" * 1000),
        TextEnd(id="1"),
        ReasoningEnd(id="1"),
    ]


def test_an_id_that_is_used_again_is_another_part() -> None:
    turn: list[AnyChunk] = [Start()]
    for word in ("a", "b"):
        turn += [TextStart(id="1"), TextDelta(id="1", delta=word), TextEnd(id="1")]
    assert compacted(turn) == turn


def test_the_seam_of_a_continued_turn_is_closed_and_its_metadata_kept() -> None:
    turn: list[AnyChunk] = [
        Start(message_id="m"),
        Finish(finish_reason="tool-calls", message_metadata={"a": 1}),
        Start(message_id="m", message_metadata={"b": 2}),
        Finish(finish_reason="stop"),
    ]
    assert compacted(turn) == [
        Start(message_id="m"),
        MessageMetadata(message_metadata={"a": 1}),
        MessageMetadata(message_metadata={"b": 2}),
        Finish(finish_reason="stop"),
    ]


def test_transient_data_is_left_out_and_a_replaced_value_too() -> None:
    turn: list[AnyChunk] = [
        Start(),
        Data(type="data-x", id="1", data=1),
        Data(type="data-note", data="passing", transient=True),
        Data(type="data-x", data="no id"),
        Data(type="data-x", id="1", data=2),
    ]
    assert compacted(turn) == [
        Start(),
        Data(type="data-x", id="1", data=2),
        Data(type="data-x", data="no id"),
    ]
