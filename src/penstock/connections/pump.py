"""Carries a turn to a connection, a batch at a time, and decides what becomes of a viewer that can't keep up.

Nobody waits for a viewer: its entries are in the tail, and it reads on when its connection has room. One that is far
behind is sent less in more sense: adjacent deltas of one part are joined, the text being the same, and what nobody
keeps is left out and counted. One that stays far behind is cut, as `slow_consumer`; it can resume from its position.
Nothing else is ever left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from msgspec import UNSET
from msgspec.structs import replace

from penstock.closing import CloseReason
from penstock.connections.connection import Connection
from penstock.journal.entry import Entry
from penstock.journal.fan_out import Render
from penstock.journal.subscription import Subscription
from penstock.limits import ViewerLimits, WireLimits
from penstock.metrics import Metrics
from penstock.wire.chunks import LANE_CHUNK, AnyChunk, Rank, ReasoningDelta, TextDelta, ToolInputDelta
from penstock.wire.codec import encode


async def pump(
    subscription: Subscription,
    connection: Connection,
    render: Render,
    *,
    limits: ViewerLimits,
    metrics: Metrics,
    offer: Callable[[bytes], bool] | None = None,
    exact: bool = False,
    ends: bool = False,
    farewell: Callable[[], bytes] = bytes,
) -> None:
    """Send what the subscription has, to the turn's end.

    Args:
        subscription: an open one.
        connection: where to.
        render: how.
        limits: how far behind is far, and for how long.
        metrics: counts `viewer_merges` and `viewer_dropped`.
        offer: what `connection.offer` is to be asked through, by one that must know what was refused.
        exact: never join or leave out anything, for a client that counts.
        ends: whether the stream ends with the turn: then the last entries go out together with its ending.
        farewell: what a viewer is told that is cut as slow; nothing, where an early end must not look like the end.

    Raises:
        StoreUnavailableError: if it is not known how the turn goes on. The connection must be cut then.
    """
    behind_since: float | None = None
    while True:
        try:
            batch = await subscription.next_batch(limits.batch_entries)
        except trio.EndOfChannel:
            return
        if subscription.lag > limits.pressure_entries or subscription.lag_bytes > limits.pressure_bytes:
            now = trio.current_time()
            behind_since = now if behind_since is None else behind_since
            if now - behind_since > limits.lag_s:
                if last := farewell():
                    await connection.send_frame(last)
                    await connection.aclose(CloseReason.slow_consumer)
                connection.close(CloseReason.slow_consumer)
                await trio.lowlevel.checkpoint()
            if not exact:
                batch += subscription.next_batch_nowait(limits.merge_entries)
                batch, dropped = merge(batch)
                metrics.count("viewer_merges")
                if dropped:
                    metrics.count("viewer_dropped", dropped)
        data = render(batch)
        if data and not (ends and subscription.over and connection.end_with(data)):
            await connection.send_frame(data)
        taken = subscription.next_offset
        await subscription.ride(render, offer or connection.offer)
        if subscription.next_offset > taken:
            # Only who keeps up is not behind: a small rest may still wait for a large one to be written.
            behind_since = None


def first_batch(subscription: Subscription, render: Render, limits: ViewerLimits) -> bytes:
    """Return what a follower that is not far behind is sent first: it can go out with its stream's opening."""
    if subscription.lag > limits.batch_entries or subscription.lag_bytes > limits.pressure_bytes:
        return b""
    batch = subscription.next_batch_nowait(limits.batch_entries)
    return render(batch) if batch else b""


def merge(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """Join adjacent deltas of one part, and leave out what is droppable; return that and how many were left out.

    A joined entry has the last one's position.
    """
    merged: list[Entry] = []
    run: list[Entry] = []
    run_part: object = None
    dropped = 0
    for entry in entries:
        part = _part(entry.chunk)
        if part is None or part != run_part:
            merged += _joined(run)
            run, run_part = [], part
        if part is not None:
            run.append(entry)
        elif entry.chunk.rank is Rank.droppable and entry.chunk.kind != LANE_CHUNK:
            dropped += 1
        else:
            merged.append(entry)
    return merged + _joined(run), dropped


def _part(chunk: AnyChunk) -> object:
    """Return what makes deltas belong together, None for what is no delta or says more than its text."""
    if isinstance(chunk, TextDelta | ReasoningDelta):
        return (type(chunk), chunk.id) if chunk.provider_metadata is UNSET else None
    return (type(chunk), chunk.tool_call_id) if isinstance(chunk, ToolInputDelta) else None


def _joined(run: list[Entry]) -> list[Entry]:
    if len(run) < 2:
        return run
    last = run[-1]
    chunk: AnyChunk
    if isinstance(last.chunk, ToolInputDelta):
        text = "".join([entry.chunk.input_text_delta for entry in run])  # type: ignore[union-attr]
        chunk = replace(last.chunk, input_text_delta=text)
    else:
        text = "".join([entry.chunk.delta for entry in run])  # type: ignore[union-attr]
        chunk = replace(last.chunk, delta=text)
    # Joined chunks may be longer than a producer's: the limit there is about one write.
    json = encode(chunk, limits=WireLimits(chunk_bytes=sum(len(entry.json) for entry in run)))
    return [Entry(last.offset, chunk, json, last.id_prefix)]
