"""Our assembly makes the message that the real clients of `ai` 5, 6 and 7 make, and they take what our grammar allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from node import run_driver

from penstock.wire.assembly import assemble
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Custom,
    Data,
    Error,
    File,
    Finish,
    FinishStep,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningFile,
    ReasoningStart,
    ResetStep,
    SourceDocument,
    SourceUrl,
    Start,
    StartStep,
    SteeringMessage,
    TextDelta,
    TextEnd,
    TextStart,
    ToolApprovalResponse,
    ToolInputAvailable,
    ToolInputError,
    ToolInputStart,
    ToolOutputAvailable,
    ToolOutputDenied,
    ToolOutputError,
)
from penstock.wire.codec import encode
from penstock.wire.versions import SdkVersion, speaks
from random_turns import CITATIONS, ONE, TWO, ask, legal, more, random_turn

VERSIONS: tuple[SdkVersion, ...] = get_args(SdkVersion)


def begin(**fields: Any) -> ToolInputStart:
    """A tool call whose input follows."""
    return ToolInputStart(**({"tool_call_id": "c", "tool_name": "search"} | fields))


def call(**fields: Any) -> ToolInputAvailable:
    """A tool call with its input."""
    return ToolInputAvailable(
        **({"tool_call_id": "c", "tool_name": "search", "input": {"q": [1, None]}} | fields)
    )


def bad(**fields: Any) -> ToolInputError:
    """A tool call whose input can't be used."""
    first = {"tool_call_id": "c", "tool_name": "search", "input": '{"q"', "error_text": "bad input"}
    return ToolInputError(**(first | fields))


def output(value: Any = None, **fields: Any) -> ToolOutputAvailable:
    """Its output."""
    return ToolOutputAvailable(**({"tool_call_id": "c", "output": value} | fields))


def failed(**fields: Any) -> ToolOutputError:
    """Its failure."""
    return ToolOutputError(**({"tool_call_id": "c", "error_text": "no"} | fields))


def answer(approved: bool, **fields: Any) -> ToolApprovalResponse:
    """The answer."""
    return ToolApprovalResponse(approval_id="a", approved=approved, **fields)


def text(*deltas: str, id: str = "1") -> list[AnyChunk]:
    """A whole text part."""
    return [TextStart(id=id), *(TextDelta(id=id, delta=delta) for delta in deltas), TextEnd(id=id)]


def metadata(*values: Any) -> list[AnyChunk]:
    """Metadata, one after the other."""
    return [MessageMetadata(message_metadata=value) for value in values]


EVERYTHING: dict[str, Any] = {
    "title": "Title",
    "tool_metadata": {"k": {"l": 1}},
    "provider_executed": True,
} | ONE
OF_OUTPUT: dict[str, Any] = {"tool_metadata": {"z": 1}, "provider_executed": True} | ONE
LATER: dict[str, Any] = {"tool_metadata": {"m": 2}, "provider_executed": False} | TWO
DENIED = ToolOutputDenied(tool_call_id="c")

