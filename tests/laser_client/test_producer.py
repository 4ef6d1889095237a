"""Sequences: never two alike, and never one that the server's window has left behind."""

import asyncio

import pytest

from laser_client.client import SeqVaultClient
from laser_client.errors import DeadlineExceeded
from laser_client.producer import MAX_IN_FLIGHT, WINDOW, Sequences
from seqvault.v1 import seqvault_pb2 as pb
from tests.laser_client.peer import Hang, Peer

EVENT = {"item": [1], "time_ms": [2], "action": [3]}


async def _settled() -> None:
    """Lets every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_numbers_go_out_in_order_of_asking_while_there_is_room() -> None:
    sequences = Sequences(first=10)
    asking = [asyncio.ensure_future(sequences.take()) for _ in range(MAX_IN_FLIGHT + 2)]
    await _settled()
    assert [task.result() for task in asking if task.done()] == list(range(10, 10 + MAX_IN_FLIGHT))
    sequences.release(12)
    await _settled()
    assert [task.done() for task in asking[-2:]] == [True, False]
    sequences.release(10)
    assert await asking[-1] == 10 + MAX_IN_FLIGHT + 1


async def test_a_straggler_holds_the_window() -> None:
    sequences = Sequences()
    straggler = await sequences.take()
    for _ in range(WINDOW - 1):
        sequences.release(await sequences.take())
    beyond = asyncio.ensure_future(sequences.take())
    await _settled()
    assert not beyond.done()
    sequences.release(straggler)
    assert await beyond == straggler + WINDOW


async def test_one_who_stops_waiting_leaves_no_gap() -> None:
    sequences = Sequences()
    for _ in range(MAX_IN_FLIGHT):
        await sequences.take()
    first, second = (asyncio.ensure_future(sequences.take()) for _ in range(2))
    await _settled()
    first.cancel()
    sequences.release(1)
    assert await second == MAX_IN_FLIGHT + 1


async def test_client_keeps_few_appends_in_flight_and_waits_no_longer_than_its_deadline(
    peer: Peer, client: SeqVaultClient
) -> None:
    await client.get_schema()
    peer.script("Append", Hang())
    appends = [asyncio.ensure_future(client.append([1], [1], EVENT, timeout_s=60)) for _ in range(MAX_IN_FLIGHT)]
    await peer.until(lambda: len(peer.requests.get("Append", ())) == MAX_IN_FLIGHT)
    with pytest.raises(DeadlineExceeded):
        await client.append([1], [1], EVENT, timeout_s=0.05)
    assert len(peer.requests["Append"]) == MAX_IN_FLIGHT

    peer.script("Append", pb.AppendResponse(lsn=3))
    appends[0].cancel()
    assert await client.append([1], [1], EVENT) == 3
    assert sorted(sent.sequence for sent in peer.requests["Append"]) == list(range(1, MAX_IN_FLIGHT + 2))
    for append in appends:
        append.cancel()
    await asyncio.gather(*appends, return_exceptions=True)
