"""Event-stream frames: a value can't become a field, an event or a line of its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.errors import LocalProtocolError
from penstock.wire.sse import DONE, RETRY_MS_MAX, chunk_frame, comment, event
from penstock.wire.sse_parser import SseParser, parse

LINE_LIKE = "\r\n\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
TRICKY = st.text(st.sampled_from(LINE_LIKE + "\0\ufeff :\\adei") | st.characters(exclude_categories=["Cs"]))
FIELD = TRICKY.map(lambda text: text.replace("\r", "").replace("\n", "").replace("\0", ""))


def with_lf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_the_frames_are_those_of_the_ai_sdk() -> None:
    assert chunk_frame(b'{"type":"start"}') == b'data: {"type":"start"}\n\n'
    assert chunk_frame(b"{}", b"m1.0-7") == b"id: m1.0-7\ndata: {}\n\n"
    assert comment("stream-start") == b": stream-start\n\n"
    assert DONE == b"data: [DONE]\n\n"


def test_every_field_has_its_line() -> None:
    assert (
        event("a\nb", event="gap", id="7", retry_ms=0) == b"event: gap\nid: 7\nretry: 0\ndata: a\ndata: b\n\n"
    )
    assert event("") == b"data: \n\n"
    assert event("é".encode()) == event("é")


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "a\r\nb", "x\n\ndata: forged"])
def test_a_line_end_or_nul_in_an_event_type_or_id_is_refused(bad: str) -> None:
    with pytest.raises(LocalProtocolError, match="event type"):
        event("x", event=bad)
    with pytest.raises(LocalProtocolError, match="id"):
        event("x", id=bad)


@pytest.mark.parametrize("bad", ["\r", "\n", "a\r\n\r\ndata: forged"])
def test_a_line_end_in_a_comment_is_refused(bad: str) -> None:
    with pytest.raises(LocalProtocolError):
        comment(bad)


@pytest.mark.parametrize("bad", [-1, RETRY_MS_MAX + 1, 1.5, True, "5", "5\ndata: forged"])
def test_a_retry_that_is_no_count_of_milliseconds_is_refused(bad: Any) -> None:
    with pytest.raises(LocalProtocolError):
        event("x", retry_ms=bad)


def test_text_without_a_utf8_form_is_refused() -> None:
    forged: list[dict[str, Any]] = [
        {"data": "\ud800"},
        {"data": b"\xff"},
        {"data": "x", "id": "\ud800"},
        {"data": "x", "event": "\ud800"},
    ]
    for fields in forged:
        with pytest.raises(LocalProtocolError, match="UTF-8"):
            event(**fields)
    with pytest.raises(LocalProtocolError, match="UTF-8"):
        comment("\ud800")


def test_only_cr_lf_and_crlf_end_a_line_of_data() -> None:
    assert event("a\rb\nc\r\nd\n\re") == b"data: a\ndata: b\ndata: c\ndata: d\ndata: \ndata: e\n\n"
    for ordinary in set(LINE_LIKE) - {"\r", "\n"}:
        assert event(f"a{ordinary}b") == f"data: a{ordinary}b\n\n".encode()


@settings(deadline=None)
@given(TRICKY, FIELD, FIELD, st.none() | st.integers(0, RETRY_MS_MAX), FIELD)
@example("data: x\n\n", "", "", None, "")
def test_an_event_comes_back_from_the_parser(
    data: str, name: str, id: str, retry_ms: int | None, note: str
) -> None:
    parser = SseParser()
    stream = comment(note) + event(data, event=name, id=id, retry_ms=retry_ms) + comment(note) + DONE
    assert parser.feed(stream) == [(name or "message", with_lf(data), id), ("message", "[DONE]", id)]
    assert parser.retry_ms == retry_ms
    assert parser.last_event_id == id


@settings(deadline=None)
@given(st.lists(st.tuples(FIELD.filter(bool), FIELD)))
def test_chunk_frames_come_back_from_the_parser(chunks: list[tuple[str, str]]) -> None:
    stream = b"".join(chunk_frame(data.encode(), id.encode()) for id, data in chunks)
    assert parse([stream]) == [("message", data, id) for id, data in chunks]
