"""Chunks and other values to JSON, and back: the only place where JSON is made or read.

Rule 1: what goes out is strict. A struct checks nothing when it is made, so everything is checked here: the types that
the client's schema demands, and that the JSON says exactly what the value says (no NaN turned into null, no bytes
turned into base64, no int key turned into a string).

Rule 2: what comes in passes through `decode_json`, whoever sent it. It raises `RemoteProtocolError` and nothing else,
in time linear in the size, and the text of its errors holds nothing of the peer's.

Rule 3: what `decode_json` accepts `encode_json` can write, and what `encode` writes `decode_chunk` accepts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from enum import Enum
from operator import attrgetter
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType

from penstock.errors import LimitExceededError, LocalProtocolError, RemoteProtocolError
from penstock.limits import WIRE, WireLimits
from penstock.wire.chunks import AnyChunk, Chunk, Data, KnownChunk, ReasoningDelta, TextDelta, ToolInputDelta

T = TypeVar("T")

_KIND_TYPES: dict[str, type[Chunk]] = {str(kind.__struct_config__.tag): kind for kind in get_args(KnownChunk)}
KINDS = frozenset(_KIND_TYPES)
"""The names of all kinds, but for the app's own `data-*`."""
_CHUNK_TYPES = frozenset([*_KIND_TYPES.values(), Data])
_LATER_FINISH_REASONS = ("interrupted", "unknown")

_FLAT = frozenset([str, bool, type(None), UnsetType])
"""Fields of these types have a JSON form and nothing inside."""
_ID, _DELTA, _PROVIDER_METADATA = attrgetter("id"), attrgetter("delta"), attrgetter("provider_metadata")
_TOOL_CALL_ID, _INPUT_TEXT_DELTA = attrgetter("tool_call_id"), attrgetter("input_text_delta")
_DOUBLE_MAX = sys.float_info.max
_SHORT_NAME = re.compile(r"[a-z0-9-]{1,64}")
_WRONG_VALUE = re.compile(r".* - at `\$\.?([\w.\[\]]{1,200})`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(\w{1,64})`(?: - at `\$\.?([\w.\[\]]{1,200})`)?")

_write = msgspec.json.Encoder().encode
_write_lines = msgspec.json.Encoder().encode_lines
# float() is linear in the digits. msgspec's own reading of a number takes 25 us near the ends of the range: a second
# for a hostile megabyte.
_read = msgspec.json.Decoder(float_hook=float).decode
_read_known_chunk = msgspec.json.Decoder(KnownChunk, float_hook=float).decode
_read_data_chunk = msgspec.json.Decoder(Data, float_hook=float).decode


def encode(chunk: AnyChunk, *, limits: WireLimits = WIRE) -> bytes:
    """Encode a chunk as the JSON that the client's schema accepts, without raw CR or LF.

    Deltas take a short way, for they are nearly all of a turn.

    Raises:
        LocalProtocolError: a field has the wrong type, a value has no JSON form or one that the client refuses, or
            the JSON is longer than `limits.chunk_bytes`.

    Source: `uiMessageChunkSchema` and `secureJsonParse` of `ai`.
    """
    try:
        if (
            (type(chunk) is TextDelta or type(chunk) is ReasoningDelta)
            and type(chunk.id) is str
            and type(chunk.delta) is str
            and chunk.provider_metadata is UNSET
        ) or (
            type(chunk) is ToolInputDelta
            and type(chunk.tool_call_id) is str
            and type(chunk.input_text_delta) is str
        ):
            json = _write(chunk)
        else:
            json = _encode_checked(chunk, limits)
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"{_name(chunk)} has no JSON form: {error}") from error
    if len(json) > limits.chunk_bytes:
        raise _too_long(chunk, len(json), limits)
    return json


def encode_deltas(chunks: Sequence[AnyChunk], *, uniform: bool = False) -> list[bytes] | None:
    """Encode chunks as `encode` does, in half the time, if they are deltas of one part and `encode` refuses none.

    For anything else it returns None.

    Args:
        chunks: at least one.
        uniform: whether they are known to be deltas of one part whose fields are strings, and nothing else.
    """
    try:
        if not uniform and not _are_uniform(chunks):
            return None
        # No JSON has a raw line feed in it.
        jsons = _write_lines(chunks).split(b"\n")[:-1]
    except (TypeError, ValueError):
        return None
    return jsons if max(map(len, jsons)) <= WIRE.chunk_bytes else None


