"""A model upstream over HTTP: asks it for each turn's answer, and writes that into the turn as it comes.

    async with open_upstream("http://localhost:11434/v1", "llama3.2") as upstream:
        ...  # upstream.answer is a producer

One answer may take several requests (`retries.py`), of which each is an `Exchange`; meanwhile `proof_of_life.py` tells
the user that something is done. What to ask, and what the answer means, is the `Protocol`'s.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple

import httpx2
import trio

from penstock.errors import UpstreamError, UpstreamSilentError, UpstreamTruncatedError
from penstock.http import http_client, tls_context
from penstock.limits import Limits
from penstock.relay.api_key import checked_api_key, redacted
from penstock.relay.exchange import Exchange
from penstock.relay.proof_of_life import ProofOfLife, open_proof_of_life
from penstock.relay.protocol import AppProtocol, ModelProtocol, Protocol, Recoverable
from penstock.relay.protocols import make_protocol
from penstock.relay.recovery import Recoverer, recover_rest
from penstock.relay.retries import Retries
from penstock.relay.tool_schema import ToolSchema
from penstock.turns.turn import Producer, Turn
from penstock.wire.chunks import MessageMetadata
from penstock.wire.messages import UIMessage

logger = logging.getLogger("penstock.relay")

INCOMPLETE = {"incomplete": True}
"""Metadata of a message whose answer broke off. Its text is kept, and must not pass for the whole in a later turn."""


class Target(NamedTuple):
    """Whom to ask, and how."""

    protocol: Protocol
    url: httpx2.URL
    api_key: str
    recoverer: Recoverer | None


class Upstream:
    """One model on one server. Its `answer` is a producer. Made by `open_upstream`."""

    def __init__(self, client: httpx2.AsyncClient, target: Target, limits: Limits) -> None:
        self._client = client
        self._target = target
        self._limits = limits

    def __repr__(self) -> str:
        return f"<Upstream {self._target.protocol.name} at {self._target.url.host}>"

    async def answer(self, turn: Turn) -> None:
        """Answer the turn, written on as it comes.

        Raises UpstreamError, or a child of it. Cancelled, it closes the request's connection at once, and with it the
        model's work.
        """
        await self._run(turn, self._target.protocol.body(turn))

    async def ask(self, turn: Turn, messages: Sequence[UIMessage], tools: Sequence[ToolSchema] = ()) -> None:
        """Like `answer`, about a conversation that is not the turn's own, with tools to call. See `run_tools`.

        Raises ValueError besides, if the upstream is no model.
        """
        protocol = self._target.protocol
        if not isinstance(protocol, ModelProtocol):
            raise ValueError(f"an upstream of the protocol {protocol.name} is offered no tools")
        await self._run(turn, protocol.model_body(messages, tools))

    async def _run(self, turn: Turn, body: bytes) -> None:
        failure: Exception | None = None
        async with open_proof_of_life(turn, self._limits.relay) as life:
            # Noted rather than raised: the block's nursery would make it a group.
            try:
                await self._answer(turn, body, life)
            except Exception as exc:
                failure = exc
        if failure is not None:
            if life.spoken:
                await turn.write(MessageMetadata(message_metadata=INCOMPLETE))
            try:
                raise failure
            finally:
                del failure  # or it would hold this frame, and this frame it

    async def recover(self, turn: Turn) -> bool:
        """Write the rest of an answer that broke off, if the upstream has it; a hub's `recover`. See `recover_rest`."""
        recoverer = self._target.recoverer
        if recoverer is None:
            await trio.lowlevel.checkpoint()
            return False
        try:
            return await recover_rest(self._client, recoverer, turn, self._limits)
        except UpstreamError as exc:
            exc.args = (redacted(str(exc), self._target.api_key),)
            raise

    async def _answer(self, turn: Turn, body: bytes, life: ProofOfLife) -> None:
        effects = isinstance(self._target.protocol, AppProtocol)
        retries = Retries(self._limits.relay, effects=effects)
        while (failure := await self._ask(turn, body, life)) is not None:
            if life.spoken:
                broken = isinstance(failure, UpstreamTruncatedError | UpstreamSilentError)
                if broken and await self.recover(turn):
                    return
                raise failure
            wait_s = retries.next_wait_s(failure)
            if wait_s is None:
                raise failure
            logger.info("asking again in %.1f s: %s", wait_s, failure)
            await trio.sleep(wait_s)

    async def _ask(self, turn: Turn, body: bytes, life: ProofOfLife) -> UpstreamError | None:
        protocol, url, api_key, _ = self._target
        try:
            await Exchange(self._client, protocol, url, api_key, self._limits, turn, body, life).run()
        except UpstreamError as exc:
            return exc
        return None


@asynccontextmanager
async def open_upstream(
    base_url: str,
    model: str | None = None,
    *,
    protocol: str | Protocol = "openai",
    api_key: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    limits: Limits = Limits(),
) -> AsyncIterator[Upstream]:
    """Open a model upstream, whose connections are kept for the next turn.

    Args:
        base_url: the API's base, `http://host/v1`, or its whole endpoint; of a host alone, the protocol's usual path.
        model: the model's name there, for protocols that have one.
        protocol: what the upstream speaks: a name of `protocols.py`, or a protocol of your own, which knows its model.
        api_key: sent as the protocol has it; None for the environment's (see `environment_api_key`), empty for none.
        extra_body: more of the request: `temperature`, `max_tokens`, `tools`, …
        limits: the numbers that differ from the defaults; `relay` and `wire` are read.

    Raises:
        ValueError: if the URL, the key, the protocol or the model can't be used.
    """
    target = _target(base_url, model, protocol, api_key, extra_body, limits)
    async with _open(target, limits) as upstream:
        yield upstream


def relay(
    base_url: str,
    model: str | None = None,
    *,
    protocol: str | Protocol = "openai",
    api_key: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    limits: Limits = Limits(),
) -> Producer:
    """Return a producer that relays a model, for where no `async with` can be: each turn opens a connection.

    The arguments and errors are those of `open_upstream`.
    """
    target = _target(base_url, model, protocol, api_key, extra_body, limits)
    tls_context(target.url.scheme)  # slow once: now rather than in the first turn

    async def answer(turn: Turn) -> None:
        async with _open(target, limits) as upstream:
            await upstream.answer(turn)

    return answer


@asynccontextmanager
async def _open(target: Target, limits: Limits) -> AsyncIterator[Upstream]:
    relay = limits.relay
    async with http_client(target.url, connect_s=relay.connect_s, silence_s=relay.silence_s) as client:
        # A cookie that one user's answer sets is not for the next user's request.
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
        yield Upstream(client, target, limits)


def _target(
    base_url: str,
    model: str | None,
    protocol: str | Protocol,
    api_key: str | None,
    extra_body: Mapping[str, Any] | None,
    limits: Limits,
) -> Target:
    try:
        base = httpx2.URL(base_url)
    except httpx2.InvalidURL as exc:
        raise ValueError("the upstream's URL can't be read") from exc
    if base.scheme not in ("http", "https") or not base.host:
        raise ValueError("the upstream's URL begins with http:// or https:// and names a host")
    base = base.copy_with(fragment=None)
    if isinstance(protocol, str):
        protocol = make_protocol(protocol, model, extra_body, limits=limits.wire)
    elif model is not None or extra_body is not None:
        raise ValueError("a protocol of your own knows its model and its body")
    url = protocol.url(base)
    api_key = checked_api_key(url, api_key)
    recoverer = protocol.recoverer(base, api_key) if isinstance(protocol, Recoverable) else None
    return Target(protocol, url, api_key, recoverer)
