"""Chunks and JSON: what may go out, and what is let in."""

from __future__ import annotations

import contextlib
import enum
import json
import math
import sys
import time
from collections import OrderedDict
from typing import Any, get_args
from uuid import uuid4

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from penstock.errors import LimitExceededError, LocalProtocolError, RemoteProtocolError
from penstock.limits import WireLimits
from penstock.wire import chunks as c
from penstock.wire.codec import convert, decode_chunk, decode_json, decode_stored, encode, encode_json

META: dict[str, dict[str, Any]] = {"openai": {"itemId": "i1", "n": [1, None]}}
MIB = 1 << 20

SAMPLES: list[tuple[c.AnyChunk, dict[str, Any]]] = [
    (c.Start(), {"type": "start"}),
    (
        c.Start(message_id="m", message_metadata={"a": None}),
        {"type": "start", "messageId": "m", "messageMetadata": {"a": None}},
    ),
    (
        c.Finish(finish_reason="tool-calls", message_metadata=1),
        {"type": "finish", "finishReason": "tool-calls", "messageMetadata": 1},
    ),
    (c.Abort(reason="stopped"), {"type": "abort", "reason": "stopped"}),
    (c.Error(error_text="no"), {"type": "error", "errorText": "no"}),
    (c.MessageMetadata(message_metadata=None), {"type": "message-metadata", "messageMetadata": None}),
    (c.StartStep(), {"type": "start-step"}),
    (c.FinishStep(), {"type": "finish-step"}),
    (c.ResetStep(), {"type": "reset-step"}),
    (c.TextStart(id="t"), {"type": "text-start", "id": "t"}),
    (c.TextDelta(id="t", delta="hé\u2028\r\n"), {"type": "text-delta", "id": "t", "delta": "hé\u2028\r\n"}),
    (
        c.TextDelta(id="t", delta="x", provider_metadata=META),
        {"type": "text-delta", "id": "t", "delta": "x", "providerMetadata": META},
    ),
    (c.TextEnd(id="t", citations=[{"a": 1}]), {"type": "text-end", "id": "t", "citations": [{"a": 1}]}),
    (c.ReasoningStart(id="r"), {"type": "reasoning-start", "id": "r"}),
    (c.ReasoningDelta(id="r", delta="hm"), {"type": "reasoning-delta", "id": "r", "delta": "hm"}),
    (
        c.ReasoningEnd(id="r", provider_metadata=META),
        {"type": "reasoning-end", "id": "r", "providerMetadata": META},
    ),
    (
        c.ReasoningFile(url="u", media_type="image/png"),
        {"type": "reasoning-file", "url": "u", "mediaType": "image/png"},
    ),
    (c.File(url="u", media_type="image/png"), {"type": "file", "url": "u", "mediaType": "image/png"}),
    (
        c.SourceUrl(source_id="s", url="u", title="T"),
        {"type": "source-url", "sourceId": "s", "url": "u", "title": "T"},
    ),
    (
        c.SourceDocument(source_id="s", media_type="text/plain", title="T", filename="f"),
        {
            "type": "source-document",
            "sourceId": "s",
            "mediaType": "text/plain",
            "title": "T",
            "filename": "f",
        },
    ),
    (c.Custom(kind_="acme.thing"), {"type": "custom", "kind": "acme.thing"}),
    (
        c.SteeringMessage(id="s", parts=[{"type": "text", "text": "wait"}]),
        {"type": "steering-message", "id": "s", "parts": [{"type": "text", "text": "wait"}]},
    ),
    (
        c.ToolInputStart(tool_call_id="k", tool_name="w", input_encoding="json", dynamic=True, title="W"),
        {
            "type": "tool-input-start",
            "toolCallId": "k",
            "toolName": "w",
            "inputEncoding": "json",
            "dynamic": True,
            "title": "W",
        },
    ),
    (
        c.ToolInputDelta(tool_call_id="k", input_text_delta='{"a'),
        {"type": "tool-input-delta", "toolCallId": "k", "inputTextDelta": '{"a'},
    ),
    (
        c.ToolInputAvailable(tool_call_id="k", tool_name="w", input={"a": [1, 2.5, True, None, "x"]}),
        {
            "type": "tool-input-available",
            "toolCallId": "k",
            "toolName": "w",
            "input": {"a": [1, 2.5, True, None, "x"]},
        },
    ),
    (
        c.ToolInputError(
            tool_call_id="k", tool_name="w", input="{", error_text="bad", provider_executed=False
        ),
        {
            "type": "tool-input-error",
            "toolCallId": "k",
            "toolName": "w",
            "input": "{",
            "errorText": "bad",
            "providerExecuted": False,
        },
    ),
    (
        c.ToolApprovalRequest(approval_id="a", tool_call_id="k", is_automatic=True),
        {"type": "tool-approval-request", "approvalId": "a", "toolCallId": "k", "isAutomatic": True},
    ),
    (
        c.ToolApprovalResponse(approval_id="a", approved=False, reason="no"),
        {"type": "tool-approval-response", "approvalId": "a", "approved": False, "reason": "no"},
    ),
    (
        c.ToolOutputAvailable(tool_call_id="k", output=None, preliminary=True),
        {"type": "tool-output-available", "toolCallId": "k", "output": None, "preliminary": True},
    ),
    (
        c.ToolOutputError(tool_call_id="k", error_text="no", tool_metadata={"a": 1}),
        {"type": "tool-output-error", "toolCallId": "k", "errorText": "no", "toolMetadata": {"a": 1}},
    ),
    (c.ToolOutputDenied(tool_call_id="k"), {"type": "tool-output-denied", "toolCallId": "k"}),
    (
        c.Data(type="data-x", id="1", data=[], transient=True),
        {"type": "data-x", "id": "1", "data": [], "transient": True},
    ),
    (c.Data(type="data-", data=None), {"type": "data-", "data": None}),
]


