"""What is there again after a crash: everything acked, nothing twice, nothing invented, in order."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rocksdict import DbClosedError

from seqvault_server.storage.errors import DataDirectoryError, InvalidAppend, SequenceTooOld
from seqvault_server.storage.producers import WINDOW, Producers
from seqvault_server.storage.shard import Shard
from tests.seqvault_server.storage.harness import (
    SCHEMA,
    Rows,
    append,
    batch_of,
    decoded,
    flush,
    in_order,
    make_rows,
    opened,
    read,
)


def write_ahead_log(data: Path) -> Path:
    """RocksDB's log file of the newest generation."""
    newest = max((data / "log").iterdir())
    return max(newest.glob("*.log"))


def test_a_torn_log_keeps_the_acked_prefix(tmp_path: Path) -> None:
    """The log, cut at every length between the last sync and the unsynced end: at each, all that was acked is there."""
    random = np.random.default_rng(1)
    live, acked = tmp_path / "live", []
    with opened(live) as shard:
        for step in range(5):
            rows = make_rows(random, 20, first_item=step * 20)
            append(shard, batch_of([1, 2], [10, 10], rows))
            acked.append(rows)
        synced_bytes = write_ahead_log(live).stat().st_size
        last = make_rows(random, 20, first_item=100)
        group = shard.begin_group([batch_of([1, 2], [10, 10], last)])
        shard.log.current.append([(lsn, record.to_bytes()) for lsn, record in group.records])
        shard.log.current.sync()
        full_bytes = write_ahead_log(live).stat().st_size
        assert full_bytes > synced_bytes + 100
        shutil.copytree(live, tmp_path / "whole")
    outcomes = set()
    for length in range(synced_bytes, full_bytes + 1):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "whole", copy)
        with write_ahead_log(copy).open("r+b") as log:
            log.truncate(length)
        with opened(copy) as shard:
            items = [decoded(user, read(shard, user))["item_id"].tolist() for user in (1, 2)]
        shutil.rmtree(copy)
        kept = [np.concatenate([*acked, *tail]) for tail in ([], [last])]
        expected = [[_items_of(rows, 0), _items_of(rows, 1)] for rows in kept]
        assert items in expected, f"cut at {length}"
        outcomes.add(expected.index(items))
    assert outcomes == {0, 1}, "the last group is there as a whole or not at all"


def _items_of(rows: Rows, position: int) -> list[int]:
    """Items of the user at that position of each call of ten rows a user."""
    calls = rows.reshape(-1, 2, 10)[:, position].ravel()
    items: list[int] = in_order(calls)["item_id"].tolist()
    return items


def test_a_crash_after_the_data_but_before_the_journal_loses_and_repeats_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    rows = make_rows(random, 3000)
    shard = Shard.open(tmp_path, SCHEMA)
    append(shard, batch_of([1], [1500], rows[:1500]))
    flush(shard)
    append(shard, batch_of([1], [1500], rows[1500:]))
    plan, _ = shard.plan_flush([1])
    assert plan is not None
    shard.journal.close()
    with pytest.raises(DbClosedError):
        shard.write_flush(plan)
    shard.log.close()
    shard.segments.close()
    shard.directory.close()
    with opened(tmp_path) as again:
        assert decoded(1, read(again, 1)).tobytes() == rows.tobytes()


def test_rows_that_were_flushed_are_not_replayed_and_later_ones_are(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = make_rows(random, 900)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1, 2], [300, 300], rows[:600]))
        flush(shard, [1])
        append(shard, batch_of([1], [300], rows[600:]))
    with opened(tmp_path) as shard:
        assert shard.tails.rows_of(1) == 300
        assert shard.tails.rows_of(2) == 300
        assert len(decoded(1, read(shard, 1))) == 600


