"""Legal turns by the hundred: from a seed, with every kind of chunk and any of its optional fields."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import UNSET

from penstock.errors import LocalProtocolError
from penstock.wire.chunks import (
    AnyChunk,
    Data,
    File,
    Finish,
    FinishStep,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    ResetStep,
    SourceUrl,
    Start,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolApprovalRequest,
    ToolApprovalResponse,
    ToolInputAvailable,
    ToolInputDelta,
    ToolInputError,
    ToolInputStart,
    ToolOutputAvailable,
    ToolOutputDenied,
    ToolOutputError,
)
from penstock.wire.grammar import Grammar

ONE: dict[str, Any] = {"provider_metadata": {"one": {"k": [1, None]}}}
TWO: dict[str, Any] = {"provider_metadata": {"two": {}}}
CITATIONS = [
    {
        "source": {"type": "source", "sourceType": "url", "id": "1", "url": "u"},
        "startIndex": 0,
        "citedText": "a",
    }
]


def more(delta: str, call_id: str = "c") -> ToolInputDelta:
    """More of its input."""
    return ToolInputDelta(tool_call_id=call_id, input_text_delta=delta)


def ask(**fields: Any) -> ToolApprovalRequest:
    """The question whether it may run."""
    return ToolApprovalRequest(**({"tool_call_id": "c", "approval_id": "a"} | fields))


def legal(chunks: Iterable[AnyChunk]) -> list[AnyChunk]:
    """The chunks after a `start`, checked by our grammar."""
    grammar = Grammar()
    turn = list(chunks)
    if not turn or not isinstance(turn[0], Start):
        turn.insert(0, Start(message_id="m"))
    for chunk in turn:
        grammar.apply(chunk)
    return turn


def random_chunk(dice: random.Random) -> AnyChunk:
    """Any chunk that may stand in a message, of two parts and three calls, with any of its optional fields."""
    id = dice.choice("12")
    call_id = dice.choice("abc")
    value: Any = dice.choice(
        [None, 1, "x", [1, {"a": None}], {"k": {"l": [2]}}, {"k": {"m": dice.randrange(9)}}]
    )
    flag: Any = dice.choice([UNSET, UNSET, True, False])
    some: dict[str, Any] = {"provider_metadata": dice.choice([UNSET, UNSET, *ONE.values(), *TWO.values()])}
    of_call: dict[str, Any] = some | {
        "tool_call_id": call_id,
        "dynamic": True if call_id == "b" else dice.choice([UNSET, False]),
        "provider_executed": flag,
        "tool_metadata": dice.choice([UNSET, UNSET, {"k": 1}, {"l": 2}]),
    }
    named = of_call | {"tool_name": f"tool-{call_id}", "title": dice.choice([UNSET, "t", "u"])}
    encoding: Any = dice.choice([UNSET, UNSET, "json", "text"])
    citations: Any = dice.choice([UNSET, CITATIONS])
    data_id: Any = dice.choice([UNSET, "1", "2"])
    make: list[Callable[[], AnyChunk]] = [
        lambda: TextStart(id=id, **some),
        lambda: TextDelta(id=id, delta=dice.choice(["a", "b ", "\n"]), **some),
        lambda: TextEnd(id=id, citations=citations, **some),
        lambda: ReasoningStart(id=id, **some),
        lambda: ReasoningDelta(id=id, delta="r", **some),
        lambda: ReasoningEnd(id=id, **some),
        lambda: ToolInputStart(input_encoding=encoding, **named),
        lambda: more(dice.choice(['{"a":', '"b', '",', "[1,", "-1.", "]", "}", "nul", '"k":', "\\u00", "e9", "\\", " "]), call_id),
        lambda: more(dice.choice(['{"a":', '"b', '",', "[1,", "2", '"', "true", ":"]), call_id),
        lambda: ToolInputAvailable(input=value, **named),
        lambda: ToolInputError(input=value, error_text="bad", **named),
        lambda: ask(tool_call_id=call_id, approval_id=f"approve-{call_id}", reason=dice.choice([UNSET, "r"]), is_automatic=flag),
        lambda: ToolApprovalResponse(approval_id=f"approve-{call_id}", approved=dice.random() < 0.7, provider_executed=flag, **some),
        lambda: ToolOutputAvailable(output=value, preliminary=flag, **of_call),
        lambda: ToolOutputError(error_text="no", **of_call),
        lambda: ToolOutputDenied(tool_call_id=call_id),
        lambda: Data(type=f"data-{id}", id=data_id, data=value, transient=flag),
        lambda: MessageMetadata(message_metadata=dice.choice([None, {"a": value}, {"a": {"b": value}, "c": 1}])),
        lambda: File(url="u", media_type="x/y", **some),
        lambda: SourceUrl(source_id="s", url="u", **some),
        StartStep, FinishStep, FinishStep, ResetStep,
    ]  # fmt: skip
    return dice.choice(make)()


def random_turn(seed: int) -> list[AnyChunk]:
    """A legal turn, mostly one that is cut off at some place."""
    dice = random.Random(seed)
    grammar = Grammar()
    turn: list[AnyChunk] = [Start(message_id="m")]
    grammar.apply(turn[0])
    for _ in range(dice.randrange(20, 120)):
        chunk = random_chunk(dice)
        try:
            grammar.apply(chunk)
        except LocalProtocolError:
            continue
        turn.append(chunk)
    if seed % 3 == 0:
        turn += [*grammar.closing_chunks("broken" if seed % 2 else None), Finish(message_metadata={"z": 1})]
    return legal(turn)
