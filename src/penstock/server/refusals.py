"""Answers of the server itself, as bytes: before any app, and often instead of a protocol that broke."""

from __future__ import annotations

from http import HTTPStatus

_SENTENCES = {
    400: "The request is not valid HTTP/1.1.",
    408: "The request took too long to arrive.",
    431: "The request's head is too large.",
    501: "The server does not support this.",
    503: "The server has no room for another connection.",
    505: "The server speaks HTTP/1.1 here.",
}


def refusal(status: int, *, retry_after_s: int | None = None) -> bytes:
    """Return a whole HTTP/1.1 response with one sentence for a person, after which the connection is closed."""
    body = _SENTENCES.get(status, _SENTENCES[400]).encode("ascii") + b"\n"
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: text/plain; charset=utf-8",
        f"content-length: {len(body)}",
        "cache-control: no-store",
        "connection: close",
    ]
    if retry_after_s is not None:
        head.append(f"retry-after: {retry_after_s}")
    return "\r\n".join([*head, "", ""]).encode("ascii") + body
