"""The shard on an event loop: group commit, exactly-once, background flushing, cutting the log, reads that must wait."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from seqvault_server.storage.append import AppendBatch
from seqvault_server.storage.errors import DamagedHistory, InvalidAppend, ReadOnly
from seqvault_server.storage.files import Files
from seqvault_server.storage.place import offset_of
from seqvault_server.storage.shard import FLUSH_ROWS, Shard, ShardConfig
from seqvault_server.storage.walk import Wanted
from seqvault_server.vault import Vault
from tests.seqvault_server.storage.harness import SCHEMA, SMALL, batch_of, decoded, in_order, make_rows


class ColdFiles(Files):
    """A page cache that never has anything."""

    def read_cached(self, descriptor: int, buffer: bytearray, offset: int) -> int:
        return 0


class FailingFiles(Files):
    """A device that fails a number of syncs of segments."""

    failures = 0

    def sync(self, descriptor: int) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(5, "injected")
        super().sync(descriptor)


@asynccontextmanager
async def vault_of(path: Path, *, config: ShardConfig = SMALL, files: Files | None = None) -> AsyncIterator[Vault]:
    vault = Vault(Shard.open(path, SCHEMA, config=config, files=files))
    try:
        yield vault
    finally:
        await vault.close()


async def items_of(vault: Vault, user: int) -> list[int]:
    rows = decoded(user, await vault.read(user, Wanted()))
    items: list[int] = rows["item_id"].tolist()
    return items


async def test_appends_are_visible_when_they_return_and_numbered_in_order(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    async with vault_of(tmp_path) as vault:

        async def one(step: int) -> int:
            lsn = await vault.append(batch_of([step], [5], make_rows(random, 5, first_item=step * 5)))
            assert await items_of(vault, step) == list(range(step * 5, step * 5 + 5))
            return lsn

        assert await asyncio.gather(*(one(step) for step in range(50))) == list(range(1, 51))


async def test_a_cancelled_append_is_applied_or_not_but_never_by_half(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    async with vault_of(tmp_path) as vault:
        waiting = asyncio.create_task(vault.append(batch_of([1, 2], [5, 5], make_rows(random, 10))))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await vault.append(batch_of([3], [1], make_rows(random, 1)))
        assert (len(await items_of(vault, 1)), len(await items_of(vault, 2))) == (5, 5)


async def test_a_repeated_sequence_gets_the_first_ack(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(3), 5)
    batch = batch_of([1], [5], rows, producer=7, sequence=1)
    async with vault_of(tmp_path) as vault:
        # Two at once: the second one waits for the first.
        assert list(await asyncio.gather(vault.append(batch), vault.append(batch))) == [1, 1]
        assert await vault.append(batch) == 1
        other = batch_of([1], [4], rows[:4], producer=7, sequence=1)
        with pytest.raises(InvalidAppend, match="other content"):
            await vault.append(other)
    async with vault_of(tmp_path) as vault:
        assert await vault.append(batch) == 1
        assert len(await items_of(vault, 1)) == 5


async def test_due_tails_are_flushed_in_the_background(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(4), FLUSH_ROWS)
    async with vault_of(tmp_path) as vault:
        await vault.append(batch_of([1], [FLUSH_ROWS], rows))
        await vault.settle()
        assert vault.shard.tails.rows == 0
        history = await vault.read(1, Wanted())
        assert history.reads == 1
        assert decoded(1, history).tobytes() == rows.tobytes()


async def test_the_tails_are_relieved_before_they_are_full(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    async with vault_of(tmp_path, config=ShardConfig(max_users=1 << 16, tail_bytes=1 << 20)) as vault:
        limit = vault.shard.tails.max_rows
        for step in range(10):
            users = list(range(step * 400, step * 400 + 400))
            await vault.append(batch_of(users, [20] * 400, make_rows(random, 8000)))
            await vault.settle()
            assert vault.shard.tails.rows <= limit // 2
        assert len(await items_of(vault, 17)) == 20


async def test_the_log_is_cut_and_what_it_held_is_still_there(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    config = ShardConfig(max_users=1 << 16, tail_bytes=8 << 20, log_generation_bytes=1 << 16)
    expected: dict[int, list[int]] = {}
    async with vault_of(tmp_path, config=config) as vault:
        for step in range(60):
            users = random.choice(50, 5, replace=False).tolist()
            counts = random.integers(1, 60, 5).tolist()
            rows = make_rows(random, sum(counts), start_ms=1_600_000_000_000 + step * 10**7, first_item=step * 1000)
            await vault.append(batch_of(users, counts, rows))
            for user, part in zip(users, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
                expected.setdefault(user, []).extend(in_order(part)["item_id"].tolist())
        await vault.settle()
        assert vault.shard.log.current.number > 1
        assert len(vault.shard.log.generations) == 1
        for user, items in expected.items():
            assert await items_of(vault, user) == items
    async with vault_of(tmp_path, config=config) as vault:
        for user, items in expected.items():
            assert await items_of(vault, user) == items


async def test_a_cold_read_waits_in_a_thread_and_counts_as_one(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(7), 5000)
    async with vault_of(tmp_path, files=ColdFiles()) as vault:
        await vault.append(batch_of([1], [5000], rows))
        await vault.flush_all()
        histories = await asyncio.gather(*(vault.read(1, Wanted()) for _ in range(20)))
        assert {history.reads for history in histories} == {1}
        assert decoded(1, histories[0]).tobytes() == rows.tobytes()
        assert vault.shard.pins.is_past(vault.shard.pins.now())


async def test_cold_reads_beside_moves_and_deletions_see_one_state_or_the_other(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    async with vault_of(tmp_path, files=ColdFiles()) as vault:
        seen: set[int] = set()
        ended = asyncio.Event()

        async def read_on() -> None:
            while not ended.is_set():
                seen.add(len(await items_of(vault, 1)))
                await asyncio.sleep(0)  # a user who is not there is answered without waiting

        readers = [asyncio.create_task(read_on()) for _ in range(4)]
        for step in range(30):
            await vault.append(batch_of([1], [100], make_rows(random, 100, start_ms=1_600_000_000_000 + step * 10**6)))
            await vault.flush_all()
        assert await vault.delete(1)
        ended.set()
        await asyncio.gather(*readers)
        assert seen <= set(range(0, 3001, 100))
        assert not (await vault.read(1, Wanted())).found
        assert not await vault.delete(1)


async def test_appends_and_deletions_at_once_lose_nothing_acked_after_the_deletion(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    async with vault_of(tmp_path) as vault:
        for step in range(20):
            await asyncio.gather(
                vault.append(batch_of([1], [600], make_rows(random, 600, first_item=step * 10_000))), vault.delete(1)
            )
            marker = make_rows(random, 1, first_item=step * 10_000 + 5_000)
            await vault.append(batch_of([1], [1], marker))
            assert step * 10_000 + 5_000 in await items_of(vault, 1)
            await vault.delete(1)
            assert await items_of(vault, 1) == []
    async with vault_of(tmp_path) as vault:
        assert await items_of(vault, 1) == []


async def test_a_failed_sync_moves_on_to_another_segment(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(10), 2000)
    files = FailingFiles()
    async with vault_of(tmp_path, files=files) as vault:
        await vault.append(batch_of([1], [1000], rows[:1000]))
        await vault.flush_all()
        files.failures = 1
        await vault.append(batch_of([1], [1000], rows[1000:]))
        await vault.flush_all()
        assert len(vault.shard.segments.ids) == 2
        history = await vault.read(1, Wanted())
        assert decoded(1, history).tobytes() == in_order(rows).tobytes()


async def test_a_log_that_fails_makes_the_shard_read_only_and_acks_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    vault = Vault(Shard.open(tmp_path, SCHEMA, config=SMALL))
    await vault.append(batch_of([1], [5], make_rows(random, 5)))
    vault.shard.log.current.close()
    with pytest.raises(ReadOnly, match="writing the log failed"):
        await vault.append(batch_of([1], [5], make_rows(random, 5)))
    with pytest.raises(ReadOnly):
        await vault.append(batch_of([1], [5], make_rows(random, 5)))
    with pytest.raises(ReadOnly):
        await vault.delete(1)
    assert len(await items_of(vault, 1)) == 5
    vault.shard.log.generations.clear()
    await vault.close()
    async with vault_of(tmp_path) as again:
        assert len(await items_of(again, 1)) == 5


async def test_a_journal_that_fails_makes_the_shard_read_only_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(np.random.default_rng(13), FLUSH_ROWS)

    def fail(_entries: object) -> None:
        raise RuntimeError("injected")

    async with vault_of(tmp_path) as vault:
        monkeypatch.setattr(vault.shard.journal, "write", fail)
        await vault.append(batch_of([1], [FLUSH_ROWS], rows))
        await vault.settle()
        assert vault.shard.read_only_cause == "flushing failed: injected"
        with pytest.raises(ReadOnly):
            await vault.append(batch_of([1], [1], rows[:1]))
        assert decoded(1, await vault.read(1, Wanted())).tobytes() == rows.tobytes()
    async with vault_of(tmp_path) as vault:
        assert decoded(1, await vault.read(1, Wanted())).tobytes() == rows.tobytes()


async def test_a_damaged_history_holds_up_nobody_elses_flush_and_can_be_deleted(tmp_path: Path) -> None:
    random = np.random.default_rng(14)
    async with vault_of(tmp_path) as vault:
        await vault.append(batch_of([1, 2], [300, 300], make_rows(random, 600)))
        await vault.flush_all()
        segment = next(vault.shard.segments.directory.glob("*.seg"))
        with segment.open("r+b") as file:
            file.seek(offset_of(vault.shard.index.place_of(1)) + 100)
            file.write(b"damage")
        await vault.append(batch_of([1, 2], [FLUSH_ROWS, FLUSH_ROWS], make_rows(random, 2 * FLUSH_ROWS)))
        await vault.settle()
        assert vault.shard.damaged == {1}
        assert (vault.shard.tails.rows_of(1), vault.shard.tails.rows_of(2)) == (FLUSH_ROWS, 0)
        with pytest.raises(DamagedHistory):
            await vault.read(1, Wanted())
        assert len(await items_of(vault, 2)) == 300 + FLUSH_ROWS
        assert await vault.delete(1)
        await vault.append(batch_of([1], [FLUSH_ROWS], make_rows(random, FLUSH_ROWS)))
        await vault.settle()
        assert len(await items_of(vault, 1)) == FLUSH_ROWS
        assert vault.shard.tails.rows_of(1) == 0


@pytest.mark.parametrize("rows", [1_000, 16_000])
async def test_no_commit_blocks_the_loop(tmp_path: Path, rows: int) -> None:
    """The longest gap between two ticks of the loop, over rounds of three commits each; no user is flushed meanwhile.

    A commit that held the GIL through its fsync, or took the loop too long, would do so in every round; what else runs on
    the machine disturbs some of them. Hence the quietest round counts.
    """
    random = np.random.default_rng(12)
    batches = [
        batch_of(list(range(step * 50, step * 50 + 50)), [rows // 50] * 50, make_rows(random, rows))
        for step in range(100)
    ]
    longest = []
    async with vault_of(tmp_path, config=ShardConfig(max_users=1 << 16, tail_bytes=256 << 20)) as vault:

        async def commit(some: Sequence[AppendBatch]) -> None:
            for batch in some:
                await vault.append(batch)

        await commit(batches[:10])  # kernels are compiled, files exist
        for begin in range(10, 100, 3):
            gaps = await tick_gaps_ms(commit(batches[begin : begin + 3]))
            longest.append(float(gaps.max()))
        assert vault.shard.statistics().flushed_events_total == 0
    print(
        f"longest gaps in rounds of 3 commits of {rows} events, ms: {[round(gap, 2) for gap in sorted(longest)][:10]}"
    )
    assert min(longest) < 1.0


async def tick_gaps_ms(work: Coroutine[object, object, object]) -> npt.NDArray[np.float64]:
    """Times between ticks of the loop while the work runs."""
    task = asyncio.create_task(work)
    ticks = [time.perf_counter()]
    while not task.done():
        await asyncio.sleep(0)
        ticks.append(time.perf_counter())
    await task
    return np.diff(ticks) * 1000
