"""A cancelled call ends, even where gRPC reports the cancellation as a status that would be worth a retry."""

import asyncio

import grpc
import pytest

from laser_client.retry import Attempts


async def test_a_cancelled_call_is_not_retried() -> None:
    attempts_made = 0
    waiting = asyncio.Event()

    async def attempt() -> None:
        nonlocal attempts_made
        attempts_made += 1
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            no_metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, no_metadata, no_metadata) from None

    call = asyncio.create_task(Attempts(60.0).run(attempt, is_repeatable=True))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert attempts_made == 1
