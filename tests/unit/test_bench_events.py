"""What the load tool makes of bytes: the same, whatever way they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.bench.body import Body, ChunkedBody, Head, LengthBody
from penstock.bench.continuity import Continuity
from penstock.bench.events import SseEvents, due_times, last_id, lone_event, stamps
from penstock.bench.websocket import WebSocketEvents, check_accepted, client_frame, close_frame
from penstock.wire.sse_parser import SseParser

LINES = st.sampled_from(
    [
        b"data: a",
        b"data:",
        b"data",
        b"database: x",
        b'data: {"delta":"data: [DONE]"}',
        b"id: 1",
        b"event: chunk",
        b": keepalive",
        b"retry: 5",
        b"",
        b"",
        b" data: x",
    ]
)
STREAMS = st.builds(
    lambda lines, ends: b"".join(line + ends[number % len(ends)] for number, line in enumerate(lines)),
    st.lists(LINES, max_size=30),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1, max_size=4),
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes."""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


@given(STREAMS, CUTS)
@example(b"data: a\n\n\n\ndata: b\n\n", [9])
@example(b"data: a\r\n\r\n", [8, 9, 10])
@example(b"data: a\ndata: b\n\n: c\n\nid: 1\ndata: d\n\n", [])
@example(b"data: a\n\ndata: [DONE]\n\n", [12])
def test_events_are_counted_as_a_parser_does(stream: bytes, cuts: list[int]) -> None:
    """The parser of `wire` is the measure."""
    parser, events = SseParser(), SseEvents(b"[DONE]")
    due = [event for piece in pieces(stream, cuts) for event in parser.feed(piece)]
    assert sum(events.feed(piece) for piece in pieces(stream, cuts)) == len(due)
    assert events.ended == any(event.data.startswith("[DONE]") for event in due)


def test_comments_are_no_events() -> None:
    """They are counted apart; other fields alone are neither."""
    events = SseEvents(b"[DONE]")
    assert events.feed(b": ok\n\nretry: 1\n\n:\n\n: a\n: b\n\ndata: x\n\n") == 1
    assert events.keepalives == 3


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    CUTS,
    st.sampled_from([b"", b";name=value"]),
    st.sampled_from([b"", b"trailer: x\r\n"]),
)
def test_chunks_are_joined(parts: list[bytes], cuts: list[int], extension: bytes, trailer: bytes) -> None:
    """Whatever they hold, and whatever way they are cut; the end is seen, and nothing behind it is taken."""
    framed = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    framed += b"0\r\n" + trailer + b"\r\n"
    body = ChunkedBody()
    assert b"".join(body.feed(piece) for piece in pieces(framed, cuts)) == b"".join(parts)
    assert body.ended
    assert body.close()
    cut_off = ChunkedBody()
    cut_off.feed(framed[:-1])
    assert not cut_off.close()


@pytest.mark.parametrize("data", [b"x\r\n", b"-5\r\nabc\r\n", b"3\r\nabcd\r\n", b"\r\n", b"9" * 20_000])
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    """And does not hang the reader."""
    body = ChunkedBody()
    with pytest.raises(ValueError):  # noqa: PT011 - int's own words
        body.feed(data)


def test_a_length_is_kept() -> None:
    """Not less and not more."""
    body = LengthBody(5)
    assert (body.feed(b"abc"), body.close()) == (b"abc", False)
    assert (body.feed(b"defg"), body.ended) == (b"de", True)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ("Transfer-Encoding: Chunked", "ChunkedBody"),
        ("content-length: 7", "LengthBody"),
        ("server: x", "OpenBody"),
    ],
)
def test_heads_say_how_the_body_ends(fields: str, kind: str) -> None:
    """By their fields, in any case of letters."""
    head = Head(f"HTTP/1.1 200 OK\r\n{fields}".encode())
    body: Body = head.body()
    assert (head.status, type(body).__name__) == (200, kind)


@pytest.mark.parametrize("block", [b"", b"SSH-2.0", b"HTTP/1.1 abc", b"HTTP/2"])
def test_what_is_no_head_is_refused(block: bytes) -> None:
    """With an error that counts as malformed."""
    with pytest.raises(ValueError, match="no HTTP"):
        Head(block)


def server_frame(payload: bytes, first: int) -> bytes:
    """Make one unmasked frame."""
    size = len(payload)
    if size < 126:
        return bytes([first, size]) + payload
    return bytes([first, 126]) + size.to_bytes(2, "big") + payload


