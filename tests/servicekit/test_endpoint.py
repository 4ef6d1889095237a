"""The HTTP port, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import structlog

from servicekit.endpoint import HEAD_LIMIT_BYTES, Endpoint
from servicekit.metrics import ServerMetrics


@dataclass
class State:
    is_serving: bool = True


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def endpoint(state: State) -> AsyncIterator[Endpoint]:
    opened = await Endpoint.open("127.0.0.1", 0, metrics=ServerMetrics(), is_serving=lambda: state.is_serving)
    yield opened
    await opened.close()


async def _exchange(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def _get(endpoint: Endpoint, target: str) -> tuple[int, bytes, bytes]:
    """Status, head, body."""
    head, _, body = (await _exchange(endpoint.port, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).partition(
        b"\r\n\r\n"
    )
    assert f"Content-Length: {len(body)}".encode() in head
    return int(head.split()[1]), head, body


async def test_metrics_are_prometheus_text(endpoint: Endpoint) -> None:
    status, head, body = await _get(endpoint, "/metrics?name=x")
    assert status == 200
    assert b"Content-Type: text/plain; version=" in head
    assert b"\nprocess_resident_memory_bytes " in body


async def test_healthz_follows_the_server(endpoint: Endpoint, state: State) -> None:
    assert (await _get(endpoint, "/healthz"))[0] == 200
    state.is_serving = False
    assert (await _get(endpoint, "/healthz"))[0] == 503


async def test_other_targets_and_methods_are_refused(endpoint: Endpoint) -> None:
    assert (await _get(endpoint, "/"))[0] == 404
    assert b" 405 " in await _exchange(endpoint.port, b"POST /metrics HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("junk", [b"x" * (HEAD_LIMIT_BYTES * 2), b"x" * (HEAD_LIMIT_BYTES * 2) + b"\r\n\r\n"])
async def test_a_peer_that_speaks_no_http_is_dropped(endpoint: Endpoint, junk: bytes) -> None:
    assert await _exchange(endpoint.port, junk) == b""
    assert (await _get(endpoint, "/healthz"))[0] == 200


async def test_a_peer_that_leaves_is_forgotten(endpoint: Endpoint) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(b"GET /met")
    writer.close()
    await writer.wait_closed()
    assert (await _get(endpoint, "/healthz"))[0] == 200


async def test_a_source_that_fails_is_a_500_and_is_logged() -> None:
    def source() -> State:
        raise KeyError("broken")

    metrics = ServerMetrics()
    metrics.export("engine", source)
    endpoint = await Endpoint.open("127.0.0.1", 0, metrics=metrics, is_serving=lambda: True)
    with structlog.testing.capture_logs() as logs:
        assert (await _get(endpoint, "/metrics"))[0] == 500
    await endpoint.close()
    assert [log["event"] for log in logs] == ["scrape failed"]


async def test_a_taken_port_is_an_error(endpoint: Endpoint) -> None:
    with pytest.raises(OSError, match="address already in use"):
        await Endpoint.open("127.0.0.1", endpoint.port, metrics=ServerMetrics(), is_serving=lambda: True)
