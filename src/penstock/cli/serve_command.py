"""What a person types to serve: the options of `penstock serve`, and what becomes of them."""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, Literal

import click

from penstock.cli.address import Address, read_address
from penstock.limits import ConnectionLimits, Limits, RelayLimits, ServerLimits, TurnLimits

if TYPE_CHECKING:
    from penstock.journal.store import Retention

_DEFAULTS = Limits()


@click.command()
@click.argument("producer", required=False, metavar="[MODULE:FUNCTION]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one."
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, _DEFAULTS.supervisor.workers),
    help="Processes on this address. With more than one, SIGHUP replaces them one by one.",
)
@click.option(
    "--journal",
    default="sqlite:penstock.db",
    show_default=True,
    help="Where turns last: sqlite:FILE, redis://HOST, nats://HOST, or memory: for as long as the process.",
)
@click.option(
    "--keep-turn-s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long an ended turn stays in the journal, to be resumed or looked at: a day, if you leave it out.",
)
@click.option(
    "--keep-turns",
    type=click.IntRange(1),
    metavar="N",
    help="Ended turns of one chat that stay: the newest 20, if you leave it out.",
)
@click.option(
    "--keep-chat-s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long a chat's messages stay after its newest turn: 30 days, if you leave it out.",
)
@click.option(
    "--keep-mib",
    type=click.IntRange(1),
    metavar="MIB",
    help="All that the journal holds; then the oldest goes. 1024, if you leave it out, and 256 of memory.",
)
@click.option(
    "--degraded",
    is_flag=True,
    help="Start although the journal can't be reached: not ready, and 503, until it can.",
)
@click.option(
    "--nats-mirror",
    metavar="URL",
    help="Publish what turns here write on chat.chunk.CHAT and chat.message.CHAT of this NATS, too.",
)
@click.option(
    "--nats-watch",
    metavar="URL",
    help="Send those who watch a chat what other services say of it on these subjects of this NATS.",
)
@click.option(
    "--upstream", metavar="URL", help="Relay a model's server, as http://host:11434/v1, or a chat backend."
)
@click.option(
    "--protocol",
    type=click.Choice(["openai", "responses", "anthropic", "ui-stream", "chat"]),
    help="What the upstream speaks; openai, if you leave it out.",
)
@click.option("--model", metavar="NAME", help="The upstream's model: for openai, responses, anthropic.")
@click.option(
    "--forward-header",
    "forward_headers",
    multiple=True,
    metavar="NAME",
    help="A header of the client's, as cookie, that the backend gets: for ui-stream. Repeatable.",
)
@click.option(
    "--upstream-silence-s",
    default=_DEFAULTS.relay.silence_s,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds until an upstream that sends nothing is given up.",
)
@click.option(
    "--thinking-s",
    default=_DEFAULTS.relay.thinking_s,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds between two signs to the client that the upstream is at it; 0: none.",
)
@click.option(
    "--sdk-version",
    default="6",
    show_default=True,
    type=click.Choice(["5", "6", "7"]),
    help="The clients' version of the npm package ai, where they don't say it.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["refuse", "stop", "queue"]),
    help="What becomes of a message while another of its chat is being answered: refuse it, stop that answer, or wait "
    "for its end. refuse, if you leave it out; for ui-stream stop, as a page's own stop is not told to the server.",
)
@click.option("--http2", is_flag=True, help="Allow HTTP/2.")
@click.option("--ws-deflate", is_flag=True, help="Compress WebSocket messages where the client offers to.")
@click.option("--certfile", type=click.Path(exists=True, dir_okay=False), help="TLS certificate, PEM.")
@click.option("--keyfile", type=click.Path(exists=True, dir_okay=False), help="Its key, PEM.")
@click.option(
    "--keepalive-s",
    default=_DEFAULTS.connection.keepalive_s,
    show_default=True,
    type=click.FloatRange(1),
    help="Quiet seconds before a comment.",
)
@click.option(
    "--write-stall-s",
    default=_DEFAULTS.connection.write_stall_s,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds until a client that takes nothing is cut.",
)
@click.option(
    "--drain-s",
    default=_DEFAULTS.server.drain_s,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds from SIGTERM to the end.",
)
@click.option(
    "--orphan-grace-s",
    default=_DEFAULTS.turn.orphan_grace_s,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds a turn outlives its last follower.",
)
@click.option(
    "--metrics",
    metavar="[HOST:]PORT",
    callback=read_address,
    help="Answer GET /metrics here, for Prometheus: numbers of all workers. Without HOST on 127.0.0.1.",
)
@click.option(
    "--log-level",
    default="warning",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
)
def serve(
    producer: str | None,
    host: str,
    port: int,
    workers: int,
    journal: str,
    keep_turn_s: float | None,
    keep_turns: int | None,
    keep_chat_s: float | None,
    keep_mib: int | None,
    degraded: bool,
    nats_mirror: str | None,
    nats_watch: str | None,
    upstream: str | None,
    protocol: str | None,
    model: str | None,
    forward_headers: tuple[str, ...],
    upstream_silence_s: float,
    thinking_s: float,
    sdk_version: str,
    on_conflict: Literal["refuse", "stop", "queue"] | None,
    http2: bool,
    ws_deflate: bool,
    certfile: str | None,
    keyfile: str | None,
    keepalive_s: float,
    write_stall_s: float,
    drain_s: float,
    orphan_grace_s: float,
    metrics: Address | None,
    log_level: str,
) -> None:
    """Serve chats that MODULE:FUNCTION answers, an upstream, or the built-in model.

    FUNCTION is `async def answer(turn: penstock.Turn) -> None`. The upstream's API key is PENSTOCK_UPSTREAM_API_KEY, in the
    environment.
    """
    from penstock.server.worker import Worker

    worker = Worker.of_this_process()
    who = "" if worker is None else f"worker {worker.number} "
    logging.basicConfig(
        level=log_level.upper(), format=f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s"
    )
    if producer is not None and upstream is not None:
        raise click.UsageError("Give MODULE:FUNCTION or --upstream, not both.")
    if upstream is None and (protocol or model or forward_headers):
        raise click.UsageError("--protocol, --model and --forward-header go with --upstream.")
    if (certfile is None) != (keyfile is None):
        raise click.UsageError("--certfile and --keyfile go together.")
    if workers > 1 and journal.startswith("memory:"):
        raise click.UsageError(
            "--workers needs a journal that they share: redis://HOST, nats://HOST or sqlite:FILE."
        )
    limits = Limits(
        connection=ConnectionLimits(keepalive_s=keepalive_s, write_stall_s=write_stall_s),
        server=ServerLimits(write_stall_s=write_stall_s, drain_s=drain_s),
        turn=TurnLimits(orphan_grace_s=orphan_grace_s),
        relay=RelayLimits(
            first_byte_s=upstream_silence_s, silence_s=upstream_silence_s, thinking_s=thinking_s or math.inf
        ),
    )
    try:
        if workers > 1 and worker is None:
            from penstock.cli.supervise import run_supervisor

            sys.exit(
                run_supervisor(
                    host=host,
                    port=port,
                    workers=workers,
                    scheme="http" if certfile is None else "https",
                    limits=limits,
                    metrics=metrics,
                    say=lambda line: click.echo(line, err=True),
                )
            )
        from penstock.cli.serve import open_producer, open_relay, run_server

        run_server(
            lambda: (
                open_producer(producer)
                if upstream is None
                else open_relay(upstream, protocol or "openai", model, forward_headers, limits)
            ),
            journal=journal,
            degraded=degraded,
            nats_mirror=nats_mirror,
            nats_watch=nats_watch,
            sdk_version=sdk_version,
            host=host,
            port=port,
            on_conflict=on_conflict or ("stop" if protocol == "ui-stream" else "refuse"),
            http2=http2,
            ws_deflate=ws_deflate,
            certfile=certfile,
            keyfile=keyfile,
            retention=_retention(
                journal,
                turn_age_s=keep_turn_s,
                turns_per_chat=keep_turns,
                chat_age_s=keep_chat_s,
                bytes=None if keep_mib is None else keep_mib << 20,
            ),
            limits=limits,
            metrics=metrics,
            worker=worker,
            say=lambda line: click.echo(line, err=True),
        )
    except (ValueError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


def _retention(journal: str, **given: float | None) -> Retention:
    """Return what the journal is to keep: its own measure, but for what was given."""
    import msgspec

    from penstock.journal.memory import MEMORY_RETENTION
    from penstock.journal.store import Retention

    own = MEMORY_RETENTION if journal.startswith("memory:") else Retention()
    return msgspec.structs.replace(own, **{name: value for name, value in given.items() if value is not None})
