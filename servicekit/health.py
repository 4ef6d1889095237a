"""grpc.health.v1: all services of a process are up together and go down together.

The servicer of grpcio-health-checking never ends a `Watch`, so one idle watcher would hold a drain for its whole grace;
here a watcher is told NOT_SERVING and its stream ends.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicekit.service import Context

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """NOT_SERVING -> SERVING -> drained, which is final. The empty name stands for the whole server."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {"", SERVICE_NAME}
        self._is_serving = False
        self._is_drained = False
        self._changed = asyncio.Event()

    @property
    def is_serving(self) -> bool:
        return self._is_serving

    def serve(self) -> None:
        assert not self._is_drained
        self._change(is_serving=True)

    def drain(self) -> None:
        self._is_drained = True
        self._change(is_serving=False)

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        return health_pb2.HealthCheckResponse(status=_SERVING if self._is_serving else _NOT_SERVING)

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802, ARG002
        is_known = request.service in self._services
        while True:
            changed = self._changed
            is_last = self._is_drained
            status = _SERVING if self._is_serving else _NOT_SERVING
            yield health_pb2.HealthCheckResponse(status=status if is_known else _SERVICE_UNKNOWN)
            if is_last:
                return
            await changed.wait()

    def _change(self, *, is_serving: bool) -> None:
        self._is_serving = is_serving
        # Whoever waits holds the old event, so no change is missed however slow the watcher is.
        self._changed.set()
        self._changed = asyncio.Event()
