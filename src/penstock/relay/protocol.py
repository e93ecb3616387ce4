"""What a relay needs to know of an upstream's protocol: where to ask, how, and what the answer means. Sans-I/O.

A `Protocol` is stateless and shared by all turns; a `Translator` is one answer's. They know no sockets and no clocks:
who asks, waits, and gives up is `upstream.py`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence

import httpx2

from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk
from penstock.wire.sse_parser import ServerSentEvent


class Translator(typing.Protocol):
    """Turns one answer of an upstream into chunks. What it raises is an `UpstreamError`, or a child of it."""

    @property
    def whole(self) -> bool:
        """Whether the answer is all there: what may still come is its cost, or an end marker."""

    @property
    def ended(self) -> bool:
        """Whether the upstream's own end marker came: nothing more will."""

    def feed(self, event: ServerSentEvent) -> Sequence[AnyChunk]:
        """Translate one event. No chunks: it said nothing but that the upstream lives."""

    def feed_answer(self, body: str) -> Sequence[AnyChunk]:
        """Translate a whole answer of an upstream that did not stream: one JSON value."""

    def finish(self) -> Sequence[AnyChunk]:
        """Translate the end of the stream: close what is open. Idempotent.

        Raises:
            UpstreamTruncatedError: if the answer is not whole.
        """


class Protocol(typing.Protocol):
    """How to ask an upstream for the answer to a turn."""

    name: str
    """As `--protocol` says it."""

    def url(self, base_url: httpx2.URL) -> httpx2.URL:
        """Return where to POST, for the API's base or the endpoint itself."""

    def headers(self, api_key: str) -> Mapping[str, str]:
        """Return the headers that this protocol wants beside content types; `api_key` may be empty."""

    def body(self, turn: Turn) -> bytes:
        """Return the request's JSON."""

    def translator(self, turn: Turn) -> Translator:
        """Return a translator for one answer."""