class Colour(enum.StrEnum):
    red = "red"


class Point(msgspec.Struct):
    x: int
    y: int | msgspec.UnsetType = UNSET


class OddFloat(float, enum.Enum):
    nan = math.nan


def any_typed(**fields: Any) -> dict[str, Any]:
    """Hide from the type checker what the program under test must find by itself."""
    return fields


def data_of(value: object) -> c.Data:
    return c.Data(type="data-x", data=value)


@pytest.mark.parametrize(("chunk", "expected"), SAMPLES)
def test_a_chunk_goes_out_as_its_schema_says_and_comes_back(
    chunk: c.AnyChunk, expected: dict[str, Any]
) -> None:
    encoded = encode(chunk)
    assert json.loads(encoded) == expected
    assert decode_chunk(encoded) == chunk
    assert decode_stored(encoded) == chunk


def test_the_samples_hold_every_kind() -> None:
    assert {type(chunk) for chunk, _ in SAMPLES} == set(get_args(c.AnyChunk)) | set(
        get_args(c.KnownChunk)
    ) - {c.KnownChunk}


@pytest.mark.parametrize(
    "chunk",
    [
        c.TextDelta(**any_typed(id="t", delta=5)),
        c.TextDelta(**any_typed(id=None, delta="x")),
        c.TextDelta(**any_typed(id="t", delta=b"abc")),
        c.TextDelta(**any_typed(id=uuid4(), delta="x")),
        c.TextDelta(**any_typed(id="t", delta="x", provider_metadata=None)),
        c.TextDelta(**any_typed(id="t", delta="x", provider_metadata={"openai": 1})),
        c.ReasoningDelta(**any_typed(id="t", delta=None)),
        c.ToolInputDelta(**any_typed(tool_call_id="t", input_text_delta={"a": 1})),
        c.ToolInputDelta(**any_typed(tool_call_id=1, input_text_delta="")),
        c.TextStart(**any_typed(id=1)),
        c.TextStart(**any_typed(id=b"abc")),
        c.Start(**any_typed(message_id=None)),
        c.Finish(**any_typed(finish_reason="unknown")),
        c.Finish(**any_typed(finish_reason="interrupted")),
        c.Finish(**any_typed(finish_reason=None)),
        c.MessageMetadata(message_metadata=UNSET),
        c.ToolInputStart(**any_typed(tool_call_id="k", tool_name="w", dynamic=1)),
        c.ToolInputStart(**any_typed(tool_call_id="k", tool_name="w", dynamic=None)),
        c.ToolInputAvailable(tool_call_id="k", tool_name="w", input=UNSET),
        c.ToolApprovalResponse(**any_typed(approval_id="a", approved="yes")),
        c.SteeringMessage(**any_typed(id="s", parts={})),
        c.Data(type="data-x", data=UNSET),
        c.Data(**any_typed(type="data-x", data=1, id=7)),
        c.Data(**any_typed(type="data-x", data=1, transient=None)),
    ],
)
def test_a_chunk_that_the_client_would_refuse_is_refused_here(chunk: c.AnyChunk) -> None:
    with pytest.raises(LocalProtocolError, match=chunk.kind):
        encode(chunk)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        pytest.param(-(10**5000), id="5000 digits"),
        "\ud800",
        {"\udc00": 1},
        b"bytes",
        bytearray(b"x"),
        {1, 2},
        {1: 2},
        {None: 2},
        {1.5: 2},
        {True: 2},
        object(),
        uuid4(),
        Colour,
        OddFloat.nan,
        UNSET,
        [UNSET],
        print,
    ],
)
def test_a_value_without_json_form_is_refused(value: object) -> None:
    for nested in (value, [value], {"a": {"b": (value,)}}):
        with pytest.raises(LocalProtocolError, match="a data-x chunk"):
            encode(data_of(nested))
        with pytest.raises(LocalProtocolError, match="the value"):
            encode_json(nested)


