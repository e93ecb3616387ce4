"""A model upstream over HTTP: asks an OpenAI-compatible server, and writes its answer into a turn as it comes.

    async with open_upstream("http://localhost:11434/v1", "llama3.2") as upstream:
        ...  # upstream.answer is a producer

Knows HTTP and its failures; what the events mean is `openai.py`'s. Every failure becomes an `UpstreamError`, whose
sentence is for the user and whose own text is for the log; neither holds the key, and no body reaches the user.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import trio

from penstock.errors import (
    LimitExceededError,
    RemoteProtocolError,
    UpstreamError,
    UpstreamSilentError,
    UpstreamStatusError,
    UpstreamTruncatedError,
)
from penstock.http import http_client, open_body, tls_context
from penstock.limits import Limits
from penstock.relay.openai import (
    ANSWER_TOO_LONG,
    BUSY,
    NOT_UNDERSTOOD,
    TOO_LONG,
    CompletionTranslator,
    error_sentence,
)
from penstock.relay.openai_messages import openai_messages
from penstock.turns.turn import Producer, Turn
from penstock.wire.chunks import AnyChunk
from penstock.wire.codec import decode_json, encode_json
from penstock.wire.sse_parser import SseParser

_SENTENCES = {413: TOO_LONG, 429: BUSY, 503: BUSY, 529: BUSY}
"""What the user reads of a status; of any other, that the model refused."""


class Upstream:
    """One model on one server. Its `answer` is a producer. Made by `open_upstream`."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        url: httpx2.URL,
        model: str,
        *,
        api_key: str,
        extra_body: Mapping[str, Any],
        limits: Limits,
    ) -> None:
        self._client = client
        self._url = url
        self._model = model
        self._api_key = api_key
        self._extra_body = extra_body
        self._limits = limits

    def __repr__(self) -> str:
        return f"<Upstream {self._model} at {self._url.host}>"

    async def answer(self, turn: Turn) -> None:
        """Answer the turn: one request, written on as it comes.

        Raises UpstreamError, or a child of it. Cancelled, it closes the request's connection at once, and with it the
        model's work.
        """
        request = self._client.build_request(
            "POST", self._url, content=self._body(turn), headers=self._headers()
        )
        try:
            response = await self._client.send(request, stream=True)
            async with open_body(response) as pieces:
                await self._read(response, pieces, turn)
        except httpx2.ConnectTimeout as exc:
            raise UpstreamError(f"{self!r} took no connection in {self._limits.relay.connect_s:g} s") from exc
        except httpx2.TimeoutException as exc:
            raise UpstreamSilentError(f"{self!r} was silent for {self._limits.relay.silence_s:g} s") from exc
        except httpx2.HTTPError as exc:
            raise UpstreamError(f"{self!r} could not be asked: {type(exc).__name__}: {exc}") from exc

    def _body(self, turn: Turn) -> bytes:
        return encode_json(
            {
                "stream_options": {"include_usage": True},
                **self._extra_body,
                "model": self._model,
                "messages": openai_messages(turn.messages),
                "stream": True,
            }
        )

    def _headers(self) -> dict[str, str]:
        # No compression: it would hold tokens back, and count as bytes what is not yet text.
        headers = {
            "accept": "text/event-stream, application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
        }
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        return headers

    async def _read(self, response: httpx2.Response, pieces: AsyncIterator[bytes], turn: Turn) -> None:
        if response.status_code != 200:
            raise await self._refusal(response.status_code, pieces)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise UpstreamError(f"{self!r} compressed its answer unasked", error_text=NOT_UNDERSTOOD)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        translator = CompletionTranslator(limits=self._limits.wire)
        if kind == "text/event-stream":
            await self._read_events(pieces, translator, turn)
        elif kind == "application/json":
            await _write(turn, translator.feed(await self._read_whole(pieces)))
        else:
            raise UpstreamError(f"{self!r} answered with {kind[:80]!r}", error_text=NOT_UNDERSTOOD)
        await _write(turn, translator.finish())

    async def _read_events(
        self, pieces: AsyncIterator[bytes], translator: CompletionTranslator, turn: Turn
    ) -> None:
        limits = self._limits.relay
        parser = SseParser(self._limits.wire)
        received = 0
        wait_s = math.inf  # the client's own timeout is `silence_s`
        while piece := await self._next(pieces, wait_s):
            received += len(piece)
            if received > limits.answer_bytes:
                raise UpstreamError(
                    f"{self!r} sent more than {limits.answer_bytes} bytes", error_text=ANSWER_TOO_LONG
                )
            try:
                events = parser.feed(piece)
            except LimitExceededError as exc:
                raise UpstreamError(
                    f"{self!r} sent an event that is too long", error_text=NOT_UNDERSTOOD
                ) from exc
            for event in events:
                await _write(turn, translator.feed(event.data))
            if translator.ended:
                wait_s = limits.eof_s
            elif translator.finish_reason is not None:
                wait_s = limits.trailer_s

    async def _next(self, pieces: AsyncIterator[bytes], wait_s: float) -> bytes:
        """Read what comes next; nothing at the stream's end. With a finite wait the answer is known to be whole."""
        with trio.move_on_after(wait_s):
            try:
                return await anext(pieces, b"")
            except httpx2.TimeoutException:
                raise
            except httpx2.TransportError as exc:
                if wait_s == math.inf:
                    raise UpstreamTruncatedError(f"{self!r} broke off: {type(exc).__name__}: {exc}") from exc
        return b""

    async def _read_whole(self, pieces: AsyncIterator[bytes]) -> str:
        """Read an answer that did not come as events, from a server that knows no streaming."""
        whole = bytearray()
        while piece := await self._next(pieces, math.inf):
            whole += piece
            if len(whole) > self._limits.wire.sse_event_bytes:
                raise UpstreamError(f"{self!r} sent too long an answer at once", error_text=ANSWER_TOO_LONG)
        return whole.decode("utf-8", "replace")

    async def _refusal(self, status: int, pieces: AsyncIterator[bytes]) -> UpstreamStatusError:
        """Read the beginning of an error status's body, for the log and for the well-known errors."""
        says = bytearray()
        with trio.move_on_after(self._limits.relay.refusal_s):
            try:
                while len(says) < self._limits.relay.refusal_bytes and (piece := await anext(pieces, b"")):
                    says += piece
            except httpx2.TransportError:
                pass  # the status says enough
        text = says[: self._limits.relay.refusal_bytes].decode("utf-8", "replace")
        if self._api_key:
            text = text.replace(self._api_key, "[key]")
        return UpstreamStatusError(
            f"{self!r} answered with status {status}: {text!r}",
            status=status,
            error_text=_error_sentence(text) or _SENTENCES.get(status),
        )


