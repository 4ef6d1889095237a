"""A service to wrap: its protocol is built here, its methods do what a request's `text` says."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from servicekit.errors import STATUS_DETAILS_KEY, ErrorTable, Problem, row
from servicekit.metrics import ServerMetrics
from servicekit.runner import Application
from servicekit.service import Context, handlers

MAX_REQUEST_BYTES = 1000


def _describe() -> Any:
    file = FileDescriptorProto(name="servicekit_tests/echo.proto", package="servicekit_tests", syntax="proto3")
    request = file.message_type.add(name="EchoRequest")
    request.field.add(
        name="text", number=1, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    reply = file.message_type.add(name="EchoReply")
    reply.field.add(
        name="text", number=1, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    service = file.service.add(name="Echo")
    types = {"input_type": ".servicekit_tests.EchoRequest", "output_type": ".servicekit_tests.EchoReply"}
    service.method.add(name="Say", **types)
    service.method.add(name="Repeat", server_streaming=True, **types)
    pool = descriptor_pool.Default()  # reflection answers from it
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name)


DESCRIPTOR = _describe()
ECHO = DESCRIPTOR.services_by_name["Echo"]
EchoRequest: Any = GetMessageClass(DESCRIPTOR.message_types_by_name["EchoRequest"])
EchoReply: Any = GetMessageClass(DESCRIPTOR.message_types_by_name["EchoReply"])


class BusyError(Exception):
    """In the table."""


class VeryBusyError(BusyError):
    """Has no row of its own."""


ERRORS = ErrorTable(
    "servicekit.tests",
    [
        row(
            BusyError,
            lambda error: Problem(
                code=grpc.StatusCode.UNAVAILABLE,
                reason="BUSY",
                message=f"busy with {error}",
                field="text",
                retry_after_ms=1500,
            ),
        )
    ],
)


@dataclass
class Echo:
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    """A handler waits for `released`."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    left: list[str] = field(default_factory=list)
    """The `text` of each call that waited and ended, however it ended."""

    async def Say(self, request: Any, context: Context) -> Any:  # noqa: N802
        await self._obey(request.text, context)
        if request.text == "wrong type":
            return request
        return EchoReply(text=request.text)

    async def Repeat(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802
        yield EchoReply(text="first")
        await self._obey(request.text, context)
        yield EchoReply(text=request.text)

    async def _obey(self, text: str, context: Context) -> None:
        match text:
            case "busy":
                raise BusyError("tests")
            case "very busy":
                raise VeryBusyError("tests")
            case "bug":
                raise KeyError("secret")
            case "abort":
                await context.abort(grpc.StatusCode.NOT_FOUND, "aborted")
            case "set code":
                context.set_code(grpc.StatusCode.OUT_OF_RANGE)
            case "wait":
                self.entered.set()
                try:
                    await self.released.wait()
                finally:
                    self.left.append(text)


@dataclass
class EchoApplication:
    """Call it to open it."""

    echo: Echo = field(default_factory=Echo)
    metrics: ServerMetrics = field(init=False)
    is_closed: bool = False
    left_at_close: list[str] = field(default_factory=list)

    async def __call__(self, metrics: ServerMetrics) -> Application:
        self.metrics = metrics
        wrapped = handlers(ECHO, self.echo, errors=ERRORS, metrics=metrics, max_request_bytes=MAX_REQUEST_BYTES)
        return Application(services=[ECHO], handlers=[wrapped], close=self._close)

    async def _close(self) -> None:
        self.is_closed = True
        self.left_at_close = list(self.echo.left)

    def handled(self, method: str, code: str) -> float | None:
        """Calls that ended with a code, as Prometheus sees them."""
        kind = "unary" if method == "Say" else "server_stream"
        labels = {"grpc_type": kind, "grpc_service": ECHO.full_name, "grpc_method": method, "grpc_code": code}
        return self.metrics.registry.get_sample_value("grpc_server_handled_total", labels)


def say(channel: grpc.aio.Channel) -> Any:
    """Sends bytes as they are, so that a test can send what is no EchoRequest."""
    return channel.unary_unary(f"/{ECHO.full_name}/Say", response_deserializer=EchoReply.FromString)


def repeat(channel: grpc.aio.Channel) -> Any:
    return channel.unary_stream(
        f"/{ECHO.full_name}/Repeat",
        request_serializer=EchoRequest.SerializeToString,
        response_deserializer=EchoReply.FromString,
    )


def request_bytes(text: str) -> bytes:
    return bytes(EchoRequest(text=text).SerializeToString())


def status_of(error: grpc.aio.AioRpcError) -> Any:
    """The google.rpc.Status beside code and message; None if there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            return Status.FromString(value)
    return None
