"""`penstock serve`: a producer, an app round it, and our server."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, TypeAlias

import trio

from penstock.cli.address import Address, bind, say_metrics, say_urls
from penstock.errors import AppStartupError
from penstock.journal.store import Retention
from penstock.limits import Limits
from penstock.metrics import MEASURES, Counters, Metrics, NopMetrics, known
from penstock.server import serve_until_signalled
from penstock.server.scrape import serve_metrics
from penstock.server.worker import Worker
from penstock.turns.abandoned import Recover
from penstock.turns.turn import Producer
from penstock.web.answers import OnConflict
from penstock.web.quart import chat_app
from penstock.wire.versions import parse_sdk_version

GC_OBJECTS = 50_000
"""New containers until a collection of the young ones: some hundred short turns make as many, in 10 MB."""
PROCESS_MEASURES = [name for name in MEASURES if not name.startswith("worker")]
"""What a process counts that serves, and not a supervisor."""


class Answering(NamedTuple):
    """Who writes the turns, and what is asked for the rest of one whose process died."""

    answer: Producer
    recover: Recover | None


OpenAnswering: TypeAlias = Callable[[], AbstractAsyncContextManager[Answering]]


@asynccontextmanager
async def open_relay(
    url: str, protocol: str, model: str | None, forward_headers: Sequence[str], limits: Limits
) -> AsyncIterator[Answering]:
    """Open the upstream that the command line names. Turns share its connections.

    Raises:
        ValueError: with a sentence that says what can't be used.
    """
    from penstock.relay.protocols import make_protocol
    from penstock.relay.upstream import open_upstream

    spoken = make_protocol(protocol, model, forward_headers=forward_headers, limits=limits.wire)
    async with open_upstream(url, protocol=spoken, limits=limits) as upstream:
        yield Answering(upstream.answer, upstream.recover)


@asynccontextmanager
async def open_producer(name: str | None) -> AsyncIterator[Answering]:
    """Open, as `open_relay` does, what needs no opening: see `load_producer`."""
    yield Answering(load_producer(name), None)


def load_producer(name: str | None) -> Producer:
    """Find the producer that the command line names, as `module:function`, or else the built-in model.

    Raises:
        ValueError: with a sentence that says what to type instead.
    """
    if name is None:
        from penstock.demo.model import answer

        return answer
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError("name the producer as MODULE:FUNCTION, for example chat:answer")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name + ".").startswith(exc.name + "."):
            raise  # the module is there; something that it imports is not
        raise ValueError(f"there is no module {module_name} here") from exc
    producer = getattr(module, attribute, None)
    if producer is None:
        raise ValueError(f"the module {module_name} has no {attribute}")
    if not inspect.iscoroutinefunction(producer) or len(inspect.signature(producer).parameters) != 1:
        raise ValueError(f"{name} must be `async def {attribute}(turn)`")
    return producer  # type: ignore[no-any-return]


def run_server(
    open_answering: OpenAnswering,
    *,
    journal: str,
    degraded: bool,
    nats_mirror: str | None,
    nats_watch: str | None,
    sdk_version: str,
    host: str,
    port: int,
    on_conflict: OnConflict,
    http2: bool,
    ws_deflate: bool,
    certfile: str | None,
    keyfile: str | None,
    retention: Retention,
    limits: Limits,
    metrics: Address | None,
    worker: Worker | None,
    say: Callable[[str], None],
) -> None:
    """Serve until a signal, then drain; as a supervisor's worker, on what it has bound.

    Args:
        open_answering: opens who answers.
        retention: what the journal keeps.
        metrics: where to answer `GET /metrics`. A worker has its supervisor do that.
        worker: what a supervisor has made of this process.
        say: told the URLs.

    The others are those of `Penstock` and `serve`.

    Raises:
        ValueError: if it can't start, with a sentence that says why.
    """
    counters = None if metrics is None else Counters(known(PROCESS_MEASURES))
    counting: Metrics = NopMetrics() if counters is None else counters

    async def run() -> None:
        scraped: list[socket.socket] = []
        if metrics is not None and worker is None:
            scraped = await bind(metrics, limits=limits.server)
            say_metrics(say, scraped)
        try:
            await answer_all(scraped)
        finally:
            for listener in scraped:
                listener.close()
        if worker is not None and counters is not None:
            await worker.farewell(counters)

    async def answer_all(scraped: list[socket.socket]) -> None:
        async with open_answering() as (answer, recover):
            app = chat_app(
                answer,
                journal=journal,
                degraded=degraded,
                nats_mirror=nats_mirror,
                nats_watch=nats_watch,
                sdk_version=parse_sdk_version(sdk_version),
                recover=recover,
                on_conflict=on_conflict,
                retention=retention,
                limits=limits,
                metrics=counting,
            )
            async with trio.open_nursery() as nursery:
                # What it calls gets the task_status.
                async def serve(task_status: trio.TaskStatus[list[str]]) -> None:  # noqa: ASYNC128
                    await serve_until_signalled(
                        app,
                        host=host,
                        port=port,
                        sockets=None if worker is None else worker.sockets,
                        spare_sockets=() if worker is None else worker.spare_sockets,
                        http2=http2,
                        ws_deflate=ws_deflate,
                        certfile=certfile,
                        keyfile=keyfile,
                        limits=limits.server,
                        metrics=counting,
                        task_status=task_status,
                    )
                    nursery.cancel_scope.cancel("the server has ended")

                if counters is not None and scraped:
                    nursery.start_soon(serve_metrics, scraped, lambda: counters.values)
                urls = await nursery.start(serve)
                _spare_the_collector()
                if worker is None:
                    say_urls(say, urls)
                else:
                    await worker.run(counters)

    try:
        trio.run(run)
    except BaseExceptionGroup as group:
        problem = _startup_problem(group, f"{host}, port {port}")
        if problem is None:
            raise
        raise ValueError(problem) from group


def _spare_the_collector() -> None:
    """Have the garbage collector look at what requests make only, and not after every 700 objects of theirs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 50)


def _startup_problem(error: BaseException, address: str) -> str | None:
    """Say in a sentence why the server did not start, if that is what a group of errors means."""
    match error:
        case BaseExceptionGroup(exceptions=[only]):
            return _startup_problem(only, address)
        case AppStartupError():
            return str(error)
        case OSError(strerror=str(why)):
            return f"can't listen on {address}: {why}"
    return None