def _are_uniform(chunks: Sequence[AnyChunk]) -> bool:
    # In loops of C: there may be many.
    kinds = set(map(type, chunks))
    if kinds == {TextDelta} or kinds == {ReasoningDelta}:
        ids, texts = list(map(_ID, chunks)), map(_DELTA, chunks)
        if set(map(type, map(_PROVIDER_METADATA, chunks))) != {UnsetType}:
            return False
    elif kinds == {ToolInputDelta}:
        ids, texts = list(map(_TOOL_CALL_ID, chunks)), map(_INPUT_TEXT_DELTA, chunks)
    else:
        return False
    return set(map(type, ids)) == {str} and len(set(ids)) == 1 and set(map(type, texts)) == {str}


def encode_json(value: object) -> bytes:
    """Encode a value made of JSON's types, structs and enums, in any nesting of up to twice `json_depth`.

    Raises:
        LocalProtocolError: something in it has no JSON form, such as NaN, bytes or a dict key that is not a string.
    """
    # Twice: an answer wraps what came from outside, which may have the full depth.
    _check_json_form(value, "the value", depth=2 * WIRE.json_depth, values=1 << 22)
    try:
        return _write(value)
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"the value has no JSON form: {error}") from error


def decode_json(data: bytes, *, limits: WireLimits = WIRE, max_bytes: int | None = None) -> Any:
    """Decode JSON from outside, in time linear in its size.

    Refused beside bad grammar: more than `max_bytes` (`limits.json_bytes` by default), nesting deeper than
    `limits.json_depth`, more than `limits.json_containers` arrays and objects, a byte order mark or anything else that
    is not UTF-8, the same key twice in an object (however it is escaped), lone surrogates, and numbers that no double
    comes near, such as 1e999.

    Raises:
        RemoteProtocolError: one sentence, fit for the peer. Its child LimitExceededError for the sizes.

    Source: RFC 8259; RFC 7493 for numbers, surrogates and keys.
    """
    if len(data) > (limits.json_bytes if max_bytes is None else max_bytes):
        raise LimitExceededError("The JSON is too long.")
    structure = _outside_strings(data)
    if structure.count(b"[") + structure.count(b"{") > limits.json_containers:
        raise LimitExceededError("The JSON has too many arrays and objects.")
    try:
        value = _read(data)
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("The JSON is not valid UTF-8.") from error
    except RecursionError as error:
        raise _too_deep(limits) from error
    except msgspec.ValidationError as error:
        raise RemoteProtocolError("The JSON has a number that is out of range.") from error
    except msgspec.DecodeError as error:
        raise RemoteProtocolError("The JSON is malformed.") from error
    # A dict has forgotten its duplicates, but the text has not: it has a colon for each key.
    if _count_keys(value, limits) != structure.count(b":"):
        raise RemoteProtocolError("The JSON has an object with the same key twice.")
    return value


def convert(value: Any, type: type[T], what: str) -> T:
    """Convert a decoded value to a struct or another type; unknown fields are dropped.

    Args:
        what: how the sentence begins, as in "The request".

    Raises:
        RemoteProtocolError: it doesn't fit. The sentence says where, in our words only.
    """
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        if missing := _MISSING_FIELD.fullmatch(str(error)):
            where = f" in {missing[2]}" if missing[2] else ""
            raise RemoteProtocolError(f"{what} lacks {missing[1]}{where}.") from error
        if wrong := _WRONG_VALUE.fullmatch(str(error)):
            raise RemoteProtocolError(f"{what} has a wrong value at {wrong[1]}.") from error
        raise RemoteProtocolError(f"{what} is not of the expected form.") from error


def decode_chunk(data: bytes, *, limits: WireLimits = WIRE) -> AnyChunk:
    """Decode a chunk from outside: any known kind, any `data-*`; unknown fields are dropped, as clients are loose too.

    The finish reasons that only some clients know, `interrupted` and `unknown`, become `other`.

    Raises:
        RemoteProtocolError: not JSON, not a known kind, or not the fields of its kind (a null is not an absent field).
    """
    value = decode_json(data, limits=limits, max_bytes=limits.chunk_bytes)
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise RemoteProtocolError("A chunk is a JSON object with a string as its type.")
    if kind.startswith("data-"):
        return convert(value, Data, "The chunk")
    if kind not in _KIND_TYPES:
        named = f"type {kind}" if _SHORT_NAME.fullmatch(kind) else "type"
        raise RemoteProtocolError(f"The chunk's {named} is not known.")
    if kind == "finish" and value.get("finishReason") in _LATER_FINISH_REASONS:
        value["finishReason"] = "other"
    chunk: AnyChunk = convert(value, _KIND_TYPES[kind], f"The {kind} chunk")  # type: ignore[assignment]
    return chunk


