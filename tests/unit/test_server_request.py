"""What is a request and where it ends, in bytes. Two readers that disagree on that are a smuggled request."""

from __future__ import annotations

from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.server.request import PrefaceError, RefusedError, Request

HEAD_BYTES = 2_000
GET = b"GET / HTTP/1.1\r\nhost: a\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"


def read(*pieces: bytes) -> tuple[Request, bytes, bytes]:
    """Read one request; return it, its body, and what follows it."""
    request = Request()
    body = rest = b""
    for piece in pieces:
        if request.complete:
            rest += piece
        else:
            rest = request.read(piece, head_bytes=HEAD_BYTES)
        body += request.take_body()
    return request, body, rest


def status_of(*pieces: bytes) -> int | None:
    """Return the status that this is refused with."""
    try:
        read(*pieces)
    except RefusedError as error:
        return error.status
    return None


REFUSED: dict[str, tuple[int, bytes]] = {
    "no version": (400, b"GET /\r\n\r\n"),
    "HTTP/0.9": (505, b"GET / HTTP/0.9\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\nhost: a\r\n\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\nhost: a\r\n\r\n"),
    "HTTP/10.1": (400, b"GET / HTTP/10.1\r\nhost: a\r\n\r\n"),
    "http/1.1": (400, b"GET / http/1.1\r\nhost: a\r\n\r\n"),
    "RTSP": (400, b"PLAY rtsp://a RTSP/1.0\r\nhost: a\r\n\r\n"),
    "ICE": (400, b"SOURCE / ICE/1.0\r\nhost: a\r\n\r\n"),
    "unknown method": (501, b"FOO / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "small method": (501, b"get / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n"),
    "two spaces before the version": (400, b"GET /  HTTP/1.1\r\nhost: a\r\n\r\n"),
    "space after the version": (400, b"GET / HTTP/1.1 \r\nhost: a\r\n\r\n"),
    "space before the method": (400, b" " + GET + b"\r\n"),
    "tab": (400, b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"),
    "NUL in the target": (400, b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n"),
    "no slash": (400, b"GET a HTTP/1.1\r\nhost: a\r\n\r\n"),
    "request line ends with LF": (400, b"GET / HTTP/1.1\nhost: a\r\n\r\n"),
    "LF only": (400, b"GET / HTTP/1.1\nhost: a\n\n"),
    "LF only, and a request": (400, b"GET / HTTP/1.1\nhost: a\n\n" + NEXT),
    "field ends with LF": (400, GET + b"x: b\nc: d\r\n\r\n"),
    "CR in a field": (400, GET + b"x: b\rc: d\r\n\r\n"),
    "two CR": (400, GET + b"x: b\r\r\n\r\n"),
    "NUL": (400, GET + b"x: \x00\r\n\r\n"),
    "control": (400, GET + b"x: \x0b\r\n\r\n"),
    "DEL": (400, GET + b"x: \x7f\r\n\r\n"),
    "no colon": (400, GET + b"x\r\n\r\n"),
    "no name": (400, GET + b": b\r\n\r\n"),
    "space before colon": (400, GET + b"x : b\r\n\r\n"),
    "tab before colon": (400, GET + b"x\t: b\r\n\r\n"),
    "space in a name": (400, GET + b"x y: b\r\n\r\n"),
    "NUL in a name": (400, GET + b"x\x00: b\r\n\r\n"),
    "high byte in a name": (400, GET + b"x\xe9: b\r\n\r\n"),
    "folded": (400, GET + b"x: b\r\n c\r\n\r\n"),
    "folded first": (400, b"GET / HTTP/1.1\r\n host: a\r\n\r\n"),
    "folded framing": (400, POST + b"x: b\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, GET + b"host: a\r\n\r\n"),
    "two hosts in HTTP/1.0": (400, b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n"),
    "CONNECT": (501, b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n"),
    "large": (431, GET + b"x: " + b"x" * HEAD_BYTES + b"\r\n\r\n"),
    "large and not whole": (431, GET + b"x: " + b"x" * HEAD_BYTES),
}
for _length in (
    b"+5",
    b"-5",
    b"5,5",
    b"5, 5",
    b"5, 6",
    b"0x5",
    b"",
    b"5 5",
    b"5\x0b",
    b"5.0",
    b"5e0",
    b"5_0",
):
    REFUSED[f"length {_length!r}"] = (400, POST + b"content-length: " + _length + b"\r\n\r\nhello")
REFUSED |= {
    "huge length": (400, POST + b"content-length: 18446744073709551616\r\n\r\n"),
    "two lengths": (400, POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
    "a length twice": (400, POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello"),
    "length, then chunked": (
        400,
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
    ),
    "chunked, then length": (
        400,
        POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + NEXT,
    ),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    "gzip in HTTP/1.0": (400, b"POST / HTTP/1.0\r\ntransfer-encoding: gzip\r\n\r\n0\r\n\r\n"),
    "chunked, and a space": (400, POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
}
for _coding, _status in {
    b"gzip": 501,
    b"identity": 501,
    b"gzip, chunked": 501,
    b"identity, chunked": 501,
    b",chunked": 501,
    b"xchunked": 501,
    b"chunkedx": 501,
    b"chunked;a=b": 501,
    b'"chunked"': 501,
    b"chunk ed": 501,
    b"chunked\tx": 501,
    b"chunked, identity": 400,
    b"chunked, chunked": 400,
    b"chunked,": 400,
    b"": 400,
    b"\x0bchunked": 400,
    b"chunked\x00": 400,
    b"chunked\r\ntransfer-encoding: chunked": 400,
    b"chunked\r\ntransfer-encoding: identity": 400,
    b"identity\r\ntransfer-encoding: chunked": 501,
    b"\r\ntransfer-encoding: chunked": 400,
}.items():
    REFUSED[f"coding {_coding!r}"] = (
        _status,
        POST + b"transfer-encoding: " + _coding + b"\r\n\r\n0\r\n\r\n" + NEXT,
    )
for _chunk in (
    b"3 \r\nabc",
    b" 3\r\nabc",
    b"3\t\r\nabc",
    b"3\nabc",
    b"3\r\nabc\n0",
    b"3\r\nabcd\r\n0",
    b"3\r\nabc0",
    b"3\r\nab\r\n0",
    b"3;a\nb\r\nabc",
    b"3;a\rb\r\nabc",
    b'3;a="\r\n"\r\nabc',
    b"3;\x00\r\nabc",
    b"0x3\r\nabc",
    b"-3\r\nabc",
    b"+3\r\nabc",
    b"3_0\r\nabc",
    b"g\r\nabc",
    b"\r\nabc",
    b"fffffffffffffffff\r\nabc",
    b"0\n",
    b"0\r\n\n",
    b"0\r\r\n",
    b"0\r\na : b",
    b"0\r\na",
    b"0\r\na: b\n",
    b"0\r\na: b\r\n c",
    b"0\r\na: \x00",
    b"0\r\ncontent-length: 5",
    b"0\r\ntransfer-encoding: chunked",
):
    REFUSED[f"chunk {_chunk!r}"] = (400, CHUNKED + _chunk + b"\r\n0\r\n\r\n" + NEXT)
REFUSED |= {
    "endless extension": (431, CHUNKED + b"1;" + b"x" * (HEAD_BYTES + 1)),
    "endless trailers": (431, CHUNKED + b"0\r\n" + b"a: b\r\n" * HEAD_BYTES),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """Together and byte by byte."""
    status, data = REFUSED[case]
    assert status_of(data) == status
    assert status_of(*[bytes([byte]) for byte in data]) == status


BODY = b"hello\r\n\r\nworld"
TAKEN = {
    "no body": (GET + b"\r\n", b""),
    "length 0": (POST + b"content-length: 0\r\n\r\n", b""),
    "length": (POST + b"content-length: 14\r\n\r\n" + BODY, BODY),
    "length and spaces": (POST + b"content-length: \t 0014 \t\r\n\r\n" + BODY, BODY),
    "chunked": (CHUNKED + b"3\r\nabc\r\nE\r\n" + BODY + b"\r\n0\r\n\r\n", b"abc" + BODY),
    "chunked, in capitals": (
        POST + b"Transfer-Encoding:  CHUNKED \r\n\r\n00000e\r\n" + BODY + b"\r\n000\r\n\r\n",
        BODY,
    ),
    "empty lines in a chunk": (CHUNKED + b"9\r\n\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n0\r\n\r\n"),
    "extensions": (CHUNKED + b'3;a=b;c="d e"\r\nabc\r\n0;e\r\n\r\n', b"abc"),
    "trailers": (CHUNKED + b"3\r\nabc\r\n0\r\nhost: b\r\nx: y\r\n\r\n", b"abc"),
    "upgrade": (GET + b"upgrade: h2c\r\nconnection: upgrade\r\n\r\n", b""),
    "upgrade and length": (
        POST + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 14\r\n\r\n" + BODY,
        BODY,
    ),
    "upgrade and chunked": (
        POST
        + b"upgrade: h2c\r\nconnection: upgrade\r\ntransfer-encoding: chunked\r\n\r\ne\r\n"
        + BODY
        + b"\r\n0\r\nx: y\r\n\r\n",
        BODY,
    ),
    "close": (GET + b"connection: close\r\n\r\n", b""),
    "HTTP/1.0": (b"POST / HTTP/1.0\r\ncontent-length: 14\r\n\r\n" + BODY, BODY),
}


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("follows", [b"", b"\r\n", NEXT, b"\x00\xff garbage"])
def test_a_request_ends_where_it_ends(case: str, follows: bytes) -> None:
    """Together, byte by byte, and in any two pieces."""
    sent, expected = TAKEN[case]
    whole = sent + follows
    taken(expected, follows, *[bytes([byte]) for byte in whole])
    for cut in range(len(whole)):
        taken(expected, follows, whole[:cut], whole[cut:])


@given(st.sampled_from(sorted(TAKEN)), st.sampled_from([b"", NEXT]), st.lists(st.integers(0, 200)))
def test_pieces_change_nothing(case: str, follows: bytes, cuts: list[int]) -> None:
    sent, expected = TAKEN[case]
    whole = sent + follows
    at = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    taken(expected, follows, *[whole[start:end] for start, end in pairwise(at)])


def taken(expected: bytes, follows: bytes, *pieces: bytes) -> None:
    """Read one of `TAKEN`."""
    request, body, rest = read(*pieces)
    assert request.complete
    assert body == expected
    assert rest == follows
    assert (b"x", b"y") not in request.headers
    assert [value for name, value in request.headers if name == b"host"] in ([b"a"], [])


def test_a_head_is_read() -> None:
    request, _, _ = read(
        b"PATCH /a%20b?c=d HTTP/1.1\r\nHost: A\r\nX-Empty:\r\nx-Two:  b\xff c \t\r\nX-TWO: d\r\n\r\n"
    )
    assert (request.method, request.target, request.http_version) == ("PATCH", b"/a%20b?c=d", "1.1")
    assert request.headers == [(b"host", b"A"), (b"x-empty", b""), (b"x-two", b"b\xff c"), (b"x-two", b"d")]
    assert request.keep_alive
    assert not request.expects_continue


@pytest.mark.parametrize(
    ("fields", "keep_alive", "expects"),
    [
        (b"connection: Close\r\n", False, False),
        (b"connection: x, close\r\n", False, False),
        (b"connection: x\r\nconnection: close\r\n", False, False),
        (b"connection: closed, keep-alive\r\n", True, False),
        (b"expect: 100-Continue\r\n", True, True),
        (b"expect: 200-ok\r\n", True, False),
    ],
)
def test_what_the_head_asks_for(fields: bytes, keep_alive: bool, expects: bool) -> None:
    request, _, _ = read(GET + fields + b"\r\n")
    assert (request.keep_alive, request.expects_continue) == (keep_alive, expects)
    old, _, _ = read(GET.replace(b"1.1", b"1.0") + fields + b"connection: keep-alive\r\n\r\n")
    assert (old.keep_alive, old.expects_continue) == (False, False)


def test_the_preface_of_http2_is_known() -> None:
    with pytest.raises(PrefaceError) as caught:
        read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore")
    assert caught.value.rest == b"SM\r\n\r\nmore"
    assert status_of(b"PRI * HTTP/1.1\r\nhost: a\r\n\r\n") == 400


def test_what_is_led_by_the_hand_still_needs_it() -> None:
    """httptools reads on after a request's end, and leaves out the body of one with `Upgrade`: if not, simplify."""

    class Seen:
        ends = 0
        body = b""

        def on_message_complete(self) -> None:
            self.ends += 1

        def on_body(self, data: bytes) -> None:
            self.body += data

    seen = Seen()
    httptools.HttpRequestParser(seen).feed_data(NEXT + NEXT)
    assert seen.ends == 2
    sent, _ = TAKEN["upgrade and length"]
    with pytest.raises(httptools.HttpParserUpgrade):
        httptools.HttpRequestParser(seen).feed_data(sent)
    assert seen.body == b""


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_is_refused_or_waited_for(data: bytes, cut: int) -> None:
    """Nothing else happens, and the pieces it comes in change nothing."""
    results: list[int | None] = []
    for pieces in ([data], [data[:cut], data[cut:]]):
        results.extend(status_of(head, *pieces) for head in (b"", CHUNKED))
    assert results[:2] == results[2:]
