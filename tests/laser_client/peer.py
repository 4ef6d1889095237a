"""A scripted server: real sockets, and misbehaviour on demand. It decides nothing by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from laser_client.wire import schema_to_proto
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb
from servicekit.errors import Problem, trailing_metadata


class Hang:
    """Answers never."""


Answer: TypeAlias = Message | Problem | grpc.StatusCode | Hang
"""A reply; a rich failure; a bare code, as a proxy or a dying server gives it; silence."""
Stream: TypeAlias = Sequence[Answer]
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Peer:
    """Answers each method's calls from its script, one by one, and the last entry for ever; keeps all requests."""

    schema: Schema
    scripts: dict[str, list[Answer | Stream]] = field(default_factory=dict)
    requests: dict[str, list[Any]] = field(default_factory=dict)
    remaining_s: dict[str, list[float | None]] = field(default_factory=dict)
    """Of each call's deadline. gRPC rounds it on the wire, by up to 3 %."""
    arrived_s: dict[str, list[float]] = field(default_factory=dict)
    """When each call came, in the loop's time."""
    cancelled: dict[str, int] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    target: str = ""
    server: grpc.aio.Server | None = None

    async def stop(self) -> None:
        """At once: calls under way break off."""
        if self.server is not None:
            await self.server.stop(None)

    def script(self, method: str, *answers: Answer | Stream) -> None:
        self.scripts[method] = list(answers)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(holds)

    async def answer(self, method: str, request: Message, context: Context) -> Message:
        answer = await self._take(method, request, context)
        assert not isinstance(answer, Sequence)
        return await self._give(method, answer, context)

    async def answer_stream(self, method: str, request: Message, context: Context) -> AsyncIterator[Message]:
        answers = await self._take(method, request, context)
        assert isinstance(answers, Sequence)
        for answer in answers:
            yield await self._give(method, answer, context)

    async def _take(self, method: str, request: Message, context: Context) -> Answer | Stream:
        self.requests.setdefault(method, []).append(request)
        self.remaining_s.setdefault(method, []).append(context.time_remaining())
        self.arrived_s.setdefault(method, []).append(asyncio.get_running_loop().time())
        await self._notify()
        script = self.scripts.get(method)
        if not script:
            assert method == "GetSchema", f"no script for {method}"
            return pb.GetSchemaResponse(schema=schema_to_proto(self.schema))
        return script.pop(0) if len(script) > 1 else script[0]

    async def _give(self, method: str, answer: Answer, context: Context) -> Message:
        if isinstance(answer, Message):
            return answer
        if isinstance(answer, Problem):
            await context.abort(answer.code, answer.message, trailing_metadata(answer, "seqvault.v1"))
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "no details")
        assert isinstance(answer, Hang)
        try:
            never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            return await never
        finally:
            self.cancelled[method] = self.cancelled.get(method, 0) + 1
            await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def _handler(peer: Peer, method: MethodDescriptor) -> "grpc.RpcMethodHandler[Message, Message]":
    parse = GetMessageClass(method.input_type).FromString
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(
            partial(peer.answer_stream, method.name), request_deserializer=parse, response_serializer=_serialize
        )
    return grpc.unary_unary_rpc_method_handler(
        partial(peer.answer, method.name), request_deserializer=parse, response_serializer=_serialize
    )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


@asynccontextmanager
async def serve(peer: Peer, *, port: int = 0) -> AsyncIterator[Peer]:
    service = pb.DESCRIPTOR.services_by_name["SeqVault"]
    handlers = {method.name: _handler(peer, method) for method in service.methods}
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    peer.target = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    peer.server = server
    await server.start()
    try:
        yield peer
    finally:
        await peer.stop()
