"""`penstock serve --workers`: the process that keeps the others, and so needs little of what they need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import trio

from penstock.cli.address import Address, bind, cannot_listen, say_metrics, say_urls
from penstock.limits import Limits
from penstock.server.supervisor import SupervisionError, supervise


def run_supervisor(
    *,
    host: str,
    port: int,
    workers: int,
    scheme: str,
    limits: Limits,
    metrics: Address | None,
    say: Callable[[str], None],
) -> int:
    """Keep so many processes with this command line, until a signal. Returns the status to exit with.

    Raises:
        ValueError: if an address can't be bound, or the workers don't start, with a sentence that says why.
    """

    async def run() -> None:
        scraped = None if metrics is None else await bind(metrics, limits=limits.server)
        say_metrics(say, scraped or ())
        try:
            await supervise(
                [sys.executable, *sys.orig_argv[1:]],
                host=host,
                port=port,
                workers=workers,
                scheme=scheme,
                limits=limits,
                say=partial(say_urls, say),
                scraped=scraped,
            )
        finally:
            for listener in scraped or ():
                listener.close()

    try:
        trio.run(run)
    except OSError as exc:
        raise ValueError(cannot_listen(host, port, exc)) from exc
    except SupervisionError as exc:
        if str(exc):
            say(f"Error: {exc}")
        return exc.status
    return 0