CASES: dict[str, list[AnyChunk]] = {
    "nothing": [],
    "text": text("Hello", ", ", "world"),
    "text without a delta": text(),
    "text not ended": [TextStart(id="1"), TextDelta(id="1", delta="cut")],
    "text with a delta that is empty": text("", "a", ""),
    "two texts at once": [
        TextStart(id="1"), TextStart(id="2"), TextDelta(id="2", delta="b"), TextDelta(id="1", delta="a"),
        TextEnd(id="2"), TextEnd(id="1"),
    ],
    "an id used again": [*text("a"), *text("b")],
    "text's provider metadata, the last counts": [
        TextStart(id="1", **ONE), TextDelta(id="1", delta="a"), TextDelta(id="1", delta="b", **TWO), TextEnd(id="1"),
    ],
    "text's provider metadata at its end": [TextStart(id="1", **ONE), TextEnd(id="1", **TWO)],
    "citations": [TextStart(id="1"), TextEnd(id="1", citations=CITATIONS)],
    "reasoning": [ReasoningStart(id="1", **ONE), ReasoningDelta(id="1", delta="a"), ReasoningEnd(id="1")],
    "reasoning not ended": [ReasoningStart(id="1"), ReasoningDelta(id="1", delta="a", **ONE)],
    "reasoning and text with one id": [
        ReasoningStart(id="1"), TextStart(id="1"), ReasoningDelta(id="1", delta="r"), TextDelta(id="1", delta="t"),
        ReasoningEnd(id="1", **TWO), TextEnd(id="1"),
    ],
    "files": [File(url="data:,a", media_type="text/plain"), File(url="u", media_type="image/png", **ONE)],
    "reasoning file": [ReasoningFile(url="u", media_type="image/png"), ReasoningFile(url="u", media_type="x/y", **ONE)],
    "sources": [
        SourceUrl(source_id="1", url="u"),
        SourceUrl(source_id="2", url="u", title="t", **ONE),
        SourceDocument(source_id="3", media_type="text/plain", title="t"),
        SourceDocument(source_id="4", media_type="text/plain", title="t", filename="f", **ONE),
    ],
    "custom": [Custom(kind_="a.b"), Custom(kind_="a.c", **ONE)],
    "steering": [SteeringMessage(id="u", parts=[{"type": "text", "text": "wait"}])],
    "data": [Data(type="data-x", data={"a": 1}), Data(type="data-x", data=None), Data(type="data-", data=[1])],
    "data replaced": [
        Data(type="data-x", id="1", data=1), *text("a"), Data(type="data-y", id="1", data=2),
        Data(type="data-x", id="1", data={"new": True}),
    ],
    "transient data": [
        Data(type="data-x", id="1", data=1), Data(type="data-x", id="1", data=2, transient=True),
        Data(type="data-x", data=3, transient=False),
    ],
    "steps": [StartStep(), *text("a"), FinishStep(), StartStep(), *text("b"), FinishStep()],
    "reset of a step": [
        StartStep(), *text("keep"), Data(type="data-x", id="1", data=1), FinishStep(),
        StartStep(), *text("drop"), Data(type="data-x", id="2", data=2), call(), ResetStep(),
        *text("again"), Data(type="data-x", id="1", data=3), Data(type="data-x", id="2", data=4), call(), output(1),
    ],
    "reset with open parts": [
        StartStep(), TextStart(id="1"), TextDelta(id="1", delta="drop"), ReasoningStart(id="1"),
        begin(), more('{"q'), ResetStep(),
        TextStart(id="1"), TextDelta(id="1", delta="new"), begin(), more('{"r":'), TextEnd(id="1"), call(), FinishStep(),
    ],
    "a call's id used again after a reset, in a later step": [
        StartStep(), begin(), more('{"old'), ResetStep(), FinishStep(), StartStep(), call(), output(1), FinishStep(),
    ],
    "reset of an empty step": [*text("before"), StartStep(), ResetStep(), *text("after")],
    "metadata at start and finish": [Start(message_metadata={"a": 1}), Finish(message_metadata={"b": {"c": 2}})],
    "metadata merged deeply": metadata({"a": {"b": [1, 2], "c": 1}}, {"a": {"b": [3], "d": {"e": None}}}, {"f": 0}),
    "metadata of null": metadata({"a": 1}, None, {"a": None}),
    "metadata that replaces": metadata({"a": {"b": 1}}, {"a": 2}, {"a": {"c": 3}}),
    "metadata with reserved keys": metadata({"a": {"prototype": 1}}, {"a": {"prototype": 2, "x": 1}, "prototype": 3}),
    "metadata that is text": metadata("words"),
    "call": [call(), output({"r": 1})],
    "call with everything": [begin(**EVERYTHING), call(**LATER, title="New"), output(1, **LATER)],
    "call with everything, once": [begin(**EVERYTHING), call(), output(1)],
    "call with everything at once": [call(**EVERYTHING), output(1)],
    "output with everything": [call(), output(1, **OF_OUTPUT)],
    "streamed input": [begin(), more('{"q":'), more('"a b"'), more("}"), call(), output("x")],
    "input under way": [begin(), more('{"q": "a'), more("b")],
    "input under way, nothing yet": [begin()],
    "input under way, empty": [begin(), more("")],
    "input under way, dynamic, with everything": [begin(dynamic=True, **EVERYTHING), more('{"q": tr')],
    "input that is no JSON": [begin(), more("looking for")],
    "text input": [begin(input_encoding="text"), more("SELECT "), more("1")],
    "text input, done": [begin(input_encoding="text"), more("SELECT 1"), call(input="SELECT 1"), output(1)],
    "JSON input, said aloud": [begin(input_encoding="json"), more('{"q"'), more(":1}")],
    "client's call": [StartStep(), call(), FinishStep(), Finish(finish_reason="tool-calls")],
    "dynamic": [begin(dynamic=True), more('{"q":1'), call(dynamic=True), output(1, dynamic=True)],
    "dynamic with everything": [begin(dynamic=True, **EVERYTHING), call(dynamic=True, **LATER), output(1, dynamic=True, **OF_OUTPUT)],
    "dynamic with everything at once": [call(dynamic=True, **EVERYTHING), output(1, dynamic=True, **LATER)],
    "preliminary outputs": [call(), output(1, preliminary=True), output(2, preliminary=True), output(3)],
    "preliminary outputs, and cut": [call(), output(1, preliminary=True, **TWO)],
    "preliminary output, said to be final": [call(dynamic=True), output(1, dynamic=True, preliminary=True), output(2, dynamic=True, preliminary=False)],
    "failed": [call(), failed()],
    "failed with everything": [call(**EVERYTHING), failed(**LATER)],
    "failed, dynamic, with everything": [call(dynamic=True, **EVERYTHING), failed(dynamic=True, **LATER)],
    "failed after a preliminary output": [call(), output(1, preliminary=True), failed()],
    "failed in mid input": [begin(), more('{"q":["a'), failed()],
    "failed in mid input, dynamic": [begin(dynamic=True), more('{"q":["a'), failed(dynamic=True)],
    "failed in mid input, text": [begin(input_encoding="text"), more("SEL"), failed()],
    "failed before any input": [begin(title="t"), failed()],
    "bad input": [begin(), more('{"q"'), bad()],
    "bad input with everything": [begin(**EVERYTHING), more('{"q"'), bad(**LATER, title="New")],
    "bad input, dynamic, with everything": [begin(dynamic=True, **EVERYTHING), bad(dynamic=True, **LATER)],
    "bad input at once": [bad(**EVERYTHING)],
    "bad input at once, dynamic": [bad(dynamic=True, **EVERYTHING)],
    "approval asked": [call(), ask(), Finish()],
    "approval asked with everything": [
        call(), ask(approval_descriptor={"x": 1}, input_schema_input={"y": 2}, reason="why", is_automatic=True, signature="s"),
    ],
    "approval asked with nulls": [call(), ask(approval_descriptor=None, input_schema_input=None, is_automatic=False)],
    "approved": [call(), ask(), answer(True), output(1)],
    "approved with everything": [call(**EVERYTHING), ask(reason="why"), answer(True, reason="yes", provider_executed=False, **TWO), output(1)],
    "approved, but failed": [call(dynamic=True), ask(), answer(True), failed(dynamic=True)],
    "rejected": [call(), ask(), answer(False, reason="no"), DENIED],
    "denied": [call(), ask(), DENIED, *text("then")],
    "output in a later step": [StartStep(), call(), FinishStep(), StartStep(), *text("a"), output(1), FinishStep()],
    "two calls at once": [
        begin(), begin(tool_call_id="d", tool_name="find-it"), more("[1", "d"), more('{"a":'), more(",2]", "d"),
        call(tool_call_id="d", tool_name="find-it", input=[1, 2]), output(1, tool_call_id="d"),
    ],
    "stopped": [StartStep(), *text("a"), FinishStep(), Abort(reason="stop"), Finish(finish_reason="other")],
    "failed turn": [*text("a"), TextStart(id="2"), TextDelta(id="2", delta="b"), Error(error_text="broken")],
    "awkward text": text("\u2028\u0085\r\n", "😀é\u0000", "</script>", "\ufeff"),
    "awkward values": [call(input={"": "", "a.b": -0.5, "n": 2**53, "d": 1e21, "u": "\ud7ff\ue000"}), output([[], {}, "", 0, False])],
}  # fmt: skip


