"""A running echo server and a channel to it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest

from servicekit.listen import ListenConfig
from servicekit.runner import Ports, serving
from tests.servicekit.echo import EchoApplication


@dataclass(frozen=True, kw_only=True)
class Running:
    application: EchoApplication
    ports: Ports
    channel: grpc.aio.Channel


CONFIG = ListenConfig(max_request_bytes=1000)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    application = EchoApplication()
    async with (
        serving(application, config=CONFIG) as ports,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
    ):
        yield Running(application=application, ports=ports, channel=channel)
