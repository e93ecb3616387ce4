"""What is exchanged with services that are not penstock, each over what it speaks: NATS, so far."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.hub import Hub


def check_interop(nats_mirror: str | None, nats_watch: str | None) -> None:
    """Check the URLs without connecting.

    Raises:
        ValueError: if one is not understood, or needs what is not installed.
    """
    from penstock.journal.nats_address import NatsAddress

    for url, what in ((nats_mirror, "mirror"), (nats_watch, "watched NATS")):
        if url is not None:
            NatsAddress.parse(url, what=what)
            try:
                import penstock.interop.nats  # noqa: F401
            except ModuleNotFoundError as exc:
                if exc.name not in ("nats", "trio_asyncio"):
                    raise
                raise ValueError(
                    f"the {what} needs nats-py and trio-asyncio: pip install 'penstock[nats]'"
                ) from None


@asynccontextmanager
async def open_interop(
    hub: Hub, *, nats_mirror: str | None, nats_watch: str | None, limits: Limits, metrics: Metrics
) -> AsyncIterator[None]:
    """Mirror a hub's turns, and have what others say watched; where there is no URL, nothing.

    Args:
        hub: whose turns, and who is watched.
        nats_mirror: where its turns are mirrored.
        nats_watch: where others are heard.
        limits: `nats` of them.
        metrics: where to count what was dropped.

    It begins whether or not NATS can be reached, and leaving the block drops what was not sent yet.
    """
    if nats_mirror is None and nats_watch is None:
        yield
        return
    from penstock.interop.nats import open_nats_interop

    async with open_nats_interop(hub, mirror=nats_mirror, watch=nats_watch, limits=limits, metrics=metrics):
        yield
