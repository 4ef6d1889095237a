"""The calls against a scripted server: what is sent, what comes back."""

from collections.abc import AsyncIterator

import pytest

from laser_client.client import SeqVaultClient
from seqvault.v1 import seqvault_pb2 as pb
from tests.laser_client.histories import SCHEMA
from tests.laser_client.peer import Peer, serve


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with serve(Peer(SCHEMA)) as peer:
        yield peer


@pytest.fixture
async def client(peer: Peer) -> AsyncIterator[SeqVaultClient]:
    async with SeqVaultClient(peer.target) as client:
        yield client


async def test_rows_of_one_user_are_appended_together_in_their_order(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("Append", pb.AppendResponse(lsn=17))
    lsn = await client.append_events(
        [9, 2**64 - 1, 9, 3], {"item": [1, 2, 3, 4], "time_ms": [10, 20, 5, 40], "action": [0, 1, 2, 3]}
    )
    assert lsn == 17
    (sent,) = peer.requests["Append"]
    assert list(sent.user_ids) == [3, 9, 2**64 - 1]
    assert list(sent.event_counts) == [1, 2, 1]
    assert {column.name: column.data for column in sent.columns}["action"] == bytes([3, 0, 2, 1])
    assert (sent.producer_id, sent.sequence) == (client.producer_id, 1)
