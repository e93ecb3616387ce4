"""What a response is in bytes: it ends where its head says, and no field makes another."""

from __future__ import annotations

import pytest

from penstock.server.request import Request
from penstock.server.response import Response, switching

Fields = list[tuple[bytes, bytes]]


def answer(
    *fields: tuple[bytes, bytes],
    status: int = 200,
    method: bytes = b"GET",
    version: bytes = b"1.1",
    ask: bytes = b"",
    closes: bool = False,
    body: bytes = b"hello",
) -> tuple[Response, dict[bytes, bytes], bytes]:
    """Return the response, the fields of its head, and what is sent of its body."""
    request = Request()
    request.read(b"%b / HTTP/%b\r\nhost: a\r\n%b\r\n" % (method, version, ask), head_bytes=1000)
    response = Response(request)
    first, *lines = response.head(status, list(fields), closes=closes).split(b"\r\n")
    assert first == b"HTTP/1.1 %d " % status
    assert lines[-2:] == [b"", b""]
    head = dict(line.split(b": ", 1) for line in lines[:-2])
    assert len(head) == len(lines) - 2
    assert head.pop(b"date").endswith(b" GMT")
    return response, head, response.body(body) + response.end()


LENGTH = (b"Content-Length", b"5")
CHUNKED = {b"transfer-encoding": b"chunked"}
CLOSE = {b"connection": b"close"}


def test_a_body_of_unknown_length_goes_in_chunks() -> None:
    response, head, sent = answer((b"X-Name", b" a\xffb "))
    assert (head, sent) == ({b"X-Name": b"a\xffb"} | CHUNKED, b"5\r\nhello\r\n0\r\n\r\n")
    assert (response.chunked, response.closes, response.ended) == (True, False, True)
    assert answer((b"transfer-encoding", b"chunked"), LENGTH)[1:] == (CHUNKED, sent)


def test_a_body_of_known_length_goes_as_it_is() -> None:
    response, head, sent = answer(LENGTH, LENGTH, (b"connection", b"keep-alive"))
    assert (head, sent) == ({b"content-length": b"5", b"connection": b"keep-alive"}, b"hello")
    assert (response.chunked, response.closes) == (False, False)


def test_http10_knows_no_chunks() -> None:
    assert answer(version=b"1.0")[1:] == (CLOSE, b"hello")
    assert answer((b"transfer-encoding", b"chunked"), version=b"1.0")[1:] == (CLOSE, b"hello")
    assert answer(LENGTH, version=b"1.0")[1:] == ({b"content-length": b"5"} | CLOSE, b"hello")


@pytest.mark.parametrize("options", [{"method": b"HEAD"}, {"status": 204}, {"status": 304}])
def test_some_have_no_body(options: dict[str, bytes]) -> None:
    for fields in ([], [LENGTH], [(b"transfer-encoding", b"chunked")]):
        response, head, sent = answer(*fields, **options)  # type: ignore[arg-type]
        assert sent == b""
        assert not response.chunked
        assert not response.closes
        assert (b"transfer-encoding" in head) is ("method" in options and fields != [LENGTH])


def test_who_says_that_the_connection_ends() -> None:
    for response, head, _ in (
        answer(ask=b"connection: close\r\n"),
        answer((b"Connection", b"x, Close")),
        answer(closes=True),
        answer((b"connection", b"keep-alive"), closes=True),
    ):
        assert response.closes
        assert head == CHUNKED | CLOSE


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nforged: b"),
        (b"x", b"a\nforged: b"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00"),
        (b"x\r\nforged", b"b"),
        (b"x: y\r\nforged", b"b"),
        (b"x y", b"b"),
        (b"", b"b"),
        (b":status", b"200"),
        (b"connection", b"a\r\nforged: b"),
        (b"content-length", b"5\r\nforged: b"),
        (b"content-length", b"-5"),
        (b"content-length", b"5, 5"),
        (b"content-length", b""),
        (b"transfer-encoding", b"gzip"),
        (b"transfer-encoding", b"chunked\r\nforged: b"),
    ],
)
def test_no_field_makes_another(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="sent"):
        answer(field)
    if b"forged" in field[0] + field[1]:
        with pytest.raises(ValueError, match="sent"):
            switching([field])


def test_what_can_not_be_said() -> None:
    for status in (99, 101, 103, 199, 1000):
        with pytest.raises(ValueError, match="status"):
            answer(status=status)
    with pytest.raises(ValueError, match="two fields"):
        answer(LENGTH, (b"content-length", b"6"))
    with pytest.raises(ValueError, match="longer"):
        answer(LENGTH, body=b"hello!")
    with pytest.raises(ValueError, match="shorter"):
        answer(LENGTH, body=b"hell")