def decode_stored(json: bytes) -> AnyChunk:
    """Decode what `encode` wrote. It was checked then, so this is one quick call.

    Raises:
        LocalProtocolError: it is nothing that `encode` wrote: a journal that something else has changed.
    """
    try:
        chunk: AnyChunk = (
            _read_data_chunk(json) if json.startswith(b'{"type":"data-') else _read_known_chunk(json)
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise LocalProtocolError("an entry of the journal is not a chunk") from error
    return chunk


def _encode_checked(chunk: AnyChunk, limits: WireLimits) -> bytes:
    if type(chunk) not in _CHUNK_TYPES:
        raise LocalProtocolError(f"{type(chunk).__name__} is not a kind of chunk")
    if not _FLAT.issuperset(map(type, msgspec.structs.astuple(chunk))):
        _check_json_form(
            chunk, _name(chunk), depth=limits.json_depth, values=limits.chunk_bytes, client_keys=True
        )
    json = _write(chunk)
    # Reading it back is the check of the schema: what can't be read here, the client can't read either.
    try:
        if type(chunk) is Data:
            _read_data_chunk(json)
        else:
            _read_known_chunk(json)
    except msgspec.ValidationError as error:
        raise LocalProtocolError(f"{_name(chunk)} has a wrong field: {error}") from error
    return json


def _too_long(chunk: AnyChunk, size: int, limits: WireLimits) -> LocalProtocolError:
    return LocalProtocolError(
        f"{_name(chunk)} takes {size} bytes, more than the {limits.chunk_bytes} that a chunk may have"
    )


def _name(chunk: AnyChunk) -> str:
    """Name a chunk for an error: the kind, unless the app's own type isn't fit for a log line."""
    return f"a {chunk.kind if _SHORT_NAME.fullmatch(chunk.kind) else 'data-*'} chunk"


def _check_json_form(value: Any, what: str, *, depth: int, values: int, client_keys: bool = False) -> None:
    """Refuse what msgspec would encode as something else, or not at all.

    It goes floor by floor, so that a value that holds itself ends at `depth`, and one that doubles on every floor ends
    at `values`: no JSON has more values than bytes.
    """
    floor: list[Any] = [value]
    for _ in range(depth + 1):
        below: list[Any] = []
        nested = False
        for value in floor:
            kind = type(value)
            if kind is str or kind is bool or value is None:
                continue
            if kind is int or kind is float:
                if not -_DOUBLE_MAX <= value <= _DOUBLE_MAX:
                    raise LocalProtocolError(f"{what} holds NaN, an infinity or an integer beyond any double")
                continue
            nested = True
            if isinstance(value, dict):
                if not all(isinstance(key, str) for key in value):
                    raise LocalProtocolError(f"{what} holds a dict with a key that is not a string")
                if client_keys and _has_refused_key(value):
                    raise LocalProtocolError(
                        f"{what} holds the key __proto__ or constructor in a way for which the client fails the turn"
                    )
                below.extend(value.values())
            elif isinstance(value, list | tuple):
                below.extend(value)
            elif isinstance(value, msgspec.Struct):
                fields = [getattr(value, name) for name in value.__struct_fields__]
                below.extend(field for field in fields if field is not UNSET)
            elif isinstance(value, Enum):
                below.append(value.value)
            else:
                raise LocalProtocolError(f"{what} holds a {kind.__name__}, which has no JSON form")
        if not nested:
            return
        values -= len(below)
        if values < 0:
            raise LocalProtocolError(f"{what} holds too many values")
        floor = below
    raise LocalProtocolError(f"{what} is nested deeper than {depth} levels")


def _has_refused_key(object_: dict[str, Any]) -> bool:
    """Say whether the client's parser takes this for an attack on JavaScript's prototypes."""
    if "__proto__" in object_:
        return True
    constructor = object_.get("constructor", UNSET)
    return constructor is None or (isinstance(constructor, dict) and "prototype" in constructor)


def _outside_strings(data: bytes) -> bytes:
    """Return JSON without its strings, in a few passes that no content makes slower."""
    # Once the escaped backslashes are gone, every backslash before a quote escapes it.
    return b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _count_keys(value: Any, limits: WireLimits) -> int:
    """Count the keys of all objects in a decoded value, and check depth and numbers on the way."""
    keys = 0
    floor = [value]
    for _ in range(limits.json_depth + 1):
        below: list[Any] = []
        nested = False
        for value in floor:
            kind = type(value)
            if kind is dict:
                nested = True
                keys += len(value)
                below.extend(value.values())
            elif kind is list:
                nested = True
                below.extend(value)
            elif (kind is int or kind is float) and not -_DOUBLE_MAX <= value <= _DOUBLE_MAX:
                raise RemoteProtocolError("The JSON has a number that is out of range.")
        if not nested:
            return keys
        floor = below
    raise _too_deep(limits)


def _too_deep(limits: WireLimits) -> LimitExceededError:
    return LimitExceededError(f"The JSON is nested deeper than {limits.json_depth} levels.", status=400)
