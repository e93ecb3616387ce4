"""`serve`: listen, accept, and go away.

Who owns what: `serve` owns the listening sockets and three nurseries, one inside the other: the app's lifespan, the
clients (`peer.py`, one task each, which own their apps), and the accept loops. Going away ends them from the inside out.
"""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Sequence

import trio
from hypercorn.config import Config

from penstock.asgi import ASGIApp
from penstock.errors import AppStartupError
from penstock.limits import ServerLimits, SupervisorLimits
from penstock.metrics import Metrics, NopMetrics
from penstock.server.deflate import Deflater
from penstock.server.drain import Drain
from penstock.server.lifespan import Lifespan
from penstock.server.log import logger
from penstock.server.peer import Peer
from penstock.server.refusals import refusal
from penstock.server.service import Service
from penstock.server.tcp import (
    TcpStream,
    accept_nowait,
    address_of,
    no_room,
    open_listeners,
    prepare_listener,
    url_of,
)

_LIMITS = ServerLimits()
_SUPERVISOR = SupervisorLimits()
_NO_METRICS = NopMetrics()
_ACCEPT_PAUSE_S = 0.1
"""Out of file descriptors: how long until the next try. Trio's `serve_listeners` waits as long."""
_LINGERING_REFUSALS = 64
"""Clients over the limit that are answered in words at one time; the others are just closed."""


async def serve(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    sockets: list[socket.socket] | None = None,
    spare_sockets: Sequence[socket.socket] = (),
    limits: ServerLimits = _LIMITS,
    http2: bool = False,
    ws_deflate: bool = False,
    certfile: str | None = None,
    keyfile: str | None = None,
    metrics: Metrics = _NO_METRICS,
    shutdown: trio.Event | None = None,
    restart: trio.Event | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI app on Trio until `shutdown` is set and the clients are gone.

    Args:
        app: any ASGI 3 app that runs on Trio.
        host: a name or address; every address it stands for is bound.
        port: 0 lets the system pick one.
        sockets: bound sockets to serve on instead of `host` and `port`. They are closed at the end.
        spare_sockets: others', with the same options: a connection that has waited on one for `spare_patience_s` is
            accepted here. They are closed at the end.
        limits: how much and how long; see `ServerLimits`.
        http2: speak HTTP/2 too: by ALPN under TLS, else to clients that begin with it (prior knowledge).
        ws_deflate: compress WebSocket messages with clients that offer permessage-deflate. It saves half of what a long
            replay is on the wire, costs 0.2 ms for each 10 kB of it, and keeps no memory for a socket that is idle.
        certfile: PEM certificate chain; with `keyfile`, serve TLS.
        keyfile: PEM private key.
        metrics: where the counts go.
        shutdown: when set, stop accepting at once, drain for `drain_s`, reset who is left, stop the app, return.
        restart: when set, do the same, and have clients told that the server comes back (1012 on a WebSocket).
        task_status: `started` with the URLs, once connections are accepted and the app has started.

    Raises:
        OSError: the address can't be bound, or a certificate file can't be read.
        ValueError: one of `certfile` and `keyfile` without the other.
        AppStartupError: the app refused to start.
        ExceptionGroup: the app's lifespan failed after it started.

    Cancellation: every client is reset at once, its app cancelled, and the app's lifespan as well, without shutdown.
    """
    tls = _tls_context(certfile, keyfile, http2=http2)
    listeners = await open_listeners(host, port, limits=limits) if sockets is None else sockets
    spares = list(spare_sockets)
    try:
        if sockets is not None:
            for listener in listeners:
                prepare_listener(listener, limits=limits)
        drain = Drain(limits.drain_s)
        lifespan = Lifespan(app, going_away=drain.extension, limits=limits)
        service = Service(
            app=app,
            limits=limits,
            metrics=metrics,
            drain=drain,
            config=_config(limits),
            state=lifespan.state,
            http2=http2,
            deflater=Deflater(limits.deflate_from_bytes) if ws_deflate else None,
            tls=tls,
        )
        async with trio.open_nursery() as lifespan_nursery:
            lifespan_nursery.start_soon(lifespan.run)
            if await lifespan.start():
                urls = [url_of(listener, "https" if tls else "http") for listener in listeners]
                logger.info("listening on %s", ", ".join(urls))
                task_status.started(urls)
                never = trio.Event()
                await _serve_clients(
                    service,
                    listeners,
                    spares,
                    never if shutdown is None else shutdown,
                    never if restart is None else restart,
                )
                await lifespan.stop()
            lifespan_nursery.cancel_scope.cancel("the server has ended")
    finally:
        for listener in [*listeners, *spares]:
            listener.close()
    if lifespan.failure is not None:
        raise AppStartupError(lifespan.failure)


# `serve` gets the task_status.
async def serve_until_signalled(  # noqa: ASYNC114, ASYNC128
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    sockets: list[socket.socket] | None = None,
    spare_sockets: Sequence[socket.socket] = (),
    limits: ServerLimits = _LIMITS,
    http2: bool = False,
    ws_deflate: bool = False,
    certfile: str | None = None,
    keyfile: str | None = None,
    metrics: Metrics = _NO_METRICS,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as `serve` does, until SIGTERM or SIGINT (Ctrl-C): the first drains, the second ends it at once.

    SIGHUP drains for a restart, which is whoever has started this process to bring about: clients are told so.

    Returns in both cases, so that the process can exit with 0. For the main thread only.
    """
    shutdown, restart = trio.Event(), trio.Event()
    # Open until the last client is gone: with the default handlers back, the second signal would kill the process.
    with trio.open_signal_receiver(*_signals()) as signals:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                async for number in signals:
                    if shutdown.is_set() or restart.is_set():
                        logger.warning("%s again: closing everything at once", signal.Signals(number).name)
                        nursery.cancel_scope.cancel("a second signal")
                    logger.info("%s: draining", signal.Signals(number).name)
                    (restart if number == signal.SIGHUP else shutdown).set()

            nursery.start_soon(obey)
            await serve(
                app,
                host=host,
                port=port,
                sockets=sockets,
                spare_sockets=spare_sockets,
                limits=limits,
                http2=http2,
                ws_deflate=ws_deflate,
                certfile=certfile,
                keyfile=keyfile,
                metrics=metrics,
                shutdown=shutdown,
                restart=restart,
                task_status=task_status,
            )
            nursery.cancel_scope.cancel("the server has ended")


def _signals() -> list[signal.Signals]:
    # Who has started us with `nohup` wants us to outlive the terminal.
    hang_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hang_up else [])]