def real_clients_results(turns: Sequence[list[AnyChunk]]) -> dict[SdkVersion, list[dict[str, Any]]]:
    """What the real clients make of these turns, in one run of Node."""
    jobs = [
        {"version": sdk, "chunks": [json.loads(encode(chunk)) for chunk in turn if speaks(chunk, sdk)]}
        for sdk in VERSIONS
        for turn in turns
    ]
    results = run_driver({"assemble": jobs, "deadlineS": 60})
    return {sdk: results[index * len(turns) : (index + 1) * len(turns)] for index, sdk in enumerate(VERSIONS)}


def check(turns: dict[str, list[AnyChunk]]) -> None:
    """Compare all messages, and the clients' verdicts."""
    differences = []
    for sdk, results in real_clients_results(list(turns.values())).items():
        for (name, turn), result in zip(turns.items(), results, strict=True):
            assert not result["timedOut"], name
            expected = [chunk.error_text for chunk in turn if isinstance(chunk, Error)]
            if result["errors"] != expected:
                differences.append(f"{name}: the client of {sdk} says {result['errors']}")
            ours, theirs = assemble(turn, "m", sdk), result["finish"][0]["message"]
            if turn[0] == Start(message_metadata={"a": 1}):
                theirs["id"] = "m"  # the client makes one up
            if ours != theirs:
                differences.append(
                    f"{name}: ai {sdk}\n  ours   {json.dumps(ours)}\n  theirs {json.dumps(theirs)}"
                )
    assert not differences, "\n".join(differences[:20])


