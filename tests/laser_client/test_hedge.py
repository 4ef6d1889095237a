"""Hedged reads: when a second read is sent, whose reply counts, and how many there may be."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from laser_client.client import SeqVaultClient
from laser_client.config import ClientConfig
from laser_client.errors import DeadlineExceeded
from laser_client.hedge import MIN_SAMPLES, READS_PER_HEDGE, WINDOW, Hedge, RecentQuantile
from seqvault.v1 import seqvault_pb2 as pb
from tests.laser_client.histories import SCHEMA, blocks_reply, make_rows
from tests.laser_client.peer import Hang, Peer, serve


def test_quantile_is_unknown_before_enough_samples() -> None:
    quantile = RecentQuantile(0.95)
    for sample in range(MIN_SAMPLES - 1):
        quantile.add(sample)
    assert quantile.value is None
    quantile.add(MIN_SAMPLES - 1)
    assert quantile.value == pytest.approx(np.quantile(np.arange(MIN_SAMPLES), 0.95))


def test_quantile_forgets_what_is_old() -> None:
    quantile = RecentQuantile(0.95)
    for _ in range(WINDOW):
        quantile.add(1000.0)
    for _ in range(WINDOW):
        quantile.add(1.0)
    assert quantile.value == 1.0


async def _answered() -> str:
    return "quick"


async def _never() -> str:
    never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    return await never


async def _failed() -> str:
    raise RuntimeError("failed")


async def _trained() -> Hedge:
    hedge = Hedge(is_enabled=True)
    for _ in range(MIN_SAMPLES):
        await hedge.run(_answered)
    return hedge


def _starts(*attempts: Callable[[], Awaitable[str]]) -> Callable[[], Awaitable[str]]:
    waiting = list(attempts)

    def start() -> Awaitable[str]:
        return waiting.pop(0)()

    return start


async def test_slow_read_is_overtaken() -> None:
    hedge = await _trained()
    assert await hedge.run(_starts(_never, _answered)) == "quick"
    assert (hedge.sent, hedge.won) == (1, 1)


async def test_failed_hedge_leaves_the_first_read_alone() -> None:
    hedge = await _trained()
    begun = asyncio.Event()
    release = asyncio.Event()

    async def slow() -> str:
        begun.set()
        await release.wait()
        return "slow"

    async def fails_then_releases() -> str:
        release.set()
        return await _failed()

    assert await hedge.run(_starts(slow, fails_then_releases)) == "slow"
    assert (hedge.sent, hedge.won) == (1, 0)


async def test_if_both_fail_the_first_failure_is_told() -> None:
    hedge = await _trained()
    release = asyncio.Event()

    async def fails_late() -> str:
        await release.wait()
        raise LookupError("first")

    async def fails_at_once() -> str:
        release.set()
        return await _failed()

    with pytest.raises(LookupError, match="first"):
        await hedge.run(_starts(fails_late, fails_at_once))


async def test_read_that_fails_at_once_is_not_hedged() -> None:
    hedge = await _trained()
    with pytest.raises(RuntimeError):
        await hedge.run(_starts(_failed, _answered))
    assert hedge.sent == 0


async def test_failed_reads_are_not_timed() -> None:
    hedge = Hedge(is_enabled=True)
    for _ in range(MIN_SAMPLES):
        with pytest.raises(RuntimeError):
            await hedge.run(_failed)
    assert hedge.latency_s.value is None


async def test_hedges_are_at_most_a_twentieth_of_the_reads() -> None:
    hedge = await _trained()
    for _ in range(MIN_SAMPLES // READS_PER_HEDGE):
        assert await hedge.run(_starts(_never, _answered)) == "quick"

    async def slow() -> str:
        await asyncio.sleep(0.05)  # a latency, far above the quick reads'
        return "slow"

    assert await hedge.run(_starts(slow, _answered)) == "slow"
    assert hedge.sent == MIN_SAMPLES // READS_PER_HEDGE


async def _read_often(client: SeqVaultClient, peer: Peer) -> None:
    peer.script("GetHistory", blocks_reply(1, make_rows(5)))
    for _ in range(MIN_SAMPLES):
        await client.get_history(1)
    peer.requests.clear()


async def test_slow_read_is_sent_twice_and_the_loser_is_cancelled(peer: Peer, client: SeqVaultClient) -> None:
    await _read_often(client, peer)
    peer.script("GetHistory", Hang(), blocks_reply(1, make_rows(9)))
    assert (await client.get_history(1, timeout_s=30)).event_count == 9
    first, second = peer.requests["GetHistory"]
    assert first == second
    await peer.until(lambda: peer.cancelled.get("GetHistory") == 1)
    assert client.statistics().hedges_won == 1


async def test_hedge_goes_to_another_server() -> None:
    async with (
        serve(Peer(SCHEMA)) as one,
        serve(Peer(SCHEMA)) as other,
        SeqVaultClient(f"ipv4:{one.target},{other.target}") as client,
    ):
        for peer in (one, other):
            peer.script("GetHistory", pb.GetHistoryResponse())
        while not (one.requests.get("GetHistory") and other.requests.get("GetHistory")):
            await client.get_history(1)
        for _ in range(MIN_SAMPLES):
            await client.get_history(1)
        one.script("GetHistory", Hang())
        for _ in range(2):  # in turn: one of the two begins at the silent server
            await client.get_history(1, timeout_s=30)
        await one.until(lambda: one.cancelled.get("GetHistory", 0) > 0)
        assert client.statistics().hedges_won > 0


async def test_no_hedge_where_switched_off(peer: Peer) -> None:
    async with SeqVaultClient(peer.target, ClientConfig(is_hedging=False)) as client:
        await _read_often(client, peer)
        peer.script("GetHistory", Hang())
        with pytest.raises(DeadlineExceeded):
            await client.get_history(1, timeout_s=0.2)
        assert len(peer.requests["GetHistory"]) == 1