async def _serve_clients(
    service: Service,
    listeners: list[socket.socket],
    spares: list[socket.socket],
    shutdown: trio.Event,
    restart: trio.Event,
) -> None:
    drain = service.drain
    async with trio.open_nursery() as client_nursery:
        try:
            async with trio.open_nursery() as accept_nursery:
                for listener in listeners:
                    accept_nursery.start_soon(_accept, service, listener, client_nursery, 0.0)
                for spare in spares:
                    accept_nursery.start_soon(
                        _accept, service, spare, client_nursery, _SUPERVISOR.spare_patience_s
                    )
                accept_nursery.start_soon(_wait_one, accept_nursery, shutdown)
                await restart.wait()
                accept_nursery.cancel_scope.cancel("the server is going away")
            for listener in [*listeners, *spares]:
                listener.close()
            await service.context.terminated.set()
            drain.begin(restart=restart.is_set())
            with trio.move_on_after(service.limits.drain_s):
                await drain.wait_empty()
            drain.abort_all()
            with trio.move_on_after(service.limits.abort_s):
                await drain.wait_empty()
        finally:
            # A client that takes nothing must not hold up whoever cancels us.
            drain.abort_all()
            client_nursery.cancel_scope.cancel("the server has ended")


async def _wait_one(nursery: trio.Nursery, shutdown: trio.Event) -> None:
    await shutdown.wait()
    nursery.cancel_scope.cancel("the server is going away")


async def _accept(
    service: Service, listener: socket.socket, client_nursery: trio.Nursery, patience_s: float
) -> None:
    refusals = trio.CapacityLimiter(_LINGERING_REFUSALS)
    starved = False
    while True:
        try:
            accepted = accept_nowait(listener)
        except OSError as error:
            if not no_room(error):
                raise
            if not starved:
                logger.error("can't accept connections: %s; trying again every %g s", error, _ACCEPT_PAUSE_S)
                service.metrics.count("server_accept_pauses")
            starved = True
            await trio.sleep(_ACCEPT_PAUSE_S)
            continue
        if accepted is None:
            await trio.lowlevel.wait_readable(listener)
            if patience_s:
                await trio.sleep(patience_s)
            continue
        starved = False
        sock, address = accepted
        tcp = TcpStream(sock)
        if len(service.drain) < service.limits.connections:
            peer = Peer(service, tcp, address_of(address))
            service.drain.add(peer)
            client_nursery.start_soon(peer.run)
        else:
            service.metrics.count("server_connections_refused")
            client_nursery.start_soon(_refuse, service, tcp, refusals)
        # A burst of new connections must not hold up the old ones.
        await trio.lowlevel.checkpoint()


async def _refuse(service: Service, tcp: TcpStream, refusals: trio.CapacityLimiter) -> None:
    try:
        refusals.acquire_nowait()
    except trio.WouldBlock:
        tcp.close()
        return
    try:
        if service.tls is None:
            tcp.send_nowait(refusal(503, retry_after_s=service.limits.retry_after_s))
            tcp.end()
            with trio.move_on_after(service.limits.linger_s):
                while await tcp.receive_some():
                    pass
    except (OSError, trio.BrokenResourceError):
        pass  # It did not wait for the answer.
    finally:
        tcp.close()
        refusals.release()


def _config(limits: ServerLimits) -> Config:
    config = Config()
    config.h2_max_header_list_size = limits.head_bytes
    config.websocket_max_message_size = limits.websocket_message_bytes
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logger
    return config


def _tls_context(certfile: str | None, keyfile: str | None, *, http2: bool) -> ssl.SSLContext | None:
    if (certfile is None) != (keyfile is None):
        raise ValueError("TLS needs both a certificate file and a key file")
    config = Config()
    config.certfile = certfile
    config.keyfile = keyfile
    config.alpn_protocols = ["h2", "http/1.1"] if http2 else ["http/1.1"]
    return config.create_ssl_context()
