"""Addresses as they are typed, bound, and said."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from penstock.limits import ServerLimits


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def read_address(ctx: click.Context, param: click.Parameter, value: str | None) -> Address | None:
    """Read an option: `PORT`, of the loopback, or `HOST:PORT`."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise click.BadParameter(f"{value!r} is no [HOST:]PORT.")
    return Address(host.strip("[]") or "127.0.0.1", int(port))


async def bind(address: Address, *, limits: ServerLimits) -> list[socket.socket]:
    """Listen on an address.

    Raises:
        ValueError: it can't be bound, with a sentence that says why.
    """
    from penstock.server.tcp import open_listeners

    try:
        return await open_listeners(*address, limits=limits)
    except OSError as exc:
        raise ValueError(cannot_listen(*address, exc)) from exc


def cannot_listen(host: str, port: int, why: OSError) -> str:
    """Say that an address can't be bound."""
    return f"can't listen on {host}, port {port}: {why.strerror}"


def say_urls(say: Callable[[str], None], urls: Sequence[str]) -> None:
    """Say where the server is."""
    for url in urls:
        say(f"penstock is listening on {url}  (chat at /, API at /api/chat, Ctrl-C ends it)")


def say_metrics(say: Callable[[str], None], listeners: Sequence[socket.socket]) -> None:
    """Say where the numbers are."""
    from penstock.server.tcp import url_of

    for listener in listeners:
        say(f"metrics are at {url_of(listener, 'http')}/metrics")
