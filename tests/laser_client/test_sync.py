"""The wrapper for threads: the same calls and errors, and nothing left behind."""

import asyncio
import inspect
import threading

import numpy as np
import pytest

from laser_client.client import SeqVaultClient
from laser_client.errors import InvalidRequest
from laser_client.sync import SyncSeqVaultClient
from seqvault.v1 import seqvault_pb2 as pb
from tests.laser_client.histories import blocks_reply, make_rows
from tests.laser_client.peer import Hang, Peer


def _public(kind: type) -> dict[str, list[inspect.Parameter]]:
    return {
        name: list(inspect.signature(member).parameters.values())
        for name, member in vars(kind).items()
        if not name.startswith("_") and callable(member)
    }


def test_both_clients_have_the_same_methods() -> None:
    assert _public(SyncSeqVaultClient) == _public(SeqVaultClient)


async def test_calls_work_from_a_plain_thread(peer: Peer) -> None:
    rows = make_rows(12)
    peer.script("Append", pb.AppendResponse(lsn=4))
    peer.script("GetHistory", blocks_reply(1, rows))
    peer.script("DeleteUser", pb.DeleteUserResponse(found=True))
    peer.script("PutItems", pb.PutItemsResponse(version=2))
    peer.script("GetItems", pb.GetItemsResponse(version=2))

    def work() -> None:
        with SyncSeqVaultClient(peer.target) as client:
            assert client.append([1], [1], {"item": [1], "time_ms": [2], "action": [3]}) == 4
            assert client.append_events([1], {"item": [1], "time_ms": [2], "action": [3]}) == 4
            np.testing.assert_array_equal(client.get_history(1).columns["item"], rows["item"])
            assert client.delete_user(1).found
            assert client.put_items([], {}) == 2
            assert client.get_items([]).version == 2
            assert client.get_schema().version == 1
            assert client.statistics().retries == 0
            with pytest.raises(InvalidRequest):
                client.get_history(-1)

    await asyncio.to_thread(work)
    assert {sent.producer_id for sent in peer.requests["Append"]} != {0}
    assert [sent.sequence for sent in peer.requests["Append"]] == [1, 2]


async def test_leaving_a_batch_early_cancels_it(peer: Peer) -> None:
    peer.script("BatchGetHistory", [pb.BatchGetHistoryResponse(histories=[pb.UserHistory(user_id=7)]), Hang()])

    def work() -> int:
        with SyncSeqVaultClient(peer.target) as client:
            histories = client.batch_get_history([7, 8])
            user = next(histories).user_id
            histories.close()  # type: ignore[attr-defined]  # an iterator by its type, a generator in fact
            return user

    assert await asyncio.to_thread(work) == 7
    await peer.until(lambda: peer.cancelled.get("BatchGetHistory") == 1)


async def test_whole_batch_is_read(peer: Peer) -> None:
    messages = [pb.BatchGetHistoryResponse(histories=[pb.UserHistory(user_id=user)]) for user in (7, 8)]
    peer.script("BatchGetHistory", messages)

    def work() -> list[int]:
        with SyncSeqVaultClient(peer.target) as client:
            return [history.user_id for history in client.batch_get_history([7, 8])]

    assert await asyncio.to_thread(work) == [7, 8]


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    client = SyncSeqVaultClient("127.0.0.1:1")
    assert threading.active_count() > before
    client.close()
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "seqvault-client"]
    with pytest.raises(InvalidRequest):
        SyncSeqVaultClient("")
    assert not [thread for thread in threading.enumerate() if thread.name == "seqvault-client"]