def test_every_kind_is_in_a_case() -> None:
    assert {type(chunk) for turn in CASES.values() for chunk in legal(turn)} == set(get_args(AnyChunk))


def test_hand_made_turns_agree() -> None:
    """Each field of each chunk, in each version."""
    check({name: legal(turn) for name, turn in CASES.items()})


def test_generated_turns_agree() -> None:
    """Whatever our grammar allows, whole or cut off."""
    check({f"seed {seed}": random_turn(seed) for seed in range(250)})


DOCUMENT = (
    r'{"q": "a \"b\\\" \u00e9 \ud83d\ude00 😀", "n": [-1, 0.5, 1e3, -2.5E-7, 1e+2], "e": 1e+2,'
    r' "t": true, "f" : false ,"z":null, "o": {"": {}, "a": [ ], "b": [ {"c" : [ [ ] ] } , "d" ] }, "last": -12.5e-1}'
)
BROKEN = ["", " ", "}", "]", "{]", '{"a":1} trailing', '{"a":1}}', '[1, 2] "x', "{,", '{"a" 1', "nul", "nulx", "[nulx", "- 1", '"a" "b', '{"a":{"b":[1,2', "\ufeff{"]  # fmt: skip


@pytest.mark.parametrize(
    "text", [DOCUMENT, "[" + DOCUMENT, "-12.5e3 ", '"text \\n', "[-1,[-2,-3]]", " [ true,false,null ] "]
)
def test_input_cut_off_anywhere_agrees(text: str) -> None:
    """One call for every prefix."""
    check_inputs([text[:end] for end in range(len(text) + 1)])


def test_broken_input_agrees() -> None:
    check_inputs(BROKEN)


def check_inputs(texts: list[str]) -> None:
    """Compare the value of partial JSON, all texts in one message."""
    turn: list[AnyChunk] = []
    for index, text in enumerate(texts):
        turn += [begin(tool_call_id=str(index)), more(text, str(index))]
    for sdk, [result] in real_clients_results([legal(turn)]).items():
        for ours, theirs in zip(
            assemble(turn, "m", sdk)["parts"], result["finish"][0]["message"]["parts"], strict=True
        ):
            assert without_lone_surrogates(ours) == without_lone_surrogates(theirs), (
                f"ai {sdk}: {theirs['rawInput']}"
            )


def without_lone_surrogates(part: dict[str, Any]) -> Any:
    """Clients keep half of a pair that is cut in two, which has no UTF-8; we do not."""
    return json.loads(json.dumps(part, ensure_ascii=False).encode("utf-8", "ignore"))
