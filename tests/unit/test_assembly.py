"""Chunks make the message that clients make of them, in linear time and without a hold on the producer's values.

That it is the very message of the real clients is shown in `tests/aisdk`; here is what must hold where there is no Node.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from penstock.wire.assembly import Assembly, assemble
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Data,
    Error,
    File,
    Finish,
    FinishStep,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    ResetStep,
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
from penstock.wire.codec import decode_chunk, encode
from penstock.wire.partial_json import parse_partial_json
from penstock.wire.versions import SdkVersion

SEARCH: dict[str, Any] = {"tool_call_id": "c", "tool_name": "search"}


def parts(*chunks: AnyChunk, sdk: SdkVersion = 7) -> list[dict[str, Any]]:
    """The parts that these chunks make."""
    made: list[dict[str, Any]] = assemble([Start(message_id="m"), *chunks], "", sdk)["parts"]
    return made


def text(*deltas: str) -> list[AnyChunk]:
    """A whole text part."""
    return [TextStart(id="1"), *(TextDelta(id="1", delta=delta) for delta in deltas), TextEnd(id="1")]


def test_a_turn_makes_its_message() -> None:
    chunks: list[AnyChunk] = [
        Start(message_id="m", message_metadata={"model": "x"}),
        StartStep(),
        ReasoningStart(id="1"),
        ReasoningDelta(id="1", delta="Hm"),
        ReasoningDelta(id="1", delta="m.", provider_metadata={"p": {"k": 1}}),
        ReasoningEnd(id="1"),
        ToolInputAvailable(input={"q": 1}, **SEARCH),
        ToolOutputAvailable(tool_call_id="c", output=[2]),
        FinishStep(),
        StartStep(),
        *text("Hel", "lo"),
        FinishStep(),
        Finish(finish_reason="stop", message_metadata={"tokens": 3}),
    ]
    assert assemble(chunks, "made up") == {
        "id": "m",
        "role": "assistant",
        "metadata": {"model": "x", "tokens": 3},
        "parts": [
            {"type": "step-start"},
            {"type": "reasoning", "id": "1", "text": "Hmm.", "state": "done", "providerMetadata": {"p": {"k": 1}}},
            {"type": "tool-search", "toolCallId": "c", "state": "output-available", "input": {"q": 1}, "output": [2]},
            {"type": "step-start"},
            {"type": "text", "text": "Hello", "state": "done"},
        ],
    }  # fmt: skip


def test_a_message_keeps_the_id_it_was_given_until_the_stream_names_one() -> None:
    assert assemble([Start()], "given") == {"id": "given", "role": "assistant", "parts": []}
    assert assemble([Start(message_id="named")], "given")["id"] == "named"


@pytest.mark.parametrize(
    "chunk", [Abort(reason="x"), Error(error_text="x"), FinishStep(), Finish(finish_reason="stop")]
)
def test_what_ends_leaves_no_trace(chunk: AnyChunk) -> None:
    assert assemble([Start(), chunk], "m") == {"id": "m", "role": "assistant", "parts": []}


def test_a_message_can_be_asked_for_at_any_time() -> None:
    """Each answer is whole, says what is under way, and is not changed by what comes later."""
    assembly = Assembly("m")
    answers = []
    for chunk in (
        Start(),
        *text("a", "b"),
        ToolInputStart(**SEARCH),
        ToolInputDelta(tool_call_id="c", input_text_delta='{"q": "x'),
    ):
        assembly.apply(chunk)
        answers.append((assembly.message()["parts"], assembly.message()["parts"]))
    assert all(once == again for once, again in answers)
    assert [made[0]["text"] for made, _ in answers if made] == ["", "a", "ab", "ab", "ab", "ab"]
    assert [made[0]["state"] for made, _ in answers if made] == [
        "streaming",
        "streaming",
        "streaming",
        "done",
        "done",
        "done",
    ]
    assert answers[-1][0][1] == {
        "type": "tool-search",
        "toolCallId": "c",
        "state": "input-streaming",
        "input": {"q": "x"},
        "rawInput": '{"q": "x',
    }  # fmt: skip


def test_what_the_producer_does_with_a_value_afterwards_changes_nothing() -> None:
    assembly = Assembly("m")
    value: dict[str, Any] = {"list": [1]}
    for chunk in (
        Start(message_metadata=value),
        Data(type="data-x", data=value),
        Data(type="data-y", id="1", data=None),
        Data(type="data-y", id="1", data=value),
        ToolInputAvailable(input=value, **SEARCH),
        ToolOutputAvailable(tool_call_id="c", output=value),
    ):
        assembly.apply(chunk)
    value["list"].append(2)
    message = assembly.message()
    assert message["metadata"] == {"list": [1]}
    assert [part.get("data") or part["output"] for part in message["parts"]] == [{"list": [1]}] * 3
    assert message["parts"][2]["input"] == {"list": [1]}


def test_a_message_is_the_same_whether_made_here_or_from_the_wire() -> None:
    chunks: list[AnyChunk] = [
        Start(message_id="m", message_metadata={"at": (1, 2)}),
        File(url="u", media_type="x/y", provider_metadata={"p": {"k": (1,)}}),
        ToolInputAvailable(input=({"q": 1.0},), title="t", **SEARCH),
        ToolOutputError(tool_call_id="c", error_text="no"),
    ]
    made = json.loads(json.dumps(assemble(chunks, "m")))
    assert made == assemble([decode_chunk(encode(chunk)) for chunk in chunks], "m")


def test_metadata_is_merged_deeply() -> None:
    values: list[Any] = [
        {"a": {"b": [1, 2], "c": 1}},
        None,
        {"a": {"b": [3], "d": None}},
        {"e": 1, "prototype": 2},
    ]
    message = assemble([Start(), *(MessageMetadata(message_metadata=value) for value in values)], "m")
    assert message["metadata"] == {"a": {"b": [3], "c": 1, "d": None}, "e": 1}


def test_data_with_an_id_is_replaced_in_place_and_transient_data_is_not_kept() -> None:
    made = parts(
        Data(type="data-x", id="1", data=1),
        *text("a"),
        Data(type="data-y", id="1", data=2),
        Data(type="data-x", id="1", data=3),
        Data(type="data-x", id="1", data=4, transient=True),
    )
    assert [part.get("data") for part in made] == [3, None, 2]


def test_a_reset_drops_the_step() -> None:
    before: list[AnyChunk] = [StartStep(), *text("keep"), FinishStep(), StartStep()]
    dropped: list[AnyChunk] = [TextStart(id="1"), TextDelta(id="1", delta="drop"), ToolInputStart(**SEARCH)]
    after: list[AnyChunk] = [*text("new"), ToolInputAvailable(input=1, **SEARCH)]
    assert parts(*before, *dropped, ResetStep(), *after) == parts(*before, *after)


def test_clients_before_7_are_not_told_of_a_reset() -> None:
    chunks: list[AnyChunk] = [
        StartStep(),
        TextStart(id="1"),
        TextDelta(id="1", delta="old"),
        ResetStep(),
        *text("new"),
    ]
    assert [part.get("text") for part in parts(*chunks, sdk=6)] == [None, "old", "new"]


def test_a_tool_call_keeps_what_came_of_its_input_when_it_fails() -> None:
    chunks: list[AnyChunk] = [
        ToolInputStart(**SEARCH),
        ToolInputDelta(tool_call_id="c", input_text_delta='{"q": [1, 2'),
        ToolOutputError(tool_call_id="c", error_text="interrupted"),
    ]
    [part] = parts(*chunks)
    assert part["input"] == {"q": [1, 2]}
    assert part["rawInput"] == '{"q": [1, 2'
    assert part["errorText"] == "interrupted"
    assert part["state"] == "output-error"


def test_an_output_replaces_what_came_before() -> None:
    [part] = parts(
        ToolInputStart(title="t", **SEARCH),
        ToolInputDelta(tool_call_id="c", input_text_delta="1"),
        ToolInputAvailable(input=1, **SEARCH),
        ToolOutputAvailable(tool_call_id="c", output="…", preliminary=True),
        ToolOutputAvailable(tool_call_id="c", output="whole"),
    )
    assert part == {
        "type": "tool-search",
        "toolCallId": "c",
        "title": "t",
        "state": "output-available",
        "input": 1,
        "output": "whole",
    }


def test_an_approval_stays_with_its_call() -> None:
    asked: list[AnyChunk] = [
        ToolInputAvailable(input=1, **SEARCH),
        ToolApprovalRequest(tool_call_id="c", approval_id="a", reason="why"),
    ]
    answered = [*asked, ToolApprovalResponse(approval_id="a", approved=False, reason="no")]
    [part] = parts(*answered, ToolOutputDenied(tool_call_id="c"))
    assert part["state"] == "output-denied"
    assert part["approval"] == {"id": "a", "requestReason": "why", "approved": False, "reason": "no"}
    assert parts(*answered, sdk=6) == parts(*asked, sdk=6)
    assert parts(*asked, sdk=5)[0]["state"] == "input-available"


@pytest.mark.parametrize(
    ("sdk", "fields"),
    [
        (5, {"rawInput": "{", "callProviderMetadata": {"p": {}}}),
        (6, {"rawInput": "{", "resultProviderMetadata": {"p": {}}}),
        (7, {"input": "{", "resultProviderMetadata": {"p": {}}}),
    ],
)
def test_versions_differ(sdk: SdkVersion, fields: dict[str, Any]) -> None:
    [part] = parts(
        ToolInputError(input="{", error_text="bad", provider_metadata={"p": {}}, **SEARCH), sdk=sdk
    )
    for key in ("type", "toolCallId", "state", "errorText"):
        del part[key]
    assert part == fields


@pytest.mark.parametrize(
    ("start", "delta"),
    [
        (TextStart(id="c"), TextDelta(id="c", delta="ab ")),
        (ReasoningStart(id="c"), ReasoningDelta(id="c", delta="ab ", provider_metadata={"p": {}})),
        (ToolInputStart(**SEARCH), ToolInputDelta(tool_call_id="c", input_text_delta="[1,")),
    ],
)
def test_time_is_linear(start: AnyChunk, delta: AnyChunk) -> None:
    began = time.perf_counter()
    [part] = parts(start, *[delta] * 30_000)
    assert len(part.get("text") or part["rawInput"]) == 90_000
    assert time.perf_counter() - began < 1  # it takes a tenth of that


@pytest.mark.parametrize(
    ("cut", "value"),
    [
        ("", UNSET),
        (" ", UNSET),
        ("{", {}),
        ('{"a', {}),
        ('{"a"', {}),
        ('{"a": ', {}),
        ('{"a": "b', {"a": "b"}),
        ('{"a": "b\\', {"a": "b"}),
        ('{"a": "b\\u00e', {"a": "b"}),
        ('{"a": "b\\ud83d\\ud', {"a": "b"}),
        ('{"a": "b\\ud83d\\ude00', {"a": "b😀"}),
        ('{"a": "\\\\', {"a": "\\"}),
        ('{"a": "b", ', {"a": "b"}),
        ('{"a": "b", "c": [1, {"d": t', {"a": "b", "c": [1, {"d": True}]}),
        ('{"a": nul', {"a": None}),
        ('{"a": -', {}),
        ("[-", []),
        ("[1, -2.", [1, -2]),
        ("[1.5e", [1.5]),
        ('"text', "text"),
        ("12", 12),
        ("{} and more", {}),
        ("not JSON", UNSET),
        ("[}", []),
        ("[" * 1000, UNSET),
    ],
)
def test_partial_json_has_the_value_that_is_there(cut: str, value: Any) -> None:
    assert parse_partial_json(cut) == value


@pytest.mark.parametrize(("cut", "sdk"), [('"\\u00e', 5), ("[-", 5), ("[-", 6)])
def test_earlier_clients_have_no_value_at_some_places(cut: str, sdk: SdkVersion) -> None:
    assert parse_partial_json(cut, sdk) is UNSET
    assert parse_partial_json(cut, 7) is not UNSET


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)  # fmt: skip


def begins(part: Any, whole: Any) -> bool:
    """Whether a value may be what a cut off document has of another."""
    if isinstance(whole, str):
        return isinstance(part, str) and whole.startswith(part)
    if isinstance(whole, list):
        return isinstance(part, list) and len(part) <= len(whole) and all(map(begins, part, whole))
    if isinstance(whole, dict):
        return isinstance(part, dict) and all(key in whole and begins(part[key], whole[key]) for key in part)
    return part == whole or (type(whole) in (int, float) and type(part) in (int, float))


@given(DOCUMENTS, st.booleans(), st.floats(0, 1))
def test_partial_json_is_a_beginning_of_the_whole(document: Any, escaped: bool, share: float) -> None:
    whole = json.dumps(document, ensure_ascii=escaped)
    assert parse_partial_json(whole) == document
    part = parse_partial_json(whole[: int(share * len(whole))])
    assert part is UNSET or begins(part, document)
    if isinstance(document, str | list | dict) and share * len(whole) >= 1:
        assert part is not UNSET


@given(st.text(alphabet='{}[]",:\\u0e1-+.tfn \n', max_size=40))
def test_partial_json_takes_anything(text: str) -> None:
    parse_partial_json(text)


def test_partial_json_takes_linear_time() -> None:
    began = time.perf_counter()
    for text in (
        '{"a": "' + "x" * 99_999,
        '["' + "\\\\" * 33_333,
        "[" * 33_333,
        "[1," * 33_333,
        '{"' + "a" * 99_999,
    ):
        parse_partial_json(text)
    assert time.perf_counter() - began < 2  # it takes a tenth of that
