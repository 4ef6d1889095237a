"""The shell that peers wear: the servers' own runner (uvloop, transport options, GIL settings), and nothing on top.

Handlers take and return bytes and are neither counted nor mapped to errors, so a peer pays less for its shell than the
store does.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from servicekit.listen import ListenConfig
from servicekit.metrics import ServerMetrics
from servicekit.runner import Application, run

Method = Callable[[bytes], Awaitable[bytes]]


def serve(open_methods: Callable[[], Mapping[str, Method]], *, close: Callable[[], Awaitable[None]]) -> None:
    """Serves `package.Service/Method` -> handler on a free port, prints the ready line, ends on SIGTERM.

    `open_methods` runs on the loop that will serve, `close` on it after the last call.
    """

    async def open_application(_metrics: ServerMetrics) -> Application:
        handlers = [_handler(path, method) for path, method in open_methods().items()]
        return Application(services=[], handlers=handlers, close=close)

    run(open_application, config=ListenConfig(max_request_bytes=64 << 20))


def _handler(path: str, method: Method) -> grpc.GenericRpcHandler:
    service, _, name = path.partition("/")

    async def call(request: bytes, _context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return await method(request)

    return grpc.method_handlers_generic_handler(service, {name: grpc.unary_unary_rpc_method_handler(call)})