def test_a_lone_surrogate_in_a_delta_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="a text-delta chunk"):
        encode(c.TextDelta(id="t", delta="\ud83d"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        (OrderedDict(a=1), {"a": 1}),
        (Colour.red, "red"),
        ({Colour.red: [Colour.red]}, {"red": ["red"]}),
        ([Point(1), Point(1, 2)], [{"x": 1}, {"x": 1, "y": 2}]),
        (2**80, 2**80),
        (sys.float_info.max, sys.float_info.max),
        (-0.0, -0.0),
        ({"constructor": "Airbus", "prototype": 1}, {"constructor": "Airbus", "prototype": 1}),
    ],
)
def test_values_that_are_like_json_keep_their_meaning(value: object, expected: object) -> None:
    assert json.loads(encode(data_of(value)))["data"] == expected
    assert json.loads(encode_json(value)) == expected


@pytest.mark.parametrize(
    "value", [{"__proto__": 1}, {"constructor": {"prototype": {}}}, {"constructor": None}]
)
def test_a_key_that_the_clients_parser_takes_for_an_attack_is_refused_in_chunks(value: object) -> None:
    with pytest.raises(LocalProtocolError, match="the client fails the turn"):
        encode(data_of([{"a": value}]))
    assert json.loads(encode_json(value)) == value


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    with pytest.raises(LocalProtocolError, match="too many values"):
        encode(data_of(loop))
    loop.pop()
    with pytest.raises(LocalProtocolError, match="deeper than 64"):
        encode(data_of(loop))
    with pytest.raises(LocalProtocolError, match="deeper than 128"):
        encode_json(loop)


def test_what_is_not_a_chunk_is_refused() -> None:
    class MyDelta(c.TextDelta, frozen=True):
        pass

    for impostor in (MyDelta(id="t", delta="x"), {"type": "text-delta"}, None, Point(1)):
        with pytest.raises(LocalProtocolError, match="is not a kind of chunk"):
            encode(impostor)  # type: ignore[arg-type]


def test_a_chunk_over_the_limit_is_our_fault() -> None:
    fits = c.TextDelta(id="t", delta="x" * (256 * 1024 - len(encode(c.TextDelta(id="t", delta="")))))
    assert len(encode(fits)) == 256 * 1024
    with pytest.raises(LocalProtocolError, match="a text-delta chunk takes 262145 bytes"):
        encode(c.TextDelta(id="t", delta=fits.delta + "x"))
    with pytest.raises(LocalProtocolError, match="a data-x chunk takes"):
        encode(data_of("x" * 256 * 1024))
    with pytest.raises(LocalProtocolError, match="too many values"):
        encode(data_of([0] * 256 * 1024))
    with pytest.raises(LocalProtocolError, match="more than the 10"):
        encode(fits, limits=WireLimits(chunk_bytes=10))


