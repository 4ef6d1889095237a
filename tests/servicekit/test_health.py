"""grpc.health.v1 and reflection, as load balancers and grpcurl use them."""

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servicekit.runner import serving
from tests.servicekit.conftest import CONFIG, Running
from tests.servicekit.echo import ECHO, EchoApplication

TIMEOUT_S = 20.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def _request(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", ECHO.full_name, "grpc.health.v1.Health"])
async def test_known_services_are_serving(running: Running, service: str) -> None:
    reply = await health_pb2_grpc.HealthStub(running.channel).Check(_request(service), timeout=TIMEOUT_S)
    assert reply.status == SERVING


async def test_unknown_service_is_not_found(running: Running) -> None:
    stub = health_pb2_grpc.HealthStub(running.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(_request("no.Such"), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(_request("no.Such"), timeout=TIMEOUT_S)
    assert (await watch.read()).status == SERVICE_UNKNOWN
    watch.cancel()


async def test_watchers_hear_of_the_drain_and_do_not_hold_it() -> None:
    began = time.monotonic()
    async with AsyncExitStack() as client:
        async with serving(EchoApplication(), config=replace(CONFIG, drain_ms=60_000)) as ports:
            channel = await client.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}"))
            watch = health_pb2_grpc.HealthStub(channel).Watch(_request(""), timeout=90.0)
            assert (await watch.read()).status == SERVING
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() == grpc.aio.EOF
    assert time.monotonic() - began < 30.0


async def test_reflection_names_and_describes_the_services(running: Running) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=ECHO.full_name),
    ]
    replies = [reply async for reply in stub.ServerReflectionInfo(iter(requests), timeout=TIMEOUT_S)]
    names = {service.name for service in replies[0].list_services_response.service}
    assert names >= {ECHO.full_name, "grpc.health.v1.Health"}
    (file,) = replies[1].file_descriptor_response.file_descriptor_proto
    assert b"EchoRequest" in file
