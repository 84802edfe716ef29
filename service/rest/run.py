"""Runs the server: binds, starts, waits for a signal, drains, stops. One readable script.

    signal          readiness falls; the listener stays open and answers with `Connection: close`
    + drain delay   the listener closes; accepted requests are answered
    + at most grace connections still open are given up
    then            models and threads are closed; exit 0

A second signal more than a second later exits at once: `make` and a process group deliver the first one twice.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
import uvloop
from starlette.types import ASGIApp

from service import __version__, logs
from service.config import ServerSettings, Settings
from service.errors import ConfigurationError
from service.rest.app import create_app
from service.rest.connection import Connection
from service.rest.guard import ConnectionGuard
from service.rest.http_server import HttpServer
from service.server import InferenceServer
from service.tracing import from_environment

if TYPE_CHECKING:
    from service.tracing.otlp import Tracing

logger = logging.getLogger("fovea")

_SAME_SIGNAL_SECONDS = 1.0
_EXIT_BY_SECOND_SIGNAL = 130
_CLOSE_SECONDS = 10.0  # nothing runs any more by then that does not hang


def serve(settings: Settings) -> int:
    """Serve until a signal; returns the exit code. Raises ConfigurationError before anything has started."""
    listener = bind(settings.server)
    writer = logs.configure(settings.log.level)
    tracing = from_environment(os.environ, __version__)
    try:
        return uvloop.run(_serve(settings, listener, writer, tracing))
    finally:
        if tracing is not None:
            tracing.close()
        writer.flush()


def bind(settings: ServerSettings) -> socket.socket:
    """The listening socket. Raises ConfigurationError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigurationError(f"cannot listen on {settings.host}:{settings.port}: {reason}") from None
    return listener


async def _serve(
    settings: Settings, listener: socket.socket, writer: logs.LineWriter, tracing: "Tracing | None"
) -> int:
    server = InferenceServer(settings, __version__)
    server.metrics.log_dropped.set_function(lambda: writer.dropped)
    server.metrics.tasks.set_function(lambda: len(asyncio.all_tasks()))
    if tracing is not None:
        server.metrics.spans_lost.set_function(lambda: tracing.lost)
    guard = ConnectionGuard(settings.limits, settings.server.keep_alive_s, server.metrics)
    config = _uvicorn_config(settings, create_app(server, tracing), partial(Connection, guard=guard))
    http = HttpServer(config, listener=listener, guard=guard)
    stop = _StopSignal(asyncio.get_running_loop())
    host, port = listener.getsockname()[:2]
    logger.info("listening", extra={"host": host, "port": port, "version": __version__, "pid": os.getpid()})
    work = asyncio.create_task(server.run(), name="server")
    front = asyncio.create_task(http.serve([listener]), name="http")
    waiting = asyncio.create_task(stop.wait(), name="signal")
    tuning = asyncio.create_task(_freeze_when_started(server), name="gc")
    ended, _ = await asyncio.wait({work, front, waiting}, return_when=asyncio.FIRST_COMPLETED)
    failed = next((task for task in ended if task is not waiting), None)
    if failed is not None:
        logger.critical("task_died", extra={"task": failed.get_name()}, exc_info=failed.exception())
    else:
        server.drain()
        await stop.delay(settings.server.drain_delay_s)
    accepted = server.admission.requests
    http.should_exit = True
    with suppress(BaseException):
        await front
    for task in (work, waiting, tuning):
        task.cancel()
    await asyncio.wait({work, waiting, tuning})
    is_closed = await _closed(server)
    logger.info("drain_ended", extra={"inflight_at_close": accepted, "lost": server.admission.requests})
    code = 1 if failed is not None else 0
    if not is_closed or server.threads.lost:
        logger.error("exit_with_hanging_threads", extra={"threads": server.threads.lost})
        writer.flush()
        os._exit(code)  # the interpreter would wait for them
    return code


async def _closed(server: InferenceServer) -> bool:
    """Free everything; False where something that hangs cannot be waited for."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await server.close()
    except TimeoutError:
        return False
    return True


def _uvicorn_config(settings: Settings, app: ASGIApp, protocol: Callable[..., Connection]) -> uvicorn.Config:
    """Raises ConfigurationError where there is no TLS to be had from the files."""
    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # uvicorn calls it
        ws="none",
        lifespan="off",
        loop="uvloop",
        ssl_certfile=settings.server.tls_certificate,
        ssl_keyfile=settings.server.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=settings.server.backlog,
        timeout_graceful_shutdown=int(settings.server.grace_s),
    )
    certificate, key = settings.server.tls_certificate, settings.server.tls_key
    if key is not None and certificate is None:
        raise ConfigurationError("server.tls_key: is of no use without server.tls_certificate")
    try:
        config.load()
    except OSError as error:  # what OpenSSL says of a file is one, too
        files = " and ".join(str(file) for file in (certificate, key) if file)
        raise ConfigurationError(f"server.tls_certificate: cannot use {files}: {error.strerror or error}") from None
    return config


async def _freeze_when_started(server: InferenceServer) -> None:
    """Take what loading made out of the garbage collector's sight: it lives as long as the process.

    Measured on small requests: a quarter more of them, and the 99th percentile from 27 to 4 ms.
    """
    await server.started.wait()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


class _StopSignal:
    """SIGTERM and SIGINT. The first asks for a drain, a later second one ends the process at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._came = asyncio.Event()
        self._first_at = 0.0
        self._interrupted = False
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    async def wait(self) -> None:
        await self._came.wait()

    async def delay(self, seconds: float) -> None:
        """The drain delay; none after Ctrl-C, where no load balancer has to notice."""
        if not self._interrupted:
            await asyncio.sleep(seconds)

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if not self._came.is_set():
            self._first_at = now
            self._interrupted = number == signal.SIGINT
            self._came.set()
        elif now - self._first_at > _SAME_SIGNAL_SECONDS:
            logger.warning("second_signal")
            os._exit(_EXIT_BY_SECOND_SIGNAL)