def test_an_error_names_an_apps_own_kind_only_if_it_is_fit_for_a_log_line() -> None:
    with pytest.raises(LocalProtocolError, match=r"^a data-\* chunk holds NaN"):
        encode(c.Data(type="data-\n\x1b[31m", data=math.nan))


def test_nesting_goes_as_deep_as_our_own_decoder_reads() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return value

    assert decode_chunk(encode(data_of(nested(63)))) == data_of(nested(63))
    assert decode_json(encode_json(nested(64))) == nested(64)
    assert encode_json(nested(128))
    with pytest.raises(LocalProtocolError, match="deeper than 128"):
        encode_json(nested(129))
    with pytest.raises(LocalProtocolError, match="deeper than 64"):
        encode(data_of(nested(64)))


@settings(deadline=None)
@given(st.text(), st.text())
@example("\r\n\u2028\u2029\x85\x0b\x0c\x00", '\x7f\ufeff\U0001f600\\"/</script>')
def test_a_delta_is_what_the_client_reads_and_holds_no_raw_line_end(id: str, delta: str) -> None:
    chunk = c.TextDelta(id=id, delta=delta)
    encoded = encode(chunk)
    assert json.loads(encoded) == {"type": "text-delta", "id": id, "delta": delta}
    assert b"\n" not in encoded
    assert b"\r" not in encoded
    assert (
        encode(c.TextDelta(id=id, delta=delta, provider_metadata={}))
        == encoded[:-1] + b',"providerMetadata":{}}'
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(VALUES)
def test_any_value_comes_back_equal(value: object) -> None:
    encoded = encode_json(value)
    assert json.loads(encoded) == value
    assert decode_json(encoded) == value
    assert b"\n" not in encoded
    assert b"\r" not in encoded


# -- what is let in


def strict_reference(data: bytes, *, depth: int = 64) -> Any:
    """The same rules on the standard library's parser. Raises ValueError."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        object_ = dict(pairs)
        if len(object_) != len(pairs):
            raise ValueError("twice")
        return object_

    def no_constant(name: str) -> Any:
        raise ValueError(name)

    def check(value: Any, level: int) -> None:
        if level > depth:
            raise ValueError("deep")
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, int | float) and abs(value) > sys.float_info.max:
            raise ValueError("range")
        elif isinstance(value, dict | list):
            if level == depth:
                raise ValueError("deep")
            for inner in [*value, *value.values()] if isinstance(value, dict) else value:
                check(inner, level + 1)

    value = json.loads(data.decode(), object_pairs_hook=object_of, parse_constant=no_constant)
    check(value, 0)
    return value


JSON_PIECES = [*'{}[],:"\\0- \n\0\x7f\u2028\ufeffé', "1.5", "e5", "1e999", "1" * 310, "true", "null", "NaN"]
JSON_PIECES += ['"a"', '"\\u0061"', '"a":', '"a":1', '"b":1', '{"a":1,', '":"', '"\\u003a":']
JSON_PIECES += ["\\\\", '\\"', "\\n", "\\u003A", "u003a", "\\ud83d", "\\ude00"]
JSON_LIKE = st.lists(st.sampled_from(JSON_PIECES), max_size=12).map(lambda pieces: "".join(pieces).encode())


@st.composite
def spoilt_json(draw: st.DrawFn) -> bytes:
    """JSON with one splice: a cut, or a piece put in twice or elsewhere."""
    text = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans())).encode()
    begin, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    where = draw(st.integers(0, len(text)))
    return draw(st.sampled_from([text[:begin] + text[end:], text[:where] + text[begin:end] + text[where:]]))


@settings(deadline=None)
@given(st.binary() | JSON_LIKE | spoilt_json())
@example(b'{"a":1,"\\u0061":2}')
@example(b'{"\\u003a":1,"\\\\u003a":2}')
@example(b'{"a":":","a":"\\u003a"}')
@example(b'{"\\u003a\\u003a":1,"x":2,"x":3}')
@example(b'{"a\\\\":1,"a\\\\":2}')
@example(b'["\\\\\\":{", {"\\"":"\\\\"}]')
@example(b'"\xed\xa0\x80"')
@example(b'{"\xff":1}')
@example(b"1" * 5000)
@example(b"\xef\xbb\xbf1")
@example(b'"\\ud800"')
@example(b"-0")
def test_any_bytes_are_decoded_as_the_reference_does_or_refused(data: bytes) -> None:
    try:
        expected = strict_reference(data)
    except ValueError:
        with pytest.raises(RemoteProtocolError):
            decode_json(data)
    else:
        value = decode_json(data)
        assert value == expected
        assert repr(value).replace("-0.0", "0") == repr(expected).replace(
            "-0.0", "0"
        )  # 1, 1.0 and True differ
        assert decode_json(encode_json(value)) == value


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "The JSON is malformed."),
        (b"\xef\xbb\xbf{}", "The JSON is malformed."),
        (b"NaN", "The JSON is malformed."),
        (b"[1] 2", "The JSON is malformed."),
        (b'"\xff"', "The JSON is not valid UTF-8."),
        (b'"\\ud800"', "The JSON is malformed."),
        (b"[1e999]", "The JSON has a number that is out of range."),
        (b"-" + b"9" * 10_000, "The JSON has a number that is out of range."),
        (b"9" * 400, "The JSON has a number that is out of range."),
        (b'{"a":1,"\\u0061":2}', "The JSON has an object with the same key twice."),
        (b"[" * 65 + b"]" * 65, "The JSON is nested deeper than 64 levels."),
        (b"[" * 50_000, "The JSON is nested deeper than 64 levels."),
        (b"[" * 200_000, "The JSON has too many arrays and objects."),
    ],
)
def test_a_refusal_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_json(data)
    assert str(caught.value) == sentence


def test_limits_are_exact_and_tell_the_status() -> None:
    assert decode_json(b"[" * 64 + b"]" * 64) is not None
    with pytest.raises(LimitExceededError) as deep:
        decode_json(b'{"a":' * 65 + b"0" + b"}" * 65)
    assert deep.value.status == 400
    for data, limits in [
        (b'"abc"', WireLimits(json_bytes=4)),
        (b"[[],{}]", WireLimits(json_containers=2)),
    ]:
        with pytest.raises(LimitExceededError) as caught:
            decode_json(data, limits=limits)
        assert caught.value.status == 413
    assert decode_json(b'"abc"', max_bytes=5) == "abc"
    with pytest.raises(LimitExceededError):
        decode_json(b'"abc"', max_bytes=4)
    assert decode_json(b'["[[[[{{{{"]', limits=WireLimits(json_containers=1)) == ["[[[[{{{{"]


HOSTILE = {
    "arrays": b"[" + b"[]," * 99_990 + b"0]",
    "deep arrays": b"[" * MIB,
    "deep objects": b'{"a":' * (MIB // 5),
    "keys": b"{" + b",".join(b'"%x":0' % i for i in range(100_000)) + b"}",
    "one key": b'{"a":0' + b',"a":0' * (MIB // 6 - 2) + b"}",
    "escapes": b'"' + b"\\\\" * (MIB // 2 - 8) + b'\\u003a"',
    "open string": b'"' + b'\\"' * (MIB // 2 - 8),
    "brackets in strings": b"[" + b'"[",' * (MIB // 4 - 4) + b"0]",
    "numbers": b"[" + b"0," * (MIB // 2 - 4) + b"0]",
    "extreme floats": b"[" + b"1.7976931348623157e308," * (MIB // 23 - 2) + b"0]",
    "tiny floats": b"[" + b"4.9406564584124654e-324," * (MIB // 24 - 2) + b"0]",
    "long integers": b"[" + (b"9" * 300 + b",") * (MIB // 301 - 2) + b"0]",
    "one integer": b"9" * MIB,
    "one fraction": b"0." + b"9" * (MIB - 2),
    "one exponent": b"1e" + b"9" * (MIB - 2),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_mebibyte_costs_little_time(data: bytes) -> None:
    """About 0.1 s at most when nothing else runs; what is quadratic, or a slow way to read floats, takes seconds."""
    assert len(data) <= MIB
    begin = time.thread_time()
    with contextlib.suppress(RemoteProtocolError):
        decode_json(data)
    assert time.thread_time() - begin < 0.5


# -- chunks and structs from outside


@pytest.mark.parametrize("reason", ["interrupted", "unknown"])
def test_a_finish_reason_that_only_some_clients_know_becomes_other(reason: str) -> None:
    assert decode_chunk(b'{"type":"finish","finishReason":"%b"}' % reason.encode()) == c.Finish(
        finish_reason="other"
    )


@pytest.mark.parametrize(
    "entry", [b"", b"{}", b'{"type":"x"}', b'{"type":"data-x"}', b'{"type":"data-\xff","data":1}']
)
def test_a_journal_that_something_else_changed_is_refused(entry: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="journal"):
        decode_stored(entry)


def test_unknown_fields_are_dropped_and_unknown_data_kinds_kept() -> None:
    assert decode_chunk(b'{"type":"text-start","id":"t","seq":4}') == c.TextStart(id="t")
    assert decode_chunk(b'{"type":"data-\\u00e9","data":{"x":null},"seq":4}') == c.Data(
        type="data-é", data={"x": None}
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"[]", "A chunk is a JSON object with a string as its type."),
        (b"{}", "A chunk is a JSON object with a string as its type."),
        (b'{"type":["finish"]}', "A chunk is a JSON object with a string as its type."),
        (b'{"type":"audio-delta"}', "The chunk's type audio-delta is not known."),
        (b'{"type":"<script>"}', "The chunk's type is not known."),
        (b'{"type":"' + b"x" * 65 + b'"}', "The chunk's type is not known."),
        (b'{"type":"finish","finishReason":"EVIL"}', "The finish chunk has a wrong value at finishReason."),
        (b'{"type":"finish","finishReason":["EVIL"]}', "The finish chunk has a wrong value at finishReason."),
        (b'{"type":"finish","finishReason":null}', "The finish chunk has a wrong value at finishReason."),
        (b'{"type":"text-delta","id":"t"}', "The text-delta chunk lacks delta."),
        (b'{"type":"text-delta","id":5,"delta":""}', "The text-delta chunk has a wrong value at id."),
        (
            b'{"type":"text-start","id":"t","providerMetadata":{"EVIL":3}}',
            "The text-start chunk has a wrong value at providerMetadata[...].",
        ),
        (b'{"type":"data-x"}', "The chunk lacks data."),
        (b'{"type":"data-x","data":1,"transient":null}', "The chunk has a wrong value at transient."),
    ],
)
def test_a_bad_chunk_is_refused_without_echo(data: bytes, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_chunk(data)
    assert str(caught.value) == sentence


def test_a_chunk_from_outside_has_the_size_of_a_chunk() -> None:
    with pytest.raises(LimitExceededError):
        decode_chunk(b'{"type":"data-x","data":"' + b"x" * (256 << 10) + b'"}')


@settings(deadline=None)
@given(
    st.binary()
    | spoilt_json()
    | VALUES.map(lambda value: json.dumps({"type": "text-delta", "id": value}).encode())
)
def test_any_bytes_are_a_chunk_or_refused(data: bytes) -> None:
    try:
        chunk = decode_chunk(data)
    except RemoteProtocolError:
        return
    assert isinstance(chunk, c.Chunk | c.Data)


def test_convert_says_where_in_our_words() -> None:
    class Line(msgspec.Struct):
        points: list[Point]

    assert convert({"points": [{"x": 1, "z": 2}]}, Line, "The line").points == [Point(1)]
    with pytest.raises(RemoteProtocolError, match=r"^The line has a wrong value at points\[1\]\.x\.$"):
        convert({"points": [{"x": 1}, {"x": "EVIL"}]}, Line, "The line")
    with pytest.raises(RemoteProtocolError, match=r"^The line lacks x in points\[0\]\.$"):
        convert({"points": [{"EVIL": 1}]}, Line, "The line")
    with pytest.raises(RemoteProtocolError, match=r"^The line is not of the expected form\.$"):
        convert(["EVIL"], Line, "The line")
