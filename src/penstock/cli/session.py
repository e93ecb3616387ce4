"""One run of a command that talks to a server: its URL, its errors as sentences, its exit status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from penstock.cli.printer import Printer
from penstock.client.client import Client, Transport, endpoint_url, open_client
from penstock.errors import LocalProtocolError, RemoteProtocolError, RequestError
from penstock.limits import ClientLimits

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells count."""

BROKEN_PIPE = 141
"""Exit status when the reader of stdout left: 128 + SIGPIPE."""


async def run_session(
    url: str,
    printer: Printer,
    talk: Callable[[Client], Awaitable[None]],
    *,
    transport: Transport | None = None,
    limits: ClientLimits = ClientLimits(),
) -> int:
    """Run `talk` with a client of the server, and return the exit status: 0 if it had no errors to print.

    Args:
        url: a server's root, or its chat endpoint; with or without http://.
        printer: where errors go.
        talk: what the command does.
        transport: as `open_client` takes it.
        limits: the client's.

    Cancelled, it closes the connection and prints nothing more.
    """
    status = INTERRUPTED
    try:
        try:
            async with open_client(_chat_url(url), transport=transport, limits=limits) as client:
                await talk(client)
        except (RequestError, LocalProtocolError, ValueError) as exc:
            printer.error(str(exc))
        except RemoteProtocolError as exc:
            printer.error(f"The server sent something that can't be understood: {exc}")
        finally:
            printer.close()
        status = 1 if printer.failed else 0
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:
        status = BROKEN_PIPE
    return status


def _chat_url(url: str) -> str:
    endpoint = endpoint_url(url if "://" in url else f"http://{url}")
    return str(endpoint.copy_with(path="/api/chat") if endpoint.path in ("", "/") else endpoint)
