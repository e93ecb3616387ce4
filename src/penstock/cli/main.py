"""What a person types: `penstock serve`, `send`, `watch`, `bench`. Each command is a thin face of a function elsewhere."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
import trio

from penstock.limits import ConnectionLimits, Limits, RelayLimits, ServerLimits, TurnLimits

_DEFAULTS = Limits()
_TRANSPORT = click.option(
    "--transport",
    type=click.Choice(["sse", "websocket"]),
    help="A WebSocket, if the URL begins with ws:, and else SSE.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="penstock", message="%(prog)s %(version)s")
def main() -> None:
    """A streaming server for AI chat that gets the streaming part right."""


@main.command()
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
    log_level: str,
) -> None:
    """Serve chats that MODULE:FUNCTION answers, an upstream, or the built-in model.

    FUNCTION is `async def answer(turn: penstock.Turn) -> None`. The upstream's API key is PENSTOCK_UPSTREAM_API_KEY, in the
    environment.
    """
    from penstock.cli.serve import open_producer, open_relay, run_server, run_supervisor
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
            sys.exit(
                run_supervisor(
                    host=host,
                    port=port,
                    workers=workers,
                    scheme="http" if certfile is None else "https",
                    limits=limits,
                    say=lambda line: click.echo(line, err=True),
                )
            )
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
            limits=limits,
            worker=worker,
            say=lambda line: click.echo(line, err=True),
        )
    except (ValueError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


@main.command()
@click.argument("url")
@click.argument("text", required=False)
@click.option("--chat", "chat_id", metavar="ID", help="The chat; a new one where it is left out.")
@click.option("--resume", is_flag=True, help="Send nothing; print the chat's newest answer.")
@click.option("--raw", is_flag=True, help="Print each chunk's JSON, one a line.")
@_TRANSPORT
def send(
    url: str,
    text: str | None,
    chat_id: str | None,
    resume: bool,
    raw: bool,
    transport: Literal["sse", "websocket"] | None,
) -> None:
    """Send TEXT to the chat at URL and print the answer as it comes."""
    from penstock.cli.send import resume as resume_answer
    from penstock.cli.send import send as send_message

    if resume:
        if chat_id is None or text is not None:
            raise click.UsageError("--resume goes with --chat, and without TEXT.")
        _exit_with(lambda: resume_answer(url, chat_id, raw=raw, transport=transport))
    if text is None:
        raise click.UsageError("Give TEXT, or --resume and --chat.")
    _exit_with(lambda: send_message(url, text, chat_id=chat_id, raw=raw, transport=transport))


@main.command()
@click.argument("url")
@click.argument("chat_id", metavar="CHAT")
@click.option("--types", metavar="A,B", help="Only these kinds of chunks and events.")
@click.option("--lane", metavar="NAME", help="All of this lane.")
@click.option("--raw", is_flag=True, help="Print each event as JSON, one a line.")
@_TRANSPORT
def watch(
    url: str,
    chat_id: str,
    types: str | None,
    lane: str | None,
    raw: bool,
    transport: Literal["sse", "websocket"] | None,
) -> None:
    """Print what happens in CHAT at URL, as it happens, until Ctrl-C."""
    from penstock.cli.watch import watch as watch_chat

    kinds = None if types is None else types.split(",")
    _exit_with(lambda: watch_chat(url, chat_id, types=kinds, lane=lane, raw=raw, transport=transport))


@main.command()
@click.argument("url")
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="A TOML file with the scenario and its numbers."
)
@click.option(
    "--scenario",
    type=click.Choice(
        ["tokens", "fanout", "burst", "churn", "idle", "stalled", "flapping", "half-open", "resume"]
    ),
    help="tokens, if neither this nor a recipe says it.",
)
@click.option(
    "--transport",
    type=click.Choice(["post", "eventsource", "websocket"]),
    help="POST as the AI SDK does, GET as EventSource does, or a WebSocket. The scenario has its own.",
)
@click.option("--connections", type=int, help="How many.")
@click.option("--rate", type=float, help="Events a second of each turn; in churn, new connections a second.")
@click.option("--duration", "duration_s", type=float, help="Seconds that are measured.")
@click.option("--ramp", "ramp_s", type=float, help="Seconds from the first arrival to the last.")
@click.option("--settle", "settle_s", type=float, help="Seconds from then to the measured time.")
@click.option("--chunks", type=int, help="Events of a turn, in burst, churn, half-open, resume.")
@click.option("--repeats", type=int, help="Turns of each connection, in burst.")
@click.option("--share", type=float, help="Of the connections, those that stop reading, in stalled.")
@click.option("--stay", "stay_s", type=float, help="Seconds until a client leaves, in flapping and resume.")
@click.option("--away", "away_s", type=float, help="Seconds until it comes back.")
@click.option("--max-in-flight", type=int, help="Connections at once, in churn.")
@click.option("--workers", type=int, help="Load processes; else one for each core, less one.")
@click.option("--prompt", help="The user's text; /pace {count} {rate} or the like, if you leave it out.")
@click.option("--method", help="Of the request for a stream.")
@click.option(
    "--path", help="Of the request for a stream, such as {url}/{chat}/watch; {url} is the URL's path."
)
@click.option("--body", help="Of the request for a stream, instead of an AI SDK request.")
@click.option("--message", help="The first message on a WebSocket.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME:VALUE", help="With each request. Repeatable."
)
@click.option("--end", help="How the event begins that ends a stream; else [DONE] or the response's end.")
@click.option("--producer/--no-producer", default=None, help="Whether to start the turn that viewers watch.")
@click.option("--producer-path", help="Where to start it; the URL, if you leave it out.")
@click.option("--resume-path", help="Where the rest of a stream is: {url}/{chat}/stream.")
@click.option("--stop/--no-stop", default=None, help="Whether to stop, at the end, what still runs.")
@click.option("--pid", type=int, help="The server's process: its CPU and memory are measured, too.")
@click.option("--expect", multiple=True, metavar="EXPR", help="Such as p99<100ms or errors=0. Repeatable.")
@click.option("--json", "json_file", metavar="FILE", help="Where to put the result as JSON; - for stdout.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Where to put a page with plots."
)
def bench(
    url: str,
    recipe: Path | None,
    pid: int | None,
    json_file: str | None,
    report: Path | None,
    **options: Any,
) -> None:
    """Load the server at URL, ours or any other that streams, and say how it bore it.

    Exits with 1 if an --expect does not hold, with 3 if nothing could be measured. Ctrl-C ends the run early.
    """
    try:
        from penstock.cli.bench import bench as run_bench
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in ("hdrh", "rich"):
            raise
        raise click.ClickException("This needs two more packages: pip install 'penstock[bench]'") from exc

    try:
        status = run_bench(url, options, recipe=recipe, pid=pid, json_file=json_file, report=report)
    except ValueError as exc:
        raise click.UsageError(f"{exc}.") from exc
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _exit_with(command: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run a command that talks to a server and exit with its status."""
    try:
        status = trio.run(command)
    except KeyboardInterrupt:
        status = 130
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left; keep the interpreter from flushing once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
