"""One request to an upstream, and its answer: written into a turn as it comes, or one error that says what was wrong.

Knows HTTP and its failures; what the events mean is the protocol's. Every failure becomes an `UpstreamError`, whose
sentence is for the user and whose own text is for the log; neither holds the key, and no body reaches the user, but
an app's own refusal (`AppProtocol`).
"""

from __future__ import annotations

import codecs
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import trio

from penstock.errors import (
    LimitExceededError,
    LocalProtocolError,
    UpstreamError,
    UpstreamRedirectError,
    UpstreamSilentError,
    UpstreamStatusError,
    UpstreamTooLongError,
    UpstreamTruncatedError,
    UpstreamUnansweredError,
    UpstreamUnreachableError,
    UpstreamUnreadableError,
)
from penstock.http import open_body, redirect_url, retry_after_s
from penstock.limits import Limits
from penstock.relay.api_key import redacted
from penstock.relay.proof_of_life import ProofOfLife
from penstock.relay.protocol import AppProtocol, Protocol, Translator
from penstock.relay.sentences import refusal_sentence
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk
from penstock.wire.sse_parser import ServerSentEvent, SseParser

_KEEPING_REDIRECTS = frozenset((307, 308))
"""Those that keep the method and the body. Source: RFC 9110 section 15.4."""
_REDIRECTS = _KEEPING_REDIRECTS | {301, 302, 303}


