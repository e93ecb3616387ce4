"""`penstock serve`: a producer, an app round it, and our server."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import sys
from collections.abc import Callable

import trio

from penstock.errors import AppStartupError
from penstock.limits import Limits
from penstock.server import serve_until_signalled
from penstock.turns.turn import Producer
from penstock.web.quart import chat_app
from penstock.wire.versions import parse_sdk_version

GC_OBJECTS = 50_000
"""New containers until a collection of the young ones: some hundred short turns make as many, in 10 MB."""


def load_producer(name: str | None, upstream: str | None, model: str | None) -> Producer:
    """Find the producer that the command line names: `module:function`, a relay, or the built-in model.

    Raises:
        ValueError: with a sentence that says what to type instead.
    """
    if upstream is not None and model is not None:
        from penstock.relay.upstream import relay

        return relay(upstream, model)
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
    answer: Producer,
    *,
    journal: str,
    sdk_version: str,
    host: str,
    port: int,
    http2: bool,
    certfile: str | None,
    keyfile: str | None,
    limits: Limits,
    say: Callable[[str], None],
) -> None:
    """Serve until a signal, then drain.

    Raises:
        ValueError: if it can't start, with a sentence that says why.
    """
    app = chat_app(answer, journal=journal, sdk_version=parse_sdk_version(sdk_version), limits=limits)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            binds = await nursery.start(
                lambda task_status: serve_until_signalled(
                    app,
                    host=host,
                    port=port,
                    http2=http2,
                    certfile=certfile,
                    keyfile=keyfile,
                    limits=limits.server,
                    task_status=task_status,
                )
            )
            _spare_the_collector()
            for bind in binds:
                say(f"penstock is listening on {bind}  (chat at /, API at /api/chat, Ctrl-C ends it)")

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
