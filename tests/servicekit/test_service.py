"""Handlers behind a real server: what the peer gets, what is counted."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo  # type: ignore[import-untyped]

from servicekit.listen import ListenConfig
from servicekit.metrics import ServerMetrics
from servicekit.runner import serving
from servicekit.service import handlers
from tests.servicekit.conftest import CONFIG, Running
from tests.servicekit.echo import (
    ECHO,
    ERRORS,
    MAX_REQUEST_BYTES,
    EchoApplication,
    EchoReply,
    EchoRequest,
    repeat,
    request_bytes,
    say,
    status_of,
)

TIMEOUT_S = 20.0


async def _refusal(channel: grpc.aio.Channel, raw: bytes) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(channel)(raw, timeout=TIMEOUT_S)
    return caught.value


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = ErrorInfo()
    assert status_of(error).details[0].Unpack(info)
    assert info.domain == "servicekit.tests"
    return str(info.reason)


def _field(error: grpc.aio.AioRpcError) -> str:
    violations = BadRequest()
    assert status_of(error).details[1].Unpack(violations)
    return str(violations.field_violations[0].field)


async def test_unary_replies_and_is_counted(running: Running) -> None:
    reply = await say(running.channel)(request_bytes("hello"), timeout=TIMEOUT_S)
    assert reply.text == "hello"
    assert running.application.handled("Say", "OK") == 1
    assert running.application.handled("Say", "Internal") == 0


async def test_stream_replies_and_is_counted_once(running: Running) -> None:
    texts = [reply.text async for reply in repeat(running.channel)(EchoRequest(text="again"), timeout=TIMEOUT_S)]
    assert texts == ["first", "again"]
    assert running.application.handled("Repeat", "OK") == 1


@pytest.mark.parametrize("text", ["busy", "very busy"])
async def test_error_of_the_table_arrives_with_details(running: Running, text: str) -> None:
    error = await _refusal(running.channel, request_bytes(text))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "busy with tests")
    assert (_reason(error), _field(error)) == ("BUSY", "text")
    assert status_of(error).code == 14
    assert running.application.handled("Say", "Unavailable") == 1


async def test_error_in_mid_stream_arrives_after_the_first_reply(running: Running) -> None:
    call = repeat(running.channel)(EchoRequest(text="busy"), timeout=TIMEOUT_S)
    assert (await call.read()).text == "first"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert _reason(caught.value) == "BUSY"
    assert running.application.handled("Repeat", "Unavailable") == 1


async def test_bug_is_neutral_to_the_peer_and_traced_in_the_log(running: Running) -> None:
    with structlog.testing.capture_logs() as logs:
        error = await _refusal(running.channel, request_bytes("bug"))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert _reason(error) == "INTERNAL"
    (log,) = logs
    assert (log["log_level"], log["method"]) == ("error", "Say")
    assert isinstance(log["exc_info"], KeyError)
    assert log["exc_info"].__traceback__ is not None


async def test_reply_of_another_type_is_a_bug(running: Running) -> None:
    error = await _refusal(running.channel, request_bytes("wrong type"))
    assert error.code() == grpc.StatusCode.INTERNAL


async def test_malformed_bytes_are_refused(running: Running) -> None:
    error = await _refusal(running.channel, b"\xff\xff")
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (_reason(error), _field(error)) == ("MALFORMED_MESSAGE", "EchoRequest")


async def test_request_at_the_limit_is_served(running: Running) -> None:
    raw = request_bytes("x" * (MAX_REQUEST_BYTES - 3))
    assert len(raw) == MAX_REQUEST_BYTES
    assert (await say(running.channel)(raw, timeout=TIMEOUT_S)).text


async def test_request_above_the_limit_is_refused_without_parsing(running: Running) -> None:
    error = await _refusal(running.channel, b"\xff" * (MAX_REQUEST_BYTES + 1))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "EchoRequest has 1001 bytes, the limit is 1000"
    assert (_reason(error), _field(error)) == ("MESSAGE_TOO_LARGE", "EchoRequest")
    assert running.application.handled("Say", "ResourceExhausted") == 1


async def test_transport_refuses_what_is_above_the_hard_limit(running: Running) -> None:
    assert _reason(await _refusal(running.channel, b"\xff" * 4 * MAX_REQUEST_BYTES)) == "MESSAGE_TOO_LARGE"
    error = await _refusal(running.channel, b"\xff" * (4 * MAX_REQUEST_BYTES + 1))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of(error) is None


async def test_code_that_a_handler_sets_is_counted(running: Running) -> None:
    error = await _refusal(running.channel, request_bytes("set code"))
    assert error.code() == grpc.StatusCode.OUT_OF_RANGE
    assert running.application.handled("Say", "OutOfRange") == 1


async def test_abort_by_a_handler_is_counted_with_its_code(running: Running) -> None:
    error = await _refusal(running.channel, request_bytes("abort"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "aborted")
    await running.application.metrics.idle()  # `abort` tells the peer before it unwinds the handler
    assert running.application.handled("Say", "NotFound") == 1


@pytest.mark.parametrize("method", ["Say", "Repeat"])
async def test_cancellation_reaches_the_handler(method: str) -> None:
    application = EchoApplication()
    async with (
        serving(application, config=CONFIG) as ports,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
    ):
        if method == "Say":
            call = say(channel)(request_bytes("wait"), timeout=TIMEOUT_S)
        else:
            call = repeat(channel)(EchoRequest(text="wait"))  # without a deadline, which must not count as a missed one
            await call.read()
        await application.echo.entered.wait()
        assert application.metrics.in_flight == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read() if method == "Repeat" else await call
    assert application.echo.left == ["wait"]
    assert application.metrics.in_flight == 0
    assert application.handled(method, "Canceled") == 1


async def test_call_beyond_its_deadline_is_counted_so() -> None:
    application = EchoApplication()
    async with (
        serving(application, config=CONFIG) as ports,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(channel)(request_bytes("wait"), timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert application.echo.left == ["wait"]
    assert application.handled("Say", "DeadlineExceeded") == 1


class _MissingRepeat:
    async def Say(self, request: Any, context: Any) -> Any: ...  # noqa: N802


class _PlainSay:
    def Say(self, request: Any, context: Any) -> Any: ...  # noqa: N802


class _RepeatReturns(_MissingRepeat):
    async def Repeat(self, request: Any, context: Any) -> Any: ...  # noqa: N802


@pytest.mark.parametrize(
    ("servicer", "problem"),
    [
        (_MissingRepeat(), "_MissingRepeat.Repeat is missing"),
        (_PlainSay(), "_PlainSay.Say must be `async def`"),
        (_RepeatReturns(), "_RepeatReturns.Repeat must be an async generator"),
    ],
)
def test_servicer_that_does_not_fit_is_refused_at_registration(servicer: object, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        handlers(ECHO, servicer, errors=ERRORS, metrics=ServerMetrics(), max_request_bytes=1)


class _PassThrough(grpc.aio.ServerInterceptor):
    """The least that an interceptor doing errors and counts would have to do."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        served = handler.unary_unary

        async def call(request: Any, context: Any) -> Any:
            return await served(request, context)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