class Exchange:
    """One request and its answer.

    Args:
        client: follows no redirects.
        protocol: what to ask, and what the answer means.
        url: where.
        api_key: may be empty.
        limits: `relay` and `wire` are read.
        turn: is written.
        body: the request's.
        life: watches, and cancels, the waiting.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        protocol: Protocol,
        url: httpx2.URL,
        api_key: str,
        limits: Limits,
        turn: Turn,
        body: bytes,
        life: ProofOfLife,
    ) -> None:
        self._client = client
        self._protocol = protocol
        self._url = url
        self._api_key = api_key
        self._limits = limits.relay
        self._wire_limits = limits.wire
        self._turn = turn
        self._body = body
        self._life = life
        self._answered = False
        """Whether the head of an answer came."""
        self._leave_at = math.inf
        """When an answer that is whole is left, whatever may still come."""
        self._scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<upstream {self._protocol.name} at {self._url.host}>"

    async def run(self) -> None:
        """Ask, and write the answer.

        Raises UpstreamError, or a child of it. Cancelled, it closes the request's connection at once, and with it the
        model's work.
        """
        try:
            with self._scope:
                await self._ask()
        except UpstreamError as exc:
            exc.args = (redacted(str(exc), self._api_key),)
            raise
        finally:
            self._life.heard()
        if self._scope.cancelled_caught:
            if self._answered:
                raise UpstreamSilentError(f"{self!r} was silent for {self._limits.silence_s:g} s")
            raise UpstreamUnansweredError(f"{self!r} gave no answer for {self._limits.first_byte_s:g} s")

    async def _ask(self) -> None:
        url = self._url
        headers = httpx2.Headers(
            {
                "accept": "text/event-stream, application/json",
                # No compression: it would hold tokens back, and count as bytes what is not yet text.
                "accept-encoding": "identity",
                "content-type": "application/json",
                **self._protocol.headers(self._turn, self._api_key),
            },
            # As ASGI has them: a cookie may hold any bytes, and goes on with the same.
            encoding="latin-1",
        )
        # Of the rest the proof of life keeps the time: one watch for the whole answer, which knows what it waits for.
        timeout = httpx2.Timeout(None, connect=self._limits.connect_s)
        for _ in range(self._limits.redirects + 1):
            request = self._client.build_request(
                "POST",
                url,
                content=self._body,
                headers=headers,
                timeout=timeout,
                extensions={"trace": self._trace},
            )
            try:
                response = await self._client.send(request, stream=True)
            except httpx2.ConnectTimeout as exc:
                raise UpstreamUnreachableError(
                    f"{self!r} took no connection in {self._limits.connect_s:g} s"
                ) from exc
            except httpx2.HTTPError as exc:
                raise UpstreamUnreachableError(
                    f"{self!r} could not be asked: {type(exc).__name__}: {exc}"
                ) from exc
            self._life.heard()
            async with open_body(response) as pieces:
                if response.status_code not in _REDIRECTS:
                    self._answered = True
                    await self._read(response, pieces)
                    return
            url = self._redirected(url, response)
        raise self._redirect_error(response, f"redirects more than {self._limits.redirects} times")

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Start the clock when the connection is there and the request goes out."""
        if event.endswith(".send_request_headers.started"):
            self._life.listen(self._scope, self._limits.first_byte_s)

    def _redirected(self, url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
        """Return where a redirect leads, within the origin: nobody else gets the key, or the conversation."""
        if response.status_code not in _KEEPING_REDIRECTS:
            raise self._redirect_error(response, "redirects to where nothing can be posted")
        there = redirect_url(response)
        if there is None:
            raise self._redirect_error(response, "redirects to nowhere")
        if _origin(there) != _origin(url):
            raise self._redirect_error(
                response,
                f"redirects to {there.scheme}://{there.netloc.decode('ascii')}, which is not followed",
            )
        return there

    def _redirect_error(self, response: httpx2.Response, says: str) -> UpstreamRedirectError:
        return UpstreamRedirectError(f"{self!r} {says}", status=response.status_code)

    async def _read(self, response: httpx2.Response, pieces: AsyncIterator[bytes]) -> None:
        if response.status_code != 200:
            raise await self._refusal(response, pieces)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise UpstreamUnreadableError(f"{self!r} compressed its answer unasked")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        translator = self._protocol.translator(self._turn)
        if kind == "text/event-stream":
            await self._read_events(pieces, translator)
        elif kind == "application/json":
            await self._write(translator.feed_answer(await self._read_whole(pieces)))
        else:
            raise UpstreamUnreadableError(f"{self!r} answered with {kind[:80]!r}")
        await self._write(translator.finish())

    async def _read_events(self, pieces: AsyncIterator[bytes], translator: Translator) -> None:
        limits = self._limits
        parser = SseParser(self._wire_limits)
        decoder = codecs.getincrementaldecoder("utf-8")()
        received = 0
        while piece := await self._next(pieces, translator):
            received += len(piece)
            if received > limits.answer_bytes:
                raise UpstreamTooLongError(f"{self!r} sent more than {limits.answer_bytes} bytes")
            try:
                # The parser replaces what is no UTF-8, as browsers do. Noise must not pass for an answer.
                decoder.decode(piece)
                events = parser.feed(piece)
            except UnicodeDecodeError as exc:
                raise UpstreamUnreadableError(f"{self!r} sent what is no UTF-8") from exc
            except LimitExceededError as exc:
                raise UpstreamTooLongError(f"{self!r} sent an event that is too long") from exc
            chunks, failure = _translate(translator, events)
            if chunks:
                await self._write(chunks)
            else:
                self._life.heartbeat()
            if failure is not None:
                raise failure
            if translator.whole:
                self._life.mute()

    async def _next(self, pieces: AsyncIterator[bytes], translator: Translator) -> bytes:
        """Read what comes next; nothing at the stream's end, or where it need not come."""
        if translator.whole:
            wait_s = self._limits.eof_s if translator.ended else self._limits.trailer_s
            self._leave_at = min(self._leave_at, trio.current_time() + wait_s)
            with trio.move_on_at(self._leave_at):
                try:
                    return await anext(pieces, b"")
                except httpx2.TransportError:
                    pass
            return b""
        return await self._next_of_part(pieces)

    async def _next_of_part(self, pieces: AsyncIterator[bytes]) -> bytes:
        """Read what comes next of an answer that is not whole."""
        self._life.listen(self._scope, self._limits.silence_s)
        try:
            return await anext(pieces, b"")
        except httpx2.TransportError as exc:
            raise UpstreamTruncatedError(f"{self!r} broke off: {type(exc).__name__}: {exc}") from exc
        finally:
            self._life.heard()

    async def _read_whole(self, pieces: AsyncIterator[bytes]) -> str:
        """Read an answer that did not come as events, from a server that knows no streaming."""
        whole = bytearray()
        while piece := await self._next_of_part(pieces):
            whole += piece
            if len(whole) > self._wire_limits.sse_event_bytes:
                raise UpstreamTooLongError(f"{self!r} sent too long an answer at once")
            self._life.heartbeat()
        try:
            return whole.decode()
        except UnicodeDecodeError as exc:
            raise UpstreamUnreadableError(f"{self!r} sent what is no UTF-8") from exc

    async def _refusal(self, response: httpx2.Response, pieces: AsyncIterator[bytes]) -> UpstreamStatusError:
        """Read the beginning of an error status's body, for the log and for the well-known errors."""
        says = bytearray()
        with trio.move_on_after(self._limits.refusal_s):
            try:
                while len(says) < self._limits.refusal_bytes and (piece := await anext(pieces, b"")):
                    says += piece
            except httpx2.TransportError:
                pass  # the status says enough
        text = redacted(says.decode("utf-8", "replace"), self._api_key)[: self._limits.refusal_bytes]
        return UpstreamStatusError(
            f"{self!r} answered with status {response.status_code}: {text!r}",
            status=response.status_code,
            retry_after_s=retry_after_s(response.headers.get("retry-after")),
            error_text=self._refusal_sentence(response, text),
        )

    def _refusal_sentence(self, response: httpx2.Response, text: str) -> str | None:
        sentence = None
        if isinstance(self._protocol, AppProtocol):
            sentence = self._protocol.refusal(response.headers.get("content-type", "").lower(), text)
        return sentence or refusal_sentence(response.status_code, text)

    async def _write(self, chunks: Sequence[AnyChunk]) -> None:
        if chunks:
            try:
                await self._turn.write_from(chunks)
            except LocalProtocolError as exc:
                raise UpstreamUnreadableError(f"{self!r} sent what makes no message: {exc}") from exc
            finally:
                # Also where one is refused, or says that the answer failed: those before it are written.
                self._life.chunks_written(chunks)


def _translate(
    translator: Translator, events: Sequence[ServerSentEvent]
) -> tuple[list[AnyChunk], UpstreamError | None]:
    """Translate events up to the first that fails: what came before it is written all the same."""
    chunks: list[AnyChunk] = []
    for event in events:
        try:
            chunks += translator.feed(event)
        except UpstreamError as exc:
            return chunks, exc
    return chunks, None


def _origin(url: httpx2.URL) -> tuple[str, bytes, int | None]:
    # The raw host: an international one that can't be decoded is another host's all the same.
    return url.scheme, url.raw_host, url.port
