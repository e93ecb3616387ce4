"""The event-stream parser against the text of WHATWG HTML 9.2.6, and against itself on every cut."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.errors import LimitExceededError
from penstock.limits import WireLimits
from penstock.wire.sse_parser import ServerSentEvent, SseParser, parse

Event = tuple[str, str, str]


def reference(stream: bytes) -> tuple[list[Event], int | None, str]:
    """The standard's own words, one after the other, on the whole stream at once."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    ended = re.findall("([^\r\n]*)(?:\r\n|\r|\n)", text)
    events: list[Event] = []
    data = event_type = id_buffer = last_event_id = ""
    retry: int | None = None
    for line in ended:
        if line == "":
            last_event_id = id_buffer
            if data != "":
                events.append((event_type or "message", data[:-1], last_event_id))
            data = event_type = ""
            continue
        if line[0] == ":":
            continue
        field, value = line, ""
        if ":" in line:
            colon = line.index(":")
            field, value = line[:colon], line[colon + 1 :]
        if value[:1] == " ":
            value = value[1:]
        if field == "event":
            event_type = value
        if field == "data":
            data += value + "\n"
        if field == "id" and "\0" not in value:
            id_buffer = value
        if field == "retry" and 0 < len(value) < 10 and all(digit in "0123456789" for digit in value):
            retry = int(value)
    return events, retry, last_event_id


def fed(parser: SseParser, chunks: list[bytes]) -> tuple[list[Event], int | None, str]:
    events = [tuple(event) for chunk in chunks for event in parser.feed(chunk)]
    return events, parser.retry_ms, parser.last_event_id  # type: ignore[return-value]


PIECES = st.sampled_from([
    b"data", b"data:", b"data: ", b"data:  x", b"data: {}\n\n", b"event", b"event: a", b"id", b"id: 1", b"id: \0",
    b"retry: 5", b"retry: 5x", b"retry", b"retry: 0123456789", "retry: ٣".encode(), b"dat", b"Data: x", b" data: x",
    b": c", b":", b"x: y", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\n\n\n", b" ", b"\0", b"\xef\xbb\xbf", b"\xef",
    b"\xbb", b"\xbf", "é😀".encode(), b"\xf0\x9f\x98", b"\x80", b"\xe2\x80", "\u2028\x85".encode(), b"\x0b\x0c",
    b"id: 2\ndata: y\n\n", b"id: \0\ndata: z\n\n", b"id: 3\n\ndata: w\n\n", b"id: data: 4\n", b"id: 5\nxdata: \n\n",
    b"data: d\nid: 6\n\n", b"id: 7\rdata: \r\r", b"id: 8\nid: 9\ndata: u\n\n",
])  # fmt: skip
STREAM = st.lists(PIECES, max_size=30).map(b"".join) | st.binary(max_size=60)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    stream = draw(STREAM)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@settings(deadline=None, max_examples=400)
@given(cut_streams())
@example([b"data: a\r", b"\ndata: b\r\n\r", b"\n"])
@example([b"\xef", b"\xbb", b"\xbf", b"data: a\n\n"])
@example([b"\xef\xbb", b"data: a\n\n"])
@example([b"data: \xf0\x9f", b"\x98\x80\n\n"])
@example([b"data: a\n\n", b"\xef\xbb\xbfdata: b\n\n"])
@example([b"id: 1\n", b"\ndata: a\n\n"])
@example([b"id: 2\ndata: y\n\n"])
@example([b"event: a\n\ndata: x\n\n"])
@example([b"data: a\n\nid: 2\n\n", b"\n\ndata\n\ndata: b\n\n"])
def test_however_a_stream_is_cut_it_is_what_the_standard_says(chunks: list[bytes]) -> None:
    stream = b"".join(chunks)
    expected = reference(stream)
    assert fed(SseParser(), [stream]) == expected
    assert fed(SseParser(), chunks) == expected
    assert fed(SseParser(), [stream[i : i + 1] for i in range(len(stream))]) == expected
    # So small that the whole stream doesn't fit one piece, and no line is too long.
    roomy = WireLimits(sse_line_bytes=len(stream) + 1, sse_event_bytes=len(stream) + 1)
    assert fed(SseParser(roomy), chunks) == expected
    assert parse(chunks) == expected[0]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("message", "a", "")]),
        (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
        (b"data:test\n\ndata: test\n\ndata:  test\n\n", [("message", t, "") for t in ("test", "test", " test")]),
        (b": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
         [("message", "first", "1"), ("message", "second", ""), ("message", " third", "")]),
        (b"event: add\ndata: 1\n\ndata: 2\n\n", [("add", "1", ""), ("message", "2", "")]),
        (b"event: add\n\ndata: 2\n\n", [("message", "2", "")]),
        (b"id: 9\n\ndata: a\n\ndata: b\n\n", [("message", "a", "9"), ("message", "b", "9")]),
        (b"id: 9\ndata: a\n\nid: 1\x002\ndata: b\n\n", [("message", "a", "9"), ("message", "b", "9")]),
        (b"data: a\n", []),
        (b"data: a\r\r", [("message", "a", "")]),
        (b"data: a\r\n\r\n", [("message", "a", "")]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [("message", "a", "")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"data: \xe1\x80\xe2|\xf0\x80\x80|\xed\xa0\x80\n\n",
         [("message", "\ufffd\ufffd|\ufffd\ufffd\ufffd|\ufffd\ufffd\ufffd", "")]),
        (b"data: \xf0\x9f\x98\n\n", [("message", "\ufffd", "")]),
        (b"data: a\0b\x0bc\x0c\n\n", [("message", "a\0b\x0bc\x0c", "")]),
        (b"DATA: a\ndata : b\n data: c\n\n", []),
    ],
)  # fmt: skip
def test_the_standards_examples(stream: bytes, events: list[Event]) -> None:
    assert parse([stream]) == events
    assert reference(stream)[0] == events


