"""The life of a server process.

    bind -> open the application -> serve -> SIGTERM or SIGINT -> drain -> close the application -> exit status 0

    bind     both ports, so that a taken one is known before a long opening; /healthz says 503
    open     the caller's: recover, load; its handlers are registered
    serve    health SERVING, the `ready` callback
    drain    health NOT_SERVING, /healthz 503; new calls are refused, calls in flight get `drain_ms` to end
    close    the caller's, after the last call ended

A call that arrives in the very moment of the drain may end with CANCELLED instead of UNAVAILABLE: core had received it
but not handed it over. It never reached its handler, so a client may retry it.

A signal during the opening takes effect after it. A second signal ends the process at once, with status 128 + signal:
what was acknowledged must not depend on `close`.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc
import structlog
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection

from servicekit.endpoint import Endpoint
from servicekit.health import SERVICE_NAME, Health
from servicekit.listen import BindError, ListenConfig, bind, grpc_server
from servicekit.metrics import ServerMetrics

SWITCH_INTERVAL_S: Final = 0.0005
"""A tenth of Python's own: the loop waits no longer for a thread that holds the GIL."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the kernel gave."""

    port: int
    metrics_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What a server serves: `handlers` are those of `services`, made by `service.handlers`."""

    services: Sequence[ServiceDescriptor]
    handlers: Sequence[grpc.GenericRpcHandler]
    close: Callable[[], Awaitable[None]]
    """Awaited once, after the last call ended."""


Open = Callable[[ServerMetrics], Awaitable[Application]]
"""Runs on the loop that will serve."""


def print_ready(ports: Ports) -> None:
    """The line that scripts wait for; logs go elsewhere."""
    sys.stdout.write(f"ready port={ports.port} metrics_port={ports.metrics_port}\n")
    sys.stdout.flush()


def run(open_application: Open, *, config: ListenConfig, ready: Callable[[Ports], None] = print_ready) -> None:
    """Serves until a signal has ended it. Owns the process: main thread, event loop, signals, GIL switch interval.

    Raises:
        BindError: a port cannot be bound.
        Exception: what `open_application` or the application's `close` raises.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_main(open_application, config=config, ready=ready))


async def _main(open_application: Open, *, config: ListenConfig, ready: Callable[[Ports], None]) -> None:
    stop = _stop_on_signals()
    async with serving(open_application, config=config) as ports:
        # What the opening built lives as long as the process: the collector need never look at it again.
        gc.collect()
        gc.freeze()
        ready(ports)
        await stop.wait()


@asynccontextmanager
async def serving(open_application: Open, *, config: ListenConfig) -> AsyncIterator[Ports]:
    """A server on the running loop, drained and closed at exit; `run` without the process. For tests and embedding.

    Raises:
        BindError: a port cannot be bound.
    """
    metrics = ServerMetrics()
    server = grpc_server(config)
    port = bind(server, config)
    health: Health | None = None
    try:
        endpoint = await Endpoint.open(
            config.metrics_host,
            config.metrics_port,
            metrics=metrics,
            is_serving=lambda: health is not None and health.is_serving,
        )
    except OSError as error:
        raise BindError(f"cannot listen on {config.metrics_host}:{config.metrics_port}") from error
    try:
        application = await open_application(metrics)
        try:
            names = [service.full_name for service in application.services]
            health = Health(names)
            health.add_to(server)
            reflection.enable_server_reflection([*names, SERVICE_NAME, reflection.SERVICE_NAME], server)
            server.add_generic_rpc_handlers(application.handlers)
            health.serve()
            await server.start()
            _log.info("serving", host=config.host, port=port, metrics_port=endpoint.port, services=names)
            try:
                yield Ports(port=port, metrics_port=endpoint.port)
            finally:
                health.drain()
                _log.info("draining", in_flight=metrics.in_flight, drain_ms=config.drain_ms)
                await server.stop(config.drain_ms / 1000)
                # Once the grace is over, `stop` returns while the handlers that it cancelled still unwind.
                await metrics.idle()
        finally:
            await application.close()
            _log.info("closed")
    finally:
        await endpoint.close()


def _stop_on_signals() -> asyncio.Event:
    """Set by the first signal; the second one does not return."""
    stop = asyncio.Event()

    def received(number: signal.Signals) -> None:
        if stop.is_set():
            _log.warning("ended at once", signal=number.name)
            os._exit(128 + number)
        _log.info("signal", signal=number.name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number)
    return stop