@given(st.lists(st.binary(max_size=300), max_size=6), CUTS, st.booleans())
def test_messages_are_counted(messages: list[bytes], cuts: list[int], fragmented: bool) -> None:
    """Whole or in fragments, with a ping between them."""
    stream = b""
    for message in messages:
        if fragmented:
            stream += (
                server_frame(message[:1], 0x01) + server_frame(b"?", 0x89) + server_frame(message[1:], 0x80)
            )
        else:
            stream += server_frame(message, 0x81)
    stream += server_frame((1000).to_bytes(2, "big"), 0x88)
    events = WebSocketEvents(b"[DONE]")
    seen = b""
    count = 0
    for piece in pieces(stream, cuts):
        count += events.feed(piece)
        seen += events.whole
    assert count == len(messages)
    assert len(seen.replace(b"\n\n", b"")) == len(b"".join(messages).replace(b"\n\n", b""))
    assert events.closed_well
    assert events.keepalives == fragmented * len(messages)
    assert len(events.replies) == events.keepalives * 7 + 8


@pytest.mark.parametrize(
    "frame", [bytes([0x81, 0x81]) + b"mask" + b"x", bytes([0xC1, 1]) + b"x", bytes([0x83, 0])]
)
def test_what_breaks_the_websocket_is_refused(frame: bytes) -> None:
    """A mask, an extension, a kind that nobody knows."""
    with pytest.raises(ValueError, match="the server"):
        WebSocketEvents(b"").feed(frame)


@pytest.mark.parametrize("size", [0, 125, 126, 65_536])
def test_frames_of_ours_are_masked(size: int) -> None:
    """So that undoing the mask gives the payload again."""
    payload = bytes(number % 251 for number in range(size))
    frame = client_frame(payload)
    head = 2 if size < 126 else 4 if size < 65_536 else 10
    mask, masked = frame[head : head + 4], frame[head + 4 :]
    assert bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked)) == payload
    assert len(close_frame()) == 8


def test_a_handshake_answers_its_own_key() -> None:
    """The example of RFC 6455."""
    head = Head(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    check_accepted(head, "dGhlIHNhbXBsZSBub25jZQ==")
    with pytest.raises(ValueError, match="another"):
        check_accepted(head, "AAAAAAAAAAAAAAAAAAAAAA==")


STAMP = b"1700000000000000000"


@pytest.mark.parametrize(
    ("event", "lone"),
    [
        (b'data: {"delta":"x @%s "}\n\n' % STAMP, True),
        (b"event: chunk\nid: 4\ndata: @%s\n\n" % STAMP, True),
        (b"data: @%s @%s\n\n" % (STAMP, STAMP), False),
        (b"data: @%s\ndata: more\n\n" % STAMP, False),
        (b"data: x\n\ndata: @%s\n\n" % STAMP, False),
        (b"data: @%s1\n\n" % STAMP, False),
        (b": c @%s\n\n" % STAMP, False),
    ],
)
def test_the_short_way_is_for_one_event_with_one_time(event: bytes, lone: bool) -> None:
    """All others take the long one."""
    found = lone_event(b"%x\r\n%s\r\n" % (len(event), event))
    assert (found is not None) == lone
    if found is not None:
        assert found.groups() == (b"%x" % len(event), STAMP)


def test_times_are_told_once() -> None:
    """What repeats an answer tells times that are over; a single one is taken for its own."""
    joined = b"event: chunk\ndata: a @%s b @%s\n\n" % (STAMP, STAMP)
    assert stamps(joined) == [STAMP, STAMP]
    assert due_times(joined + b"event: snapshot\ndata: @%s @%s\n\n" % (STAMP, STAMP)) == [int(STAMP)] * 2
    frame = b'{"type":"event","event":"message","data":"@%s @%s"}' % (STAMP, STAMP)
    assert due_times(frame) == []
    assert last_id(b"id: a.1-2\ndata: x\n\nid:a.1-3\ndata: id: y\n\n") == "a.1-3"
    assert last_id(b"data: id: y\n\n") == ""


def test_gaps_and_repeats_are_seen() -> None:
    """By the pace, and at the edges by the count."""
    whole, gap, again, short = (Continuity(10) for _ in range(4))
    whole.feed([100, 110])
    whole.feed([120])
    whole.end(3)
    assert (whole.missing, whole.repeated) == (0, 0)
    gap.feed([100, 140])
    assert (gap.missing, gap.repeated) == (3, 0)
    again.feed([100, 110, 110, 100, 120])
    assert (again.missing, again.repeated) == (0, 2)
    again.restart()
    again.feed([100, 110, 120])
    again.end(3)
    assert (again.missing, again.repeated) == (0, 2)
    short.feed([100, 110])
    short.end(5)
    assert short.missing == 3