def test_a_cr_alone_dispatches_at_once_and_its_lf_is_swallowed() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r\n\r") == [ServerSentEvent("message", "a", "")]
    assert parser.feed(b"") == []
    assert parser.feed(b"\ndata: b\n") == []
    assert parser.feed(b"\n") == [ServerSentEvent("message", "b", "")]


def test_the_id_is_that_of_the_last_dispatched_block() -> None:
    parser = SseParser()
    parser.feed(b"id: 1\n")
    assert parser.last_event_id == ""
    parser.feed(b"\nid: 2\ndata: a\n")
    assert parser.last_event_id == "1"
    parser.feed(b"\n")
    assert parser.last_event_id == "2"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3000", 3000), ("0", 0), ("007", 7), ("999999999", 999_999_999), ("1000000000", None), ("", None),
        ("1" * 10_000, None), ("-1", None), ("1.5", None), ("1s", None), (" 1", None), ("٣", None), ("²", None),
    ],
)  # fmt: skip
def test_retry_takes_ascii_digits_only(value: str, expected: int | None) -> None:
    parser = SseParser()
    assert parser.retry_ms is None
    parser.feed(f"retry: {value}\n".encode())
    assert parser.retry_ms == expected


def chunked(stream: bytes, size: int) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("fits", "too_long"),
    [
        (b"data: 4567890\n" * 3 + b"\n", b"data: 45678901\n\n"),
        (b": 34567890123\n\ndata: a\n\n", b": 345678901234"),
        (
            b"data: a\ndata: b\ndata: c\ndata: defghi\n\n" * 3,
            b"data: a\ndata: b\ndata: c\ndata: d\ndata: efghij\n\n",
        ),
        (b"data: a\nevent: 1\nevent: 2\nevent: 3\nevent: 4\n\n", b"data: a\n\n" * 20 + b"x" * 14),
    ],
)
def test_caps_are_the_same_however_the_stream_is_cut(fits: bytes, too_long: bytes, size: int) -> None:
    limits = WireLimits(sse_line_bytes=13, sse_event_bytes=39)
    assert fed(SseParser(limits), chunked(fits, size)) == reference(fits)
    parser = SseParser(limits)
    with pytest.raises(LimitExceededError, match="too long"):
        fed(parser, chunked(too_long, size))
    for _ in range(2):
        with pytest.raises(LimitExceededError, match="given up"):
            parser.feed(b"\n\ndata: a\n\n")


def test_an_events_cap_may_be_smaller_than_a_lines() -> None:
    limits = WireLimits(sse_line_bytes=1_000, sse_event_bytes=20)
    assert SseParser(limits).feed(b"data: " + b"x" * 14 + b"\n\n")
    for stream in (b"data: " + b"x" * 15 + b"\n\n", b"data: a\n\n" * 9 + b"data: abcd\ndata: efgh\ndata\n\n"):
        with pytest.raises(LimitExceededError, match="an event is too long"):
            SseParser(limits).feed(stream)


def test_lines_that_hold_no_data_count_toward_no_cap() -> None:
    parser = SseParser(WireLimits(sse_line_bytes=100, sse_event_bytes=100))
    for _ in range(50):
        assert parser.feed(b": keep-alive\nevent: x\nid: 1\n" * 50) == []
    assert parser.feed(b"data: a\n\n") == [ServerSentEvent("x", "a", "1")]


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 100_000 + b"\n\n",
        b"data: " + b"\xf0" * 100_000 + b"\n\n",
        b"data\n" * 20_000 + b"\n",
        b"data: {}\n\n" * 10_000,
        b"\r" * 100_000,
    ],
)
def test_time_is_linear_however_the_stream_is_cut(stream: bytes) -> None:
    """A byte costs about a microsecond; were a line looked at again with each byte, this would take minutes."""
    begin = time.thread_time()
    one_by_one = parse(chunked(stream, 1))
    assert time.thread_time() - begin < 2
    assert one_by_one == parse([stream]) == reference(stream)[0]
