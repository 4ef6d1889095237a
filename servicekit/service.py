"""Methods of a protocol, wrapped once: size limit, parsing, errors and counts around each handler.

The wrapping is done at registration, not by an interceptor, which sees neither the raw request nor a parse error, and
which the aio server runs for every call to build the handler anew. The wrapper adds 2-4 us to a handler; in a whole
call, 140 us and more, neither way can be told from noise (`tests/servicekit/test_service.py` prints both).

Core's own limit, `grpc.max_receive_message_length`, refuses without details, so it is only the backstop at
HARD_LIMIT_FACTOR times the limit here.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from servicekit.errors import BUG, ErrorTable, Problem, trailing_metadata
from servicekit.metrics import CallCounts, Method, ServerMetrics

HARD_LIMIT_FACTOR: Final = 4

_OK, _CANCELLED, _UNKNOWN, _DEADLINE_EXCEEDED = 0, 1, 2, 4

_log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""Second argument of a served method. The class is generic in its stubs only, hence the quotes."""

_Parse = Callable[[bytes], Any]
_Serialize = Callable[[Any], bytes]
_Wrapped: TypeAlias = "Callable[[bytes, Context], Awaitable[Any]]"


class RefusedRequestError(ValueError):
    """A request that never reached its handler."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def handlers(
    service: ServiceDescriptor,
    servicer: object,
    *,
    errors: ErrorTable,
    metrics: ServerMetrics,
    max_request_bytes: int,
) -> grpc.GenericRpcHandler:
    """All methods of `service`, served by the methods of the same names: `async def` for unary, async generators for
    server streams, each called with (request, context).

    Raises:
        TypeError: a method is missing, of the wrong kind, or streams requests.
    """
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: _handler(method, servicer, errors=errors, metrics=metrics, max_request_bytes=max_request_bytes)
            for method in service.methods
        },
    )


def _handler(
    method: MethodDescriptor, servicer: object, *, errors: ErrorTable, metrics: ServerMetrics, max_request_bytes: int
) -> "grpc.RpcMethodHandler[Any, Any]":
    served = getattr(servicer, method.name, None)
    name = f"{type(servicer).__name__}.{method.name}"
    if served is None:
        raise TypeError(f"{name} is missing")
    if method.client_streaming:
        raise TypeError(f"{name}: streams of requests are not supported")
    kind = "server_stream" if method.server_streaming else "unary"
    counts = metrics.method(Method(kind=kind, service=method.containing_service.full_name, name=method.name))
    parse = _bounded_parse(method, max_request_bytes=max_request_bytes)
    serialize = _checked_serialize(method)
    # Without a deserializer and a serializer gRPC hands over bytes and sends bytes.
    if method.server_streaming:
        if not inspect.isasyncgenfunction(served):
            raise TypeError(f"{name} must be an async generator")
        return grpc.unary_stream_rpc_method_handler(_stream(served, parse, serialize, counts, errors))
    if not inspect.iscoroutinefunction(served):
        raise TypeError(f"{name} must be `async def`")
    return grpc.unary_unary_rpc_method_handler(_unary(served, parse, serialize, counts, errors))


def _bounded_parse(method: MethodDescriptor, *, max_request_bytes: int) -> _Parse:
    from_string = GetMessageClass(method.input_type).FromString
    name = method.input_type.name

    def parse(raw: bytes) -> Any:
        if len(raw) > max_request_bytes:
            raise RefusedRequestError(
                Problem(
                    code=grpc.StatusCode.RESOURCE_EXHAUSTED,
                    reason="MESSAGE_TOO_LARGE",
                    message=f"{name} has {len(raw)} bytes, the limit is {max_request_bytes}",
                    field=name,
                )
            )
        try:
            return from_string(raw)
        except DecodeError as error:
            raise RefusedRequestError(
                Problem(
                    code=grpc.StatusCode.INVALID_ARGUMENT,
                    reason="MALFORMED_MESSAGE",
                    message=f"{len(raw)} bytes that are no {name}",
                    field=name,
                )
            ) from error

    return parse


def _checked_serialize(method: MethodDescriptor) -> _Serialize:
    reply_type = GetMessageClass(method.output_type)

    def serialize(reply: Any) -> bytes:
        # Protobuf would serialize any message, and the peer would read nonsense.
        if type(reply) is not reply_type:
            raise TypeError(f"{method.full_name} returned {type(reply).__name__}")
        raw: bytes = reply.SerializeToString()
        return raw

    return serialize


def _unary(
    served: "Callable[[Any, Context], Awaitable[Any]]",
    parse: _Parse,
    serialize: _Serialize,
    counts: CallCounts,
    errors: ErrorTable,
) -> _Wrapped:
    begin, end = counts.begin, counts.end

    async def call(raw: bytes, context: Context) -> bytes:
        began = begin()
        code = _UNKNOWN
        try:
            reply = serialize(await served(parse(raw), context))
            code = _code(context)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            code = _code_of_end(context)
            raise
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            code = _refuse(error, context, counts.method, errors)
            return b""  # discarded: the code is not OK
        else:
            return reply
        finally:
            end(code, began)

    return call


def _stream(
    served: "Callable[[Any, Context], AsyncGenerator[Any, None]]",
    parse: _Parse,
    serialize: _Serialize,
    counts: CallCounts,
    errors: ErrorTable,
) -> _Wrapped:
    begin, end = counts.begin, counts.end

    # A coroutine that writes, not a generator: gRPC leaves a cancelled generator to the garbage collector, here its
    # `finally` runs before the call is counted as ended.
    async def call(raw: bytes, context: Context) -> None:
        began = begin()
        code = _UNKNOWN
        try:
            async with aclosing(served(parse(raw), context)) as replies:
                async for reply in replies:
                    await context.write(serialize(reply))
            code = _code(context)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            code = _code_of_end(context)
            raise
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            code = _refuse(error, context, counts.method, errors)
        finally:
            end(code, began)

    return call


def _code(context: Context) -> int:
    """Of a handler that returned; it may have set a code by itself."""
    # None until one is set, whatever the stubs say.
    code: grpc.StatusCode | None = context.code()
    return _OK if code is None else code.value[0]


def _code_of_end(context: Context) -> int:
    """Of a call that was aborted by its handler, cancelled, or left by its peer."""
    if code := _code(context):
        return code
    # None without a deadline, whatever the stubs say.
    remaining: float | None = context.time_remaining()
    return _DEADLINE_EXCEEDED if remaining is not None and remaining <= 0 else _CANCELLED


def _refuse(error: Exception, context: Context, method: Method, errors: ErrorTable) -> int:
    """Sets the status of the call; returns its code."""
    problem = error.problem if isinstance(error, RefusedRequestError) else errors.problem(error)
    if problem is None:
        _log.error("unhandled error", service=method.service, method=method.name, exc_info=error)
        problem = BUG
    context.set_code(problem.code)
    context.set_details(problem.message)
    context.set_trailing_metadata(trailing_metadata(problem, errors.domain))
    return problem.code.value[0]
