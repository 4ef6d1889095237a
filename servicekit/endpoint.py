"""A port for machines that watch: GET /metrics in Prometheus' text format, GET /healthz with 200 or 503.

One short reply per connection, served by the event loop: that `/healthz` answers also proves that the loop turns.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Self

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from servicekit.metrics import ServerMetrics

HEAD_LIMIT_BYTES: Final = 8192
TIMEOUT_S: Final = 10.0
"""For a whole exchange: a silent peer holds no connection longer."""

_log = structlog.get_logger(__name__)

_PLAIN: Final = "text/plain; charset=utf-8"


class Endpoint:
    """Owns its socket from `open` to `close`."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]

    @classmethod
    async def open(cls, host: str, port: int, *, metrics: ServerMetrics, is_serving: Callable[[], bool]) -> Self:
        """Port 0 takes a free one.

        Raises:
            OSError: the address cannot be bound.
        """

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    writer.write(await _reply(reader, metrics, is_serving))
                    await writer.drain()
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                writer.transport.abort()  # the peer left, was silent, or sent no HTTP: nobody is there to be told
            except Exception:  # noqa: BLE001 - the outermost frame of an exchange
                _log.exception("scrape failed")
                writer.write(_response(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n"))
            finally:
                writer.close()

        return cls(await asyncio.start_server(connected, host, port, limit=HEAD_LIMIT_BYTES))

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()


async def _reply(reader: asyncio.StreamReader, metrics: ServerMetrics, is_serving: Callable[[], bool]) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    match head.split(b"\r\n", 1)[0].split():
        case [b"GET", target, _]:
            pass
        case _:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n")
    match target.partition(b"?")[0]:
        case b"/metrics":
            return _response(HTTPStatus.OK, await metrics.text(), content_type=CONTENT_TYPE_LATEST)
        case b"/healthz" if is_serving():
            return _response(HTTPStatus.OK, b"serving\n")
        case b"/healthz":
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"not serving\n")
        case _:
            return _response(HTTPStatus.NOT_FOUND, b"/metrics or /healthz\n")


def _response(status: HTTPStatus, body: bytes, *, content_type: str = _PLAIN) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
