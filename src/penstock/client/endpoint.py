"""A chat endpoint over HTTP: what its requests look like, JSON answers, and the sentence of a refusal.

Streams are begun here, and read elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
import trio

from penstock.client.answer import Answer, Asked, EventAnswer
from penstock.errors import (
    LimitExceededError,
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestRefusedError,
    ServerUnreachableError,
)
from penstock.http import open_body, retry_after_s
from penstock.limits import ClientLimits, WireLimits
from penstock.wire.codec import decode_json, encode_json

_HEADERS = {
    # No compression: it would hold tokens back.
    "accept-encoding": "identity",
    "x-penstock-sdk": "7",
}

TRANSIENT = frozenset([408, 429, 502, 503, 504])
"""Statuses after which the same request may do better. Source: RFC 9110 section 15, RFC 6585 section 4."""


class Endpoint:
    """One chat endpoint of one server."""

    def __init__(
        self, http: httpx2.AsyncClient, url: httpx2.URL, headers: Mapping[str, str], limits: ClientLimits
    ) -> None:
        self._http = http
        self._url = url
        self._headers = {**_HEADERS, **headers}
        self.limits = limits
        self.wire = WireLimits(
            json_bytes=limits.answer_bytes,
            chunk_bytes=limits.event_bytes,
            sse_line_bytes=limits.event_bytes,
            sse_event_bytes=limits.event_bytes,
        )
        """What is accepted of a server that the caller chose: its replays are larger than anything a stranger sends."""

    @property
    def server(self) -> str:
        """The server's name and port."""
        return self._url.netloc.decode("ascii")

    def request(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
    ) -> httpx2.Request:
        """Make a request below the endpoint.

        Raises:
            LocalProtocolError: if a part of the path can't be one, or `json` has no JSON form.
        """
        url = self._url
        if path or query:
            raw_path, _, raw_query = url.raw_path.partition(b"?")
            if path:
                raw_path = b"/".join([raw_path.rstrip(b"/"), *map(_segment, path)])
            raw_query = b"&".join(filter(None, [raw_query, urlencode(query or {}).encode("ascii")]))
            url = url.copy_with(raw_path=raw_path + (b"?" + raw_query if raw_query else b""))
        headers = {**self._headers, **(headers or {})}
        if json is None:
            return self._http.build_request(method, url, headers=headers)
        headers["content-type"] = "application/json"
        return self._http.build_request(method, url, headers=headers, content=encode_json(json))

    async def open(self, asked: Asked) -> Answer | None:
        """Ask for a stream and return what answers; None where there is nothing to stream.

        Raises:
            RequestRefusedError: another status than 200 and 204.
            RequestError: the answer is no event stream.
            LocalProtocolError: there is something in the request that can't be sent.
            httpx2.TransportError: there is no answer.
        """
        stream = {"accept": "text/event-stream"}
        match asked.kind:
            case "send":
                request = self.request("POST", headers=stream, json=asked.fields)
            case "resume":
                query = {"after": asked.after} if asked.after else None
                request = self.request("GET", asked.chat_id, "stream", query=query, headers=stream)
            case "watch":
                if asked.after:
                    stream["last-event-id"] = asked.after
                request = self.request("GET", asked.chat_id, "watch", query=asked.fields, headers=stream)
        response = await self.send(request)
        async with AsyncExitStack() as stack:
            pieces = await stack.enter_async_context(open_body(response))
            if response.status_code == 204:
                return None
            if response.status_code != 200:
                raise await self.refusal(response, pieces)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise RequestError("The server did not answer with an event stream.")
            return EventAnswer(response, pieces, stack.pop_all(), self.wire)

    async def stop(self, chat_id: str, reason: str) -> Any:
        """Ask for a chat's turn to be stopped; raises as `ask`."""
        return await self.ask(
            self.request("POST", chat_id, "stop", json={"reason": reason} if reason else {})
        )

    async def approve(self, chat_id: str, approval_id: str, decision: Mapping[str, Any]) -> None:
        """Decide about a tool call; raises as `ask`."""
        await self.ask(self.request("POST", chat_id, "approvals", approval_id, json=decision))

    async def state(self, chat_id: str) -> dict[str, Any] | None:
        """Return a chat's state, None if there is no such chat; raises as `ask`."""
        return await self.get(chat_id)

    async def turn(self, chat_id: str, turn_id: str) -> dict[str, Any] | None:
        """Return a turn's state, None if there is no such turn; raises as `ask`."""
        return await self.get(chat_id, "turns", turn_id)

    async def get(self, *path: str) -> dict[str, Any] | None:
        """Return an object, None if there is none; raises as `ask`."""
        try:
            return as_object(await self.ask(self.request("GET", *path)))
        except RequestRefusedError as exc:
            if exc.status == 404:
                return None
            raise

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return the answer with its body unread: give it to `open_body` at once.

        Raises:
            httpx2.TransportError: there is no answer.
            LocalProtocolError: a header has a value that can't be sent.
        """
        try:
            return await self._http.send(request, stream=True)
        except httpx2.LocalProtocolError as exc:
            raise LocalProtocolError("a header of the client has a value that can't be sent") from exc

    async def ask(self, request: httpx2.Request) -> Any:
        """Send a request and return its JSON answer.

        Raises:
            RequestRefusedError: another status than 200.
            ServerUnreachableError: no connection, or a broken one.
            RemoteProtocolError: the answer can't be understood.
        """
        try:
            response = await self.send(request)
            async with open_body(response) as pieces:
                if response.status_code != 200:
                    raise await self.refusal(response, pieces)
                body = bytearray()
                async for piece in pieces:
                    body += piece
                    if len(body) > self.limits.answer_bytes:
                        raise LimitExceededError("The server's answer is too long.")
        except httpx2.TransportError as exc:
            raise ServerUnreachableError(self.why(exc)) from exc
        return decode_json(bytes(body), limits=self.wire)

    async def refusal(self, response: httpx2.Response, pieces: AsyncIterator[bytes]) -> RequestRefusedError:
        """Read the sentence that comes with an error status."""
        body = bytearray()
        with trio.move_on_after(self.limits.refusal_s):
            try:
                while len(body) < self.limits.refusal_bytes and (piece := await anext(pieces, b"")):
                    body += piece
            except httpx2.TransportError:
                pass  # the status says enough
        sentence = body[: self.limits.refusal_bytes].decode("utf-8", "replace").strip()
        return RequestRefusedError(
            sentence or f"The server answered with status {response.status_code}.",
            status=response.status_code,
            retry_after_s=retry_after_s(response.headers.get("retry-after")),
        )

    def why(self, error: httpx2.TransportError | None) -> str:
        """Say in a sentence what happened to a request; None: its answer ended early."""
        match error:
            case httpx2.ConnectError() | httpx2.ConnectTimeout():
                return f"There is no answer from {self.server}."
            case httpx2.ReadTimeout():
                return f"The server has sent nothing for {self.limits.silence_s:g} seconds."
            case httpx2.WriteTimeout():
                return f"The server has taken nothing for {self.limits.silence_s:g} seconds."
            case None | httpx2.NetworkError() | httpx2.RemoteProtocolError():
                return "The stream was cut: the answer is not complete."
        return f"The request failed: {type(error).__name__}."


def _segment(text: str) -> bytes:
    if text in ("", ".", ".."):
        raise LocalProtocolError("an id in a URL is not empty, and neither . nor .. alone")
    try:
        return quote(text, safe="").encode("ascii")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError("an id in a URL holds text that has no UTF-8 form") from exc


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON answer that must be an object. Raises RemoteProtocolError."""
    if not isinstance(value, dict):
        raise RemoteProtocolError("The server's answer is not an object.")
    return value
