"""What a person types: `penstock serve`, `send`, `watch`. Each command is a thin face of a function elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import click
import trio

from penstock.limits import ConnectionLimits, Limits, ServerLimits, TurnLimits

_DEFAULTS = Limits()


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
    "--journal",
    default="sqlite:penstock.db",
    show_default=True,
    help="Where turns last: sqlite:FILE, or memory: for as long as the process.",
)
@click.option("--upstream", metavar="URL", help="Relay an OpenAI-compatible server, as http://host:11434/v1")
@click.option("--model", metavar="NAME", help="The upstream's model.")
@click.option(
    "--sdk-version",
    default="6",
    show_default=True,
    type=click.Choice(["5", "6", "7"]),
    help="The clients' version of the npm package ai, where they don't say it.",
)
@click.option("--http2", is_flag=True, help="Allow HTTP/2.")
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
    journal: str,
    upstream: str | None,
    model: str | None,
    sdk_version: str,
    http2: bool,
    certfile: str | None,
    keyfile: str | None,
    keepalive_s: float,
    write_stall_s: float,
    drain_s: float,
    orphan_grace_s: float,
    log_level: str,
) -> None:
    """Serve chats that MODULE:FUNCTION answers, or the built-in model.

    FUNCTION is `async def answer(turn: penstock.Turn) -> None`.
    """
    from penstock.cli.serve import load_producer, run_server

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if producer is not None and upstream is not None:
        raise click.UsageError("Give MODULE:FUNCTION or --upstream, not both.")
    if (upstream is None) != (model is None):
        raise click.UsageError("--upstream and --model go together.")
    if (certfile is None) != (keyfile is None):
        raise click.UsageError("--certfile and --keyfile go together.")
    limits = Limits(
        connection=ConnectionLimits(keepalive_s=keepalive_s, write_stall_s=write_stall_s),
        server=ServerLimits(write_stall_s=write_stall_s, drain_s=drain_s),
        turn=TurnLimits(orphan_grace_s=orphan_grace_s),
    )
    try:
        answer = load_producer(producer, upstream, model)
        run_server(
            answer,
            journal=journal,
            sdk_version=sdk_version,
            host=host,
            port=port,
            http2=http2,
            certfile=certfile,
            keyfile=keyfile,
            limits=limits,
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
def send(url: str, text: str | None, chat_id: str | None, resume: bool, raw: bool) -> None:
    """Send TEXT to the chat at URL and print the answer as it comes."""
    from penstock.cli.send import resume as resume_answer
    from penstock.cli.send import send as send_message

    if resume:
        if chat_id is None or text is not None:
            raise click.UsageError("--resume goes with --chat, and without TEXT.")
        _exit_with(lambda: resume_answer(url, chat_id, raw=raw))
    if text is None:
        raise click.UsageError("Give TEXT, or --resume and --chat.")
    _exit_with(lambda: send_message(url, text, chat_id=chat_id, raw=raw))


@main.command()
@click.argument("url")
@click.argument("chat_id", metavar="CHAT")
@click.option("--types", metavar="A,B", help="Only these kinds of chunks and events.")
@click.option("--lane", metavar="NAME", help="All of this lane.")
@click.option("--raw", is_flag=True, help="Print each event as JSON, one a line.")
def watch(url: str, chat_id: str, types: str | None, lane: str | None, raw: bool) -> None:
    """Print what happens in CHAT at URL, as it happens, until Ctrl-C."""
    from penstock.cli.watch import watch as watch_chat

    kinds = None if types is None else types.split(",")
    _exit_with(lambda: watch_chat(url, chat_id, types=kinds, lane=lane, raw=raw))


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
