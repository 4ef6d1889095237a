"""What fails, against a scripted server: typed errors, deadlines, retries, and the promise that a retry repeats nothing."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

from laser_client.client import SeqVaultClient
from laser_client.config import ClientConfig, Timeouts
from laser_client.errors import (
    DataCorrupted,
    DeadlineExceeded,
    InvalidRequest,
    NotAvailable,
    Overloaded,
    PermissionDenied,
    SeqVaultError,
    ServerBug,
)
from seqvault.v1 import seqvault_pb2 as pb
from servicekit.errors import Problem
from tests.laser_client.histories import SCHEMA, blocks_reply, make_rows
from tests.laser_client.peer import Hang, Peer, serve

Call = Callable[[SeqVaultClient], Coroutine[Any, Any, object]]

EVENT = {"item": [1], "time_ms": [2], "action": [3]}


def shed(retry_after_ms: int | None = None) -> Problem:
    return Problem(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="TAILS_FULL", message="full", retry_after_ms=retry_after_ms
    )


async def _append(client: SeqVaultClient) -> int:
    return await client.append([1], [1], EVENT, timeout_s=5)


async def _read(client: SeqVaultClient) -> object:
    return await client.get_history(1, timeout_s=5)


async def _delete(client: SeqVaultClient) -> object:
    return await client.delete_user(1, timeout_s=5)


async def _put(client: SeqVaultClient) -> object:
    return await client.put_items([1], {}, timeout_s=5)


async def _get_items(client: SeqVaultClient) -> object:
    return await client.get_items([], timeout_s=5)


REPLY_OF = {
    "Append": pb.AppendResponse(lsn=1),
    "GetHistory": pb.GetHistoryResponse(),
    "DeleteUser": pb.DeleteUserResponse(),
    "PutItems": pb.PutItemsResponse(),
    "GetItems": pb.GetItemsResponse(),
}
REPEATABLE: list[tuple[str, Call]] = [("Append", _append), ("GetHistory", _read), ("GetItems", _get_items)]
OTHER_WRITES: list[tuple[str, Call]] = [("DeleteUser", _delete), ("PutItems", _put)]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.FAILED_PRECONDITION, InvalidRequest),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNAUTHENTICATED, PermissionDenied),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.DATA_LOSS, DataCorrupted),
        (grpc.StatusCode.INTERNAL, ServerBug),
        (grpc.StatusCode.UNIMPLEMENTED, ServerBug),
    ],
)
async def test_status_becomes_the_error_to_act_on(
    peer: Peer, client: SeqVaultClient, code: grpc.StatusCode, kind: type[SeqVaultError]
) -> None:
    peer.script("GetHistory", Problem(code=code, reason="SOME_REASON", message="no good", field="query.view"))
    with pytest.raises(SeqVaultError) as caught:
        await client.get_history(1)
    error = caught.value
    assert type(error) is kind
    assert (error.reason, error.field, error.message) == ("SOME_REASON", "query.view", "no good")
    assert error.retry_after_ms is None
    assert len(peer.requests["GetHistory"]) == 1


async def test_status_without_details_is_typed_too(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetHistory", grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(InvalidRequest) as caught:
        await client.get_history(1)
    assert (caught.value.reason, caught.value.field) == ("", "")


async def test_reply_larger_than_allowed_is_no_overload(peer: Peer) -> None:
    peer.script("GetHistory", blocks_reply(1, make_rows(1_000)))
    async with SeqVaultClient(peer.target, ClientConfig(max_receive_bytes=1_000)) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.get_history(1)
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


@pytest.mark.parametrize(("method", "call"), [*REPEATABLE, *OTHER_WRITES])
async def test_every_call_carries_its_deadline_and_its_cancellation(
    peer: Peer, client: SeqVaultClient, method: str, call: Call
) -> None:
    await client.get_schema()
    peer.script(method, Hang())
    task = asyncio.ensure_future(call(client))
    await peer.until(lambda: method in peer.requests)
    (remaining_s,) = peer.remaining_s[method]
    assert remaining_s is not None
    assert 4 < remaining_s < 5.2
    task.cancel()
    await peer.until(lambda: peer.cancelled.get(method) == 1)


async def test_default_deadline_is_the_configs(peer: Peer) -> None:
    peer.script("GetHistory", Hang())
    async with SeqVaultClient(peer.target, ClientConfig(timeouts=Timeouts(get_history_s=0.5))) as client:
        with pytest.raises(DeadlineExceeded):
            await client.get_history(1)
    assert len(peer.requests["GetHistory"]) == 1


async def test_schema_that_never_comes_ends_at_the_deadline_of_the_call(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetSchema", Hang())
    with pytest.raises(DeadlineExceeded):
        await client.append([1], [1], EVENT, timeout_s=0.05)
    assert "Append" not in peer.requests


@pytest.mark.parametrize(("method", "call"), REPEATABLE)
@pytest.mark.parametrize(
    "failure", [grpc.StatusCode.UNAVAILABLE, shed(1)], ids=["unavailable", "exhausted with a hint"]
)
async def test_repeatable_call_is_retried(
    peer: Peer, client: SeqVaultClient, method: str, call: Call, failure: grpc.StatusCode | Problem
) -> None:
    peer.script(method, failure, failure, REPLY_OF[method])
    await call(client)
    assert len(peer.requests[method]) == 3
    assert client.statistics().retries == 2


@pytest.mark.parametrize(("method", "call"), OTHER_WRITES)
async def test_write_that_may_have_happened_is_not_retried(
    peer: Peer, client: SeqVaultClient, method: str, call: Call
) -> None:
    peer.script(method, grpc.StatusCode.UNAVAILABLE, REPLY_OF[method])
    with pytest.raises(NotAvailable):
        await call(client)
    assert len(peer.requests[method]) == 1


@pytest.mark.parametrize(("method", "call"), OTHER_WRITES)
async def test_write_that_the_server_refused_is_retried(
    peer: Peer, client: SeqVaultClient, method: str, call: Call
) -> None:
    peer.script(method, shed(1), REPLY_OF[method])
    await call(client)
    assert len(peer.requests[method]) == 2


async def test_retried_append_keeps_its_sequence(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("Append", grpc.StatusCode.UNAVAILABLE, shed(1), grpc.StatusCode.UNAVAILABLE, pb.AppendResponse())
    await _append(client)
    await _append(client)
    sent = peer.requests["Append"]
    assert [request.sequence for request in sent] == [1, 1, 1, 1, 2]
    assert sent[0] == sent[1] == sent[2] == sent[3]


async def test_overload_without_a_hint_is_not_retried(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetHistory", shed(), REPLY_OF["GetHistory"])
    with pytest.raises(Overloaded) as caught:
        await client.get_history(1)
    assert caught.value.retry_after_ms is None


async def test_hint_is_waited_for(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetHistory", shed(120), REPLY_OF["GetHistory"])
    await client.get_history(1, timeout_s=5)
    first, second = peer.arrived_s["GetHistory"]
    assert second - first >= 0.12


async def test_hint_beyond_the_deadline_ends_the_call_at_once(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetHistory", shed(3_600_000))
    with pytest.raises(Overloaded) as caught:
        await client.get_history(1)
    assert caught.value.retry_after_ms == 3_600_000
    assert len(peer.requests["GetHistory"]) == 1


async def test_server_that_never_comes_is_not_available() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with SeqVaultClient(f"127.0.0.1:{port}") as client:
        # Of the last attempt: it may have been one that had hardly any time left.
        with pytest.raises((NotAvailable, DeadlineExceeded), match="connect"):
            await client.get_history(1, timeout_s=0.3)
        assert client.statistics().retries > 0


async def test_call_outlives_a_restart_of_the_server(peer: Peer) -> None:
    async with serve(Peer(SCHEMA)) as first, SeqVaultClient(first.target) as client:
        await client.get_schema()
        port = int(first.target.rpartition(":")[2])
        first.script("Append", Hang())
        append = asyncio.ensure_future(client.append([1], [1], EVENT, timeout_s=30))
        await first.until(lambda: "Append" in first.requests)
        await first.stop()
        async with serve(Peer(SCHEMA), port=port) as second:
            second.script("Append", pb.AppendResponse(lsn=5))
            assert await append == 5
            assert second.requests["Append"] == first.requests["Append"]


async def test_retries_end_at_the_deadline_of_the_call(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetHistory", grpc.StatusCode.UNAVAILABLE)
    with pytest.raises((NotAvailable, DeadlineExceeded), match="no details"):
        await client.get_history(1, timeout_s=0.4)
    arrived_s = peer.arrived_s["GetHistory"]
    assert len(arrived_s) > 2
    assert arrived_s[-1] - arrived_s[0] < 0.4


async def test_broken_stream_is_taken_up_where_it_broke(peer: Peer, client: SeqVaultClient) -> None:
    def message(*users: int) -> pb.BatchGetHistoryResponse:
        return pb.BatchGetHistoryResponse(histories=[pb.UserHistory(user_id=user) for user in users])

    peer.script(
        "BatchGetHistory",
        [grpc.StatusCode.UNAVAILABLE],
        [message(1, 2), message(3), grpc.StatusCode.UNAVAILABLE],
        [message(4), message(5)],
    )
    assert [history.user_id async for history in client.batch_get_history([1, 2, 3, 4, 5])] == [1, 2, 3, 4, 5]
    assert [list(sent.user_ids) for sent in peer.requests["BatchGetHistory"]] == [[1, 2, 3, 4, 5]] * 2 + [[4, 5]]


async def test_leaving_a_stream_cancels_it(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("BatchGetHistory", [pb.BatchGetHistoryResponse(histories=[pb.UserHistory(user_id=1)]), Hang()])
    histories = client.batch_get_history([1, 2])
    await anext(histories)
    await histories.aclose()
    await peer.until(lambda: peer.cancelled.get("BatchGetHistory") == 1)


async def test_stream_that_stalls_ends_at_its_deadline(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("BatchGetHistory", [Hang()])
    with pytest.raises(DeadlineExceeded):
        await anext(client.batch_get_history([1], timeout_s=0.05))