def test_a_log_generation_can_go_once_its_rows_are_flushed_or_carried(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    rows = make_rows(random, 510)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1, 2], [500, 5], rows[:505], producer=9, sequence=1))
        generation = shard.log.make_next()
        cut_lsn = shard.switch_log(generation)
        group = shard.begin_group([])
        group.records[:0] = shard.producer_records()
        shard.log_group(group)
        for _ in shard.apply_group(group):
            pass
        users, cursor = shard.tails.find(0, limit=10, max_lsn=cut_lsn)
        flushed, carried = shard.split_for_cut(users.tolist())
        assert (flushed, carried, cursor) == ([1], [2], 0)
        flush(shard, flushed)
        group = shard.begin_group([], carried=shard.tails.copy(np.array(carried, np.uint64)))
        shard.log_group(group)
        for _ in shard.apply_group(group):
            pass
        assert not len(shard.tails.find(0, limit=10, max_lsn=cut_lsn)[0])
        # A crash here, with both generations: the carried rows replace the ones that they are copies of.
        shutil.copytree(tmp_path, tmp_path.with_name("both"))
        for old in shard.log.take_older():
            shard.log.drop(old)
        append(shard, batch_of([2], [5], rows[505:]))
    for path in (tmp_path, tmp_path.with_name("both")):
        with opened(path) as shard:
            expected = rows[500:510] if path == tmp_path else rows[500:505]
            assert decoded(2, read(shard, 2)).tobytes() == in_order(expected).tobytes()
            assert decoded(1, read(shard, 1)).tobytes() == rows[:500].tobytes()
            digest = batch_of([1, 2], [500, 5], rows[:505], producer=9, sequence=1).digest
            assert shard.producers.seen(9, 1, digest) == 1


def test_recovery_can_be_interrupted_and_run_again(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    rows = make_rows(random, 2000)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [1000], rows[:1000]))
        flush(shard)
        append(shard, batch_of([1], [1000], rows[1000:]))
    for _ in range(3):
        with opened(tmp_path) as shard:
            assert decoded(1, read(shard, 1)).tobytes() == rows.tobytes()
            assert shard.next_lsn == 3


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [100], make_rows(np.random.default_rng(6), 100)))
        flush(shard)
    next((tmp_path / "segments").glob("*.seg")).unlink()
    with pytest.raises(DataDirectoryError, match=r"segments \[1\] are missing"):
        Shard.open(tmp_path, SCHEMA)


def test_what_a_crash_left_of_a_dropped_generation_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [5], make_rows(np.random.default_rng(7), 5)))
    half_removed = tmp_path / "log" / "00000000.dropped"
    half_removed.mkdir()
    (half_removed / "MANIFEST-000001").write_bytes(b"torn")
    with opened(tmp_path) as shard:
        assert len(decoded(1, read(shard, 1))) == 5
        assert not half_removed.exists()


def test_a_record_of_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path) as shard:
        batch = batch_of([1], [5], make_rows(np.random.default_rng(8), 5))
        data = shard.begin_group([batch]).records[0][1].to_bytes()
        shard.log.current.append([(1, bytes([9]) + data[1:])])
        shard.log.current.sync()
    with pytest.raises(DataDirectoryError, match="kind 9"):
        Shard.open(tmp_path, SCHEMA)


def test_a_newer_directory_format_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    document = (tmp_path / "shard.json").read_text().replace('"format": 1', '"format": 2')
    (tmp_path / "shard.json").write_text(document)
    with pytest.raises(DataDirectoryError, match="format 2 is newer than 1"):
        Shard.open(tmp_path, SCHEMA)


def test_a_producers_window(tmp_path: Path) -> None:
    producers = Producers()
    digest = bytes(16)
    for sequence in (1, 2, 100):
        producers.record(5, sequence, digest, sequence + 1000, now_ms=0)
    assert producers.seen(5, 100, digest) == 1100
    assert producers.seen(5, 101, digest) is None
    assert producers.seen(5, 100 - WINDOW + 1, digest) is None, "a gap within the window may still be filled"
    with pytest.raises(SequenceTooOld):
        producers.seen(5, 100 - WINDOW, digest)
    with pytest.raises(InvalidAppend, match="other content"):
        producers.seen(5, 100, b"x" * 16)
    assert producers.forget_idle(7 * 24 * 3600 * 1000) == 0
    assert producers.forget_idle(7 * 24 * 3600 * 1000 + 1) == 1
    assert producers.seen(5, 100, digest) is None
