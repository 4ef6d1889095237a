"""The life of a server: in this process where the inside must be seen, as a process where signals are meant."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from servicekit.listen import BindError, ListenConfig
from servicekit.metrics import ServerMetrics
from servicekit.runner import Application, Ports, serving
from tests.servicekit.conftest import CONFIG, Running
from tests.servicekit.echo import EchoApplication, EchoRequest, repeat, request_bytes, say

TIMEOUT_S = 20.0
REPOSITORY = Path(__file__).parents[2]


async def _healthz(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
    reply = await reader.read()
    writer.close()
    return int(reply.split()[1])


async def _until_refused(channel: grpc.aio.Channel) -> None:
    while True:
        try:
            await say(channel)(request_bytes("late"), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                return
            # Core cancels a call that it had received but not handed over when the drain began.
            if error.code() != grpc.StatusCode.CANCELLED:
                raise


async def test_call_in_flight_ends_while_new_ones_are_refused() -> None:
    application, leave = EchoApplication(), asyncio.Event()
    started: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with serving(application, config=replace(CONFIG, drain_ms=60_000)) as ports:
            started.set_result(ports)
            await leave.wait()

    server = asyncio.create_task(serve())
    ports = await started
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel:
        call = say(channel)(request_bytes("wait"), timeout=TIMEOUT_S)
        await application.echo.entered.wait()
        assert await _healthz(ports.metrics_port) == 200
        leave.set()
        await _until_refused(channel)
        assert await _healthz(ports.metrics_port) == 503
        assert not application.is_closed
        application.echo.released.set()
        assert (await call).text == "wait"
    await server
    assert application.is_closed


async def test_call_that_outlives_the_grace_is_cancelled_before_the_close() -> None:
    application = EchoApplication()
    async with AsyncExitStack() as client:
        async with serving(application, config=replace(CONFIG, drain_ms=50)) as ports:
            channel = await client.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}"))
            call = say(channel)(request_bytes("wait"), timeout=TIMEOUT_S)
            await application.echo.entered.wait()
        assert application.left_at_close == ["wait"]
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_healthz_is_503_while_the_application_opens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics_port = free.getsockname()[1]
    application, seen = EchoApplication(), []

    async def open_application(metrics: ServerMetrics) -> Application:
        seen.append(await _healthz(metrics_port))
        return await application(metrics)

    async with serving(open_application, config=replace(CONFIG, metrics_port=metrics_port)) as ports:
        seen.append(await _healthz(ports.metrics_port))
    assert seen == [503, 200]


async def test_failed_opening_frees_the_ports() -> None:
    async def open_application(metrics: ServerMetrics) -> Application:
        raise FileNotFoundError("no data")

    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics_port = free.getsockname()[1]
    config = replace(CONFIG, metrics_port=metrics_port)
    with pytest.raises(FileNotFoundError):
        async with serving(open_application, config=config):
            pass
    async with serving(EchoApplication(), config=config) as ports:
        assert ports.metrics_port == metrics_port


async def test_taken_ports_are_named(running: Running) -> None:
    for config in (
        replace(CONFIG, port=running.ports.port),
        replace(CONFIG, metrics_port=running.ports.metrics_port),
    ):
        application = EchoApplication()
        with pytest.raises(BindError, match=str(config.port or config.metrics_port)):
            async with serving(application, config=config):
                pass
        assert not hasattr(application, "metrics"), "opened before its port was there"


@pytest.mark.parametrize("name", ["host", "metrics_host"])
@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_addresses_off_loopback_need_the_flag(name: str, address: str) -> None:
    addresses: dict[str, Any] = {name: address}
    with pytest.raises(ValueError, match=f"{name} is off loopback"):
        ListenConfig(**addresses)
    ListenConfig(**addresses, allow_insecure_off_loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_no_flag(address: str) -> None:
    assert ListenConfig(host=address).host == address


@pytest.mark.parametrize("wrong", [{"port": -1}, {"metrics_port": 65536}, {"max_request_bytes": 0}, {"drain_ms": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ListenConfig(**wrong)


@dataclass(frozen=True, kw_only=True)
class Server:
    process: Process
    channel: grpc.aio.Channel
    metrics_port: int

    async def events(self, *, until: str = "") -> list[str]:
        """What the log says from now on, up to an event or to its end."""
        assert self.process.stderr is not None
        seen: list[str] = []
        async for line in self.process.stderr:
            seen.append(json.loads(line)["event"])
            if seen[-1] == until:
                break
        return seen


@asynccontextmanager
async def _process(**settings: str) -> AsyncIterator[Server]:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'proto'}", **settings}
    command = (sys.executable, "-W", "error", "-m", "tests.servicekit.echo_server")
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, env=environ, stdout=PIPE, stderr=PIPE)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        match = re.fullmatch(r"ready port=(\d+) metrics_port=(\d+)\n", line)
        assert match, (await process.communicate())[1].decode()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{match[1]}") as channel:
            yield Server(process=process, channel=channel, metrics_port=int(match[2]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_with_status_0(number: signal.Signals) -> None:
    async with _process() as server:
        assert (await say(server.channel)(request_bytes("hello"), timeout=TIMEOUT_S)).text == "hello"
        assert await _healthz(server.metrics_port) == 200
        server.process.send_signal(number)
        assert await server.events() == ["serving", "signal", "draining", "closed"]
        assert await server.process.wait() == 0


async def test_a_second_signal_ends_the_process_at_once() -> None:
    async with _process(ECHO_DRAIN_MS="10min") as server:
        call = repeat(server.channel)(EchoRequest(text="wait"), timeout=TIMEOUT_S)
        await call.read()
        server.process.send_signal(signal.SIGTERM)
        await server.events(until="draining")
        server.process.send_signal(signal.SIGTERM)
        assert await server.events() == ["ended at once"]
        assert await server.process.wait() == 128 + signal.SIGTERM
        call.cancel()


SETTLED = """
import asyncio, gc, os, signal, sys
from servicekit.listen import ListenConfig
from servicekit.logs import configure
from servicekit.runner import Ports, run
from tests.servicekit.echo import EchoApplication

def ready(ports: Ports) -> None:
    loop = type(asyncio.get_running_loop()).__module__
    print(ports.port > 0, loop, sys.getswitchinterval(), gc.get_freeze_count() > 0)
    os.kill(os.getpid(), signal.SIGTERM)

configure()
run(EchoApplication(), config=ListenConfig(), ready=ready)
"""


async def test_process_is_settled_when_it_is_ready() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", SETTLED, cwd=REPOSITORY, stdout=PIPE, stderr=PIPE
    )
    stdout, stderr = await process.communicate()
    assert stdout.decode().split() == ["True", "uvloop", "0.0005", "True"], stderr.decode()
    assert process.returncode == 0
