"""The rest of an answer whose stream broke off, or whose relay died: asked for by the identity that the upstream gave it.

What an upstream reveals of an answer's identity stands in the message's metadata, and so in the journal, from the
moment it is seen: `{"upstream": {"protocol": "responses", "id": "resp_…"}}`. A `Recoverer` makes of it the request to
ask, and of what comes back the chunks that are not written yet. It is sans-I/O; `recover_rest` asks, waits and writes.
It is of use in two places:

- in a turn whose own connection to the upstream broke: the answer goes on where it stopped, in the same part;
- as the hub's `recover`, in the process that adopts a turn: what was open has been closed there by `Runner.reopen`, so
  the rest is in parts of its own.

The rest is written only if the whole answer begins with what was written; see `rest.py`.
"""

from __future__ import annotations

import enum
import logging
import random
import typing
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import httpx2
import trio

from penstock.errors import UpstreamTooLongError
from penstock.http import open_body
from penstock.limits import Limits
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk

logger = logging.getLogger("penstock.relay")

_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be another one in a moment."""


class RecoveryRequest(NamedTuple):
    """What to ask an upstream for the rest of an answer. It has no body."""

    method: str
    url: httpx2.URL
    headers: Mapping[str, str]


class Missing(enum.Enum):
    """Why there is no rest."""

    NOT_YET = "not yet"
    """The upstream is still at it: ask again."""
    GONE = "gone"
    """The upstream does not have it, or has given it up."""


Recovered: TypeAlias = Sequence[AnyChunk] | Missing
"""The chunks of the rest, to the very end of the answer, or why there are none."""


class Recoverer(typing.Protocol):
    """Knows how an upstream is asked for an answer that it has begun, and how it says it. Stateless, sans-I/O."""

    def request(self, turn: Turn) -> RecoveryRequest | None:
        """Return what to ask; None if what the turn has of the newest answer reveals no identity to ask by."""

    def read(self, body: bytes, turn: Turn) -> Recovered:
        """Read the upstream's answer to that, which came with a status of 2xx.

        Raises:
            UpstreamTruncatedError: if the answer does not begin with what was written.
            UpstreamError: if the upstream says that it failed, or what it says can't be read.
        """


async def recover_rest(client: httpx2.AsyncClient, recoverer: Recoverer, turn: Turn, limits: Limits) -> bool:
    """Ask for the rest of the turn's newest answer, as often as it takes, and write it.

    Args:
        client: asks, and follows no redirects: they would carry the key along.
        recoverer: the upstream's.
        turn: must not be written to meanwhile, but for chunks that are transient.
        limits: `relay.recover_*` are read.

    Returns:
        Whether the rest was written, to its end. Otherwise nothing was: there is no identity to ask by, the upstream
        does not have the answer any more, or it was not there in time.

    Raises:
        UpstreamTruncatedError: if the upstream has another answer than the one that was written.
        UpstreamError: if the upstream says that the answer failed.

    Cancellation: leaves what was written so far of the rest.
    """
    asked = recoverer.request(turn)
    if asked is None:
        return False
    wait_s = limits.relay.recover_first_s
    recovered: Recovered = Missing.NOT_YET
    with trio.move_on_after(limits.relay.recover_s):
        while (recovered := await _ask(client, recoverer, asked, turn, limits)) is Missing.NOT_YET:
            # From half of it on, so that the turns of a process that came back do not ask in step.
            await trio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, limits.relay.recover_max_s)
    if isinstance(recovered, Missing):
        if recovered is Missing.NOT_YET:
            logger.warning("the rest of turn %s was not there in %g s", turn.id, limits.relay.recover_s)
        return False
    await turn.write_from(recovered)
    return True


async def _ask(
    client: httpx2.AsyncClient, recoverer: Recoverer, asked: RecoveryRequest, turn: Turn, limits: Limits
) -> Recovered:
    """Ask once. What may be better in a moment is "not yet"."""
    headers = {"accept": "application/json", "accept-encoding": "identity", **asked.headers}
    request = client.build_request(asked.method, asked.url, headers=headers)
    body = bytearray()
    try:
        with trio.fail_after(limits.relay.recover_ask_s):
            response = await client.send(request, stream=True)
            async with open_body(response) as pieces:
                if response.status_code in _TRY_AGAIN:
                    return Missing.NOT_YET
                if not response.is_success:
                    logger.warning("turn %s can't be recovered: status %d", turn.id, response.status_code)
                    return Missing.GONE
                while piece := await anext(pieces, b""):
                    body += piece
                    if len(body) > limits.relay.recovered_bytes:
                        raise UpstreamTooLongError("the recovered answer passes `recovered_bytes`")
    except (httpx2.TransportError, trio.TooSlowError) as exc:
        logger.info("asking for the rest of turn %s: %s", turn.id, type(exc).__name__)
        return Missing.NOT_YET
    return recoverer.read(bytes(body), turn)
