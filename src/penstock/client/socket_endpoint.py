"""A chat endpoint over one WebSocket, opened when it is needed and again when it has dropped.

Where the upgrade is refused, requests go over HTTP: this one, where the server is only busy, and else all that follow.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import httpx2
import trio

from penstock.client.answer import Answer, Asked
from penstock.client.endpoint import TRANSIENT, Endpoint, as_object
from penstock.client.frames import fields_of
from penstock.client.requests import Requests
from penstock.errors import RemoteProtocolError, RequestRefusedError, ServerUnreachableError
from penstock.limits import ClientLimits
from penstock.websocket import UpgradeRefusedError
from penstock.wire.codec import decode_json

logger = logging.getLogger("penstock.client")

_NOT_OF_A_HANDSHAKE = frozenset([b"host", b"connection", b"accept", b"accept-encoding"])


class SocketEndpoint(Endpoint):
    """One chat endpoint of one server, with its socket."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        url: httpx2.URL,
        headers: Mapping[str, str],
        limits: ClientLimits,
        nursery: trio.Nursery,
    ) -> None:
        super().__init__(http, url, headers, limits)
        self._nursery = nursery
        self._opening = trio.Lock()
        self._requests: Requests | None = None
        self._refused = False
        """Whether there is no socket to be had here."""

    async def aclose(self) -> None:
        """Close the socket, within a second."""
        if self._requests is not None:
            await self._requests.socket.aclose()

    async def open(self, asked: Asked) -> Answer | None:
        """See `Endpoint.open`."""
        requests = await self._open_socket()
        if requests is None:
            return await super().open(asked)
        answer = requests.begin(asked.kind, **fields_of(asked))
        # A watch is not confirmed, and may have nothing to say for long.
        if asked.kind == "watch":
            return answer
        begun = False
        try:
            begun = await answer.wait_begun()
        finally:
            if not begun:
                answer.close()
        return answer if begun else None

    async def stop(self, chat_id: str, reason: str) -> Any:
        """See `Endpoint.stop`."""
        requests = await self._socket_to_ask()
        if requests is None:
            return await super().stop(chat_id, reason)
        return await self._value(requests, "stop", id=chat_id, **({"reason": reason} if reason else {}))

    async def approve(self, chat_id: str, approval_id: str, decision: Mapping[str, Any]) -> None:
        """See `Endpoint.approve`."""
        requests = await self._socket_to_ask()
        if requests is None:
            await super().approve(chat_id, approval_id, decision)
        else:
            await self._value(requests, "approve", id=chat_id, approvalId=approval_id, **decision)

    async def state(self, chat_id: str) -> dict[str, Any] | None:
        """See `Endpoint.state`. A watch begins with it."""
        requests = await self._socket_to_ask()
        if requests is None:
            return await super().state(chat_id)
        answer = requests.begin("watch", id=chat_id, types="snapshot")
        try:
            events = await answer.read() or []
        except RequestRefusedError as exc:
            if exc.status == 404:
                return None
            raise
        except httpx2.TransportError as exc:
            raise ServerUnreachableError(self.why(exc)) from exc
        finally:
            answer.close()
        if not events or events[0].event != "snapshot":
            raise RemoteProtocolError("The server's answer is not the chat's state.")
        state = as_object(decode_json(events[0].data.encode(), limits=self.wire))
        # A chat exists from its first turn on.
        return None if state.get("turn") is None else state

    async def turn(self, chat_id: str, turn_id: str) -> dict[str, Any] | None:
        """See `Endpoint.turn`."""
        requests = await self._socket_to_ask()
        if requests is None:
            return await super().turn(chat_id, turn_id)
        try:
            return as_object(await self._value(requests, "turn", id=chat_id, turnId=turn_id))
        except RequestRefusedError as exc:
            if exc.status == 404:
                return None
            raise

    async def _value(self, requests: Requests, kind: str, **fields: Any) -> Any:
        answer = requests.begin(kind, **fields)
        try:
            return await answer.wait_value()
        except httpx2.TransportError as exc:
            raise ServerUnreachableError(self.why(exc)) from exc
        finally:
            answer.close()

    async def _socket_to_ask(self) -> Requests | None:
        try:
            return await self._open_socket()
        except httpx2.TransportError as exc:
            raise ServerUnreachableError(self.why(exc)) from exc

    async def _open_socket(self) -> Requests | None:
        """Return the socket's requests, or None where this one is to go over HTTP."""
        async with self._opening:
            if self._refused:
                return None
            if self._requests is not None and not self._requests.over:
                return self._requests
            requests = Requests(self.wire)
            # The same headers as a request's over HTTP has, in the same form.
            upgrade = self.request("GET", "ws")
            headers = [field for field in upgrade.headers.raw if field[0].lower() not in _NOT_OF_A_HANDSHAKE]
            try:
                await self._nursery.start(requests.socket.run, upgrade.url, headers, self.limits)
            except UpgradeRefusedError as exc:
                self._refused = exc.status not in TRANSIENT
                scope = "all requests go" if self._refused else "this request goes"
                logger.warning(
                    "%s refused a WebSocket with status %d: %s over HTTP", self.server, exc.status, scope
                )
                return None
            self._requests = requests
            return requests
