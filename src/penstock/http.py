"""HTTP requests whose answers are streams: a client for one server, and bodies that can be left before their end."""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

import httpx2
import trio

CLOSE_S = 1.0
"""How long the end of a connection may take: TLS says goodbye."""


def http_client(url: httpx2.URL, *, connect_s: float, silence_s: float | None) -> httpx2.AsyncClient:
    """Make a client for one server: `async with` it. It follows no redirects and limits no connections.

    Args:
        url: where the requests will go; its scheme says whether certificate authorities are needed.
        connect_s: deadline of a connection.
        silence_s: how long a write or a read may move no byte; None for ever.
    """
    return httpx2.AsyncClient(
        verify=tls_context(url.scheme),
        timeout=httpx2.Timeout(connect=connect_s, read=silence_s, write=silence_s, pool=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        follow_redirects=False,
        event_hooks={"response": [_set_location_aside]},
    )


async def _set_location_aside(response: httpx2.Response) -> None:
    """Keep the library from reading where a redirect leads: it does so even if it follows none, and may raise."""
    if "location" in response.headers:
        response.extensions["location"] = response.headers.pop("location")


def redirect_url(response: httpx2.Response) -> httpx2.URL | None:
    """Return where a redirect leads; None if it says no URL."""
    try:
        return response.url.join(response.extensions["location"])
    except (KeyError, ValueError, httpx2.InvalidURL):  # ValueError: half an address of IPv6
        return None


@functools.cache
def tls_context(scheme: str) -> ssl.SSLContext:
    """Return the TLS context for a URL's scheme.

    To load the certificate authorities takes a tenth of a second, and a whole one on a cold machine: it is done once,
    and not for plain HTTP, whose context trusts nobody.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if scheme == "http" else httpx2.create_ssl_context()


@asynccontextmanager
async def open_body(response: httpx2.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open a streamed response's body, as it came over the wire, and close the response with it.

    The client reads through generators that read from generators, and closing the outermost one leaves the others to
    the garbage collector, which on Trio can't run them to their end. Only an exception from the innermost read ends
    all of them, so a body that is left early is read once more, under a cancellation.
    """
    pieces = response.aiter_raw()
    try:
        yield pieces
    finally:
        with trio.move_on_after(0, shield=True):
            try:
                # What is in the buffer already comes without a checkpoint.
                while await anext(pieces, None) is not None:
                    pass
            except httpx2.TransportError:
                pass  # nobody wants to read any more
        with trio.move_on_after(CLOSE_S, shield=True):
            await response.aclose()


def retry_after_s(text: str | None) -> float | None:
    """Read `Retry-After`: seconds, or a date. None if it says neither. Source: RFC 9110 section 10.2.3."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