async def _microseconds_per_call(server: grpc.aio.Server, calls: int) -> float:
    """CPU of client and server together: only differences mean something."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method, raw = say(channel), request_bytes("hello")
        for _ in range(50):
            await method(raw, timeout=TIMEOUT_S)
        began = time.process_time()
        for _ in range(calls):
            await method(raw, timeout=TIMEOUT_S)
        spent = time.process_time() - began
    await server.stop(None)
    return spent / calls * 1e6


async def test_cost_of_the_wrapper_is_printed() -> None:
    """Printed, not judged (`pytest -s`): bare handlers, ours, and a pass-through interceptor, interleaved."""
    application = EchoApplication()
    (ours,) = (await application(ServerMetrics())).handlers
    bare = grpc.method_handlers_generic_handler(
        ECHO.full_name,
        {
            "Say": grpc.unary_unary_rpc_method_handler(
                application.echo.Say, EchoRequest.FromString, EchoReply.SerializeToString
            )
        },
    )
    costs: dict[str, list[float]] = {"bare": [], "wrapped": [], "interceptor": []}
    for _ in range(3):
        for name, handler, interceptors in (
            ("bare", bare, []),
            ("wrapped", ours, []),
            ("interceptor", bare, [_PassThrough()]),
        ):
            server = grpc.aio.server(handlers=[handler], interceptors=interceptors)
            costs[name].append(await _microseconds_per_call(server, calls=200))
    print({name: f"{min(each):.0f} us" for name, each in costs.items()})
    # 3 rounds of 50 + 200 calls, every one counted.
    assert application.handled("Say", "OK") == 750


def test_config_of_the_fixture_matches_the_servicer() -> None:
    assert ListenConfig(max_request_bytes=MAX_REQUEST_BYTES) == CONFIG