@asynccontextmanager
async def open_upstream(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    limits: Limits = Limits(),
) -> AsyncIterator[Upstream]:
    """Open a model upstream, whose connections are kept for the next turn.

    Args:
        base_url: the API's base, `http://host/v1`, or its whole `/chat/completions`; of a host alone, `/v1`.
        model: the model's name there.
        api_key: sent as a bearer token; None for the environment's (see `environment_api_key`), empty for none.
        extra_body: more of the request: `temperature`, `max_tokens`, `tools`, …
        limits: the numbers that differ from the defaults; `relay` and `wire` are read.

    Raises:
        ValueError: if the URL or the key can't be used.
    """
    url = completions_url(base_url)
    api_key = _checked_key(url, api_key)
    async with http_client(url, connect_s=limits.relay.connect_s, silence_s=limits.relay.silence_s) as client:
        yield Upstream(client, url, model, api_key=api_key, extra_body=extra_body or {}, limits=limits)


def relay(
    url: str,
    model: str,
    *,
    api_key: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    limits: Limits = Limits(),
) -> Producer:
    """Return a producer that relays a model, for where no `async with` can be: each turn opens a connection.

    The arguments and errors are those of `open_upstream`.
    """
    endpoint = completions_url(url)
    api_key = _checked_key(endpoint, api_key)
    tls_context(endpoint.scheme)  # slow once: now rather than in the first turn

    async def answer(turn: Turn) -> None:
        async with open_upstream(
            url, model, api_key=api_key, extra_body=extra_body, limits=limits
        ) as upstream:
            await upstream.answer(turn)

    return answer


def completions_url(base_url: str) -> httpx2.URL:
    """Return the URL of `/chat/completions` for an API's base, or for itself. Raises ValueError."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as exc:
        raise ValueError("the upstream's URL can't be read") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("the upstream's URL begins with http:// or https:// and names a host")
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return url.copy_with(path=path, fragment=None)


def environment_api_key(url: httpx2.URL, environment: Mapping[str, str] = os.environ) -> str:
    """Return the key that the environment has for this upstream, or an empty string.

    `PENSTOCK_UPSTREAM_API_KEY` goes to any; `OPENAI_API_KEY` only to OpenAI itself, because it is set on many machines
    for other programs and a local server has no business seeing it.
    """
    key = environment.get("PENSTOCK_UPSTREAM_API_KEY", "").strip()
    if not key and url.scheme == "https" and url.host == "api.openai.com":
        key = environment.get("OPENAI_API_KEY", "").strip()
    return key


def _checked_key(url: httpx2.URL, api_key: str | None) -> str:
    if api_key is None:
        api_key = environment_api_key(url)
    if api_key and not re.fullmatch(r"[!-~]+", api_key):
        raise ValueError("the upstream's API key holds a character that no key has")
    return api_key


async def _write(turn: Turn, chunks: Sequence[AnyChunk]) -> None:
    for chunk in chunks:
        await turn.write(chunk)


def _error_sentence(body: str) -> str | None:
    try:
        value = decode_json(body.encode())
    except RemoteProtocolError:
        return None
    return error_sentence(value.get("error")) if isinstance(value, dict) else None
