"""What a relay needs to know of an upstream's protocol: where to ask, how, and what the answer means. Sans-I/O.

A `Protocol` is stateless and shared by all turns; a `Translator` is one answer's. They know no sockets and no clocks:
who asks, waits, and gives up is `upstream.py`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence

import httpx2

from penstock.relay.recovery import Recoverer
from penstock.relay.tool_schema import ToolSchema
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent


class Translator(typing.Protocol):
    """Turns one answer of an upstream into chunks. What it raises is an `UpstreamError`, or a child of it.

    While nothing was translated into a chunk, the request may be made again, with a new translator: what must not be
    done twice is done once something was written.
    """

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
        """Return where to POST, for the API's base or the endpoint itself. The base was checked, and has no fragment."""

    def headers(self, turn: Turn, api_key: str) -> Mapping[str, str]:
        """Return the headers that this protocol wants beside content types, in lower case; `api_key` may be empty."""

    def body(self, turn: Turn) -> bytes:
        """Return the request's JSON."""

    def translator(self, turn: Turn) -> Translator:
        """Return a translator for one answer."""


@typing.runtime_checkable
class ModelProtocol(Protocol, typing.Protocol):
    """A protocol whose upstream is a model: it can be asked about any conversation, and be offered tools."""

    def model_body(self, messages: Sequence[UIMessage], tools: Sequence[ToolSchema] = ()) -> bytes:
        """Return the JSON of a request about a conversation, oldest message first.

        Args:
            messages: the last may be by the assistant: what it has said and called so far, and what came of it.
            tools: what the model may call, beside what the protocol itself was told to offer.
        """


@typing.runtime_checkable
class AppProtocol(Protocol, typing.Protocol):
    """A protocol whose upstream is an app of one's own rather than a model.

    What it is asked may have effects there, so it is asked again only if it says when, or could not be reached at all.
    """

    def refusal(self, kind: str, body: str) -> str | None:
        """Return what the user may read of an error status; None for the usual sentence.

        Args:
            kind: the content type, in lower case.
            body: its beginning, up to `refusal_bytes`.
        """


@typing.runtime_checkable
class Recoverable(Protocol, typing.Protocol):
    """A protocol whose upstream can be asked for the rest of an answer."""

    def recoverer(self, base_url: httpx2.URL, api_key: str) -> Recoverer:
        """Return who asks, for the API's base or the endpoint itself; `api_key` may be empty."""
