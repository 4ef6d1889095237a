"""A shard, step by step, against plain arrays."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from seqcore.filters import Filter
from seqcore.schema import Schema
from seqvault_server.storage.errors import DamagedHistory, DataDirectoryError, InvalidAppend, StoreFull, UsersFull
from seqvault_server.storage.place import is_disordered, is_extent, offset_of, segment_of, used_bytes_of
from seqvault_server.storage.shard import Shard, ShardConfig
from seqvault_server.storage.walk import Wanted
from tests.seqvault_server.storage.harness import (
    NOW_MS,
    SCHEMA,
    Rows,
    append,
    batch_of,
    decoded,
    delete,
    flush,
    in_order,
    make_rows,
    opened,
    read,
)


class Model:
    """What each user's history must be, in order of arrival."""

    def __init__(self) -> None:
        self.rows: dict[int, Rows] = {}

    def append(self, users: list[int], counts: list[int], rows: Rows) -> None:
        for user, part in zip(users, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
            self.rows[user] = np.concatenate([self.rows[user], part]) if user in self.rows else part

    def check(self, shard: Shard, users: range) -> None:
        for user in users:
            expected = in_order(self.rows.get(user, np.zeros(0, SCHEMA.row_dtype)))
            history = read(shard, user)
            assert history.found == (len(expected) > 0)
            assert history.reads <= 1
            assert decoded(user, history).tobytes() == expected.tobytes()
            newest = read(shard, user, Wanted(max_events=37))
            assert newest.reads <= 1
            assert decoded(user, newest, Filter(max_events=37)).tobytes() == expected[-37:].tobytes()


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 60))])
def test_histories_survive_any_mix_of_appends_flushes_deletions_and_restarts(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    model, users = Model(), range(24)
    shard = Shard.open(tmp_path, SCHEMA)
    serial = 0
    for step in range(60):
        chosen = random.choice(len(users), 4, replace=False).tolist()
        counts = random.integers(1, [3, 40, 400, 3000][step % 4], 4).tolist()
        late = 5 * 10**9 if step % 7 == 3 else 0
        rows = make_rows(random, sum(counts), start_ms=NOW_MS - 10**11 + step * 10**9 - late, first_item=serial)
        serial += len(rows)
        append(shard, batch_of(chosen, counts, rows))
        model.append(chosen, counts, rows)
        match int(random.integers(0, 10)):
            case 0 | 1 | 2:
                flush(shard)
            case 3 | 4:
                flush(shard, list(range(8)))
            case 5:
                shard.close()
                shard = Shard.open(tmp_path, SCHEMA)
            case 6 if step > 20:
                delete(shard, chosen[0])
                del model.rows[chosen[0]]
        if step % 10 == 9:
            model.check(shard, users)
    model.check(shard, users)
    shard.close()


def test_an_absent_user_costs_no_read(tmp_path: Path) -> None:
    with opened(tmp_path) as shard:
        history = read(shard, 7)
        assert not history.found
        assert history.reads == 0
        append(shard, batch_of([7], [3], make_rows(np.random.default_rng(1), 3)))
        assert read(shard, 7).reads == 0  # all of it is in the tail


@pytest.mark.parametrize("user", [0, 1, 2**63, 2**64 - 1])
def test_every_user_id_is_valid(tmp_path: Path, user: int) -> None:
    rows = make_rows(np.random.default_rng(2), 700)
    with opened(tmp_path) as shard:
        append(shard, batch_of([user], [700], rows))
        flush(shard)
    with opened(tmp_path) as shard:
        assert decoded(user, read(shard, user)).tobytes() == rows.tobytes()


def test_a_small_history_becomes_an_extent_and_then_fills_its_slack(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    kinds: list[tuple[int, int]] = []
    with opened(tmp_path) as shard:
        for step in range(12):
            append(shard, batch_of([1], [400], make_rows(random, 400, start_ms=NOW_MS - 10**10 + step * 10**8)))
            flush(shard)
            place = shard.index.place_of(1)
            kinds.append((is_extent(place), offset_of(place)))
            assert len(decoded(1, read(shard, 1))) == 400 * (step + 1)
    assert kinds[0][0] == 0
    assert kinds[-1][0] == 1
    moves = sum(a[1] != b[1] for a, b in itertools.pairwise(kinds))
    assert 2 <= moves <= 7, "most flushes must go to slack"


def test_late_events_are_merged_into_their_place(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [3000], make_rows(random, 3000)))
        flush(shard)
        late = make_rows(random, 500, start_ms=NOW_MS - 10**10 - 10**9, first_item=10**6)
        append(shard, batch_of([1], [500], late))
        flush(shard)
        assert is_disordered(shard.index.place_of(1))
        got = decoded(1, read(shard, 1))
        assert (np.diff(got["time_ms"]) >= 0).all()
        assert got["item_id"][:500].tolist() == late["item_id"].tolist()


def test_the_kernel_counts_one_read_for_a_long_history_and_none_for_an_absent_user(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(17), 10_000)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [10_000], rows))
        flush(shard)
    with opened(tmp_path) as shard:
        read(shard, 1)  # the kernels are loaded, from files too
        for segment in (tmp_path / "segments").glob("*.seg"):
            descriptor = os.open(segment, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        before = io_counts()
        history = read(shard, 1)
        after = io_counts()
        assert history.reads == 1
        assert len(decoded(1, history)) == 10_000
        # Beside the read itself: an attempt on the page cache that found nothing, and reading the counts.
        assert after["syscr"] - before["syscr"] <= 3
        assert history.read_bytes <= after["rchar"] - before["rchar"] < history.read_bytes + 4096
        before = io_counts()
        assert not read(shard, 2).found
        assert io_counts()["syscr"] - before["syscr"] == 1


def io_counts() -> dict[str, int]:
    """Reads of this process so far, system calls and bytes; itself one read."""
    descriptor = os.open("/proc/self/io", os.O_RDONLY)
    text = os.read(descriptor, 4096).decode()
    os.close(descriptor)
    return {name: int(value) for name, value in (line.split(":") for line in text.splitlines())}


def test_a_suffix_read_is_shorter_than_the_history(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(5), 16_000)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [16_000], rows))
        flush(shard)
        newest = read(shard, 1, Wanted(max_events=50))
        assert newest.reads == 1
        assert newest.read_bytes < read(shard, 1).read_bytes
        assert decoded(1, newest, Filter(max_events=50)).tobytes() == rows[-50:].tobytes()


def test_a_flush_covers_no_row_of_a_group_that_is_still_being_synced(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    first, second = make_rows(random, 10), make_rows(random, 10, first_item=100)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [10], first))
        group = shard.begin_group([batch_of([1], [10], second)])
        shard.log_group(group)
        flush(shard)  # between the sync of the second group and its becoming visible
        for _ in shard.apply_group(group):
            pass
    with opened(tmp_path) as shard:
        assert (
            decoded(1, read(shard, 1))["item_id"].tolist()
            == in_order(np.concatenate([first, second]))["item_id"].tolist()
        )


def test_deleted_bytes_are_overwritten_and_a_new_history_begins(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1, 2], [2000, 100], make_rows(random, 2100)))
        flush(shard)
        place = shard.index.place_of(1)
        append(shard, batch_of([1], [5], make_rows(random, 5)))
        delete(shard, 1)
        assert not read(shard, 1).found
        path = tmp_path / "segments" / f"{segment_of(place):05d}.seg"
        with path.open("rb") as file:
            file.seek(offset_of(place))
            assert not any(file.read(used_bytes_of(place)))
        fresh = make_rows(random, 3, first_item=77)
        append(shard, batch_of([1], [3], fresh))
    with opened(tmp_path) as shard:
        assert decoded(1, read(shard, 1)).tobytes() == fresh.tobytes()
        assert len(decoded(2, read(shard, 2))) == 100


def test_a_deletion_that_a_crash_interrupted_is_finished_on_opening(tmp_path: Path) -> None:
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [2000], make_rows(np.random.default_rng(8), 2000)))
        flush(shard)
        place = shard.index.place_of(1)
        shard.busy.add(1)
        shard.log_group(shard.begin_group([], [1]))  # the tombstone is durable, nothing else has happened
    with opened(tmp_path) as shard:
        assert not read(shard, 1).found
        buffer = bytearray(used_bytes_of(place))
        shard.segments.read_rest(segment_of(place), buffer, offset_of(place))
        assert not any(buffer)
        assert not shard.journal.read().erase_U.any()


def test_damage_is_named_and_other_users_are_served(tmp_path: Path) -> None:
    with opened(tmp_path) as shard:
        append(shard, batch_of([1, 2], [2000, 2000], make_rows(np.random.default_rng(9), 4000)))
        flush(shard)
        place = shard.index.place_of(1)
        with (tmp_path / "segments" / f"{segment_of(place):05d}.seg").open("r+b") as file:
            file.seek(offset_of(place) + 500)
            byte = file.read(1)[0]
            file.seek(offset_of(place) + 500)
            file.write(bytes([byte ^ 1]))
        with pytest.raises(DamagedHistory) as caught:
            read(shard, 1)
        assert (caught.value.user_id, caught.value.segment) == (1, segment_of(place))
        assert len(decoded(2, read(shard, 2))) == 2000


def test_blocks_that_lie_at_another_place_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as shard:
        append(shard, batch_of([1, 2], [2000, 2000], make_rows(np.random.default_rng(10), 4000)))
        flush(shard)
        one, two = shard.index.place_of(1), shard.index.place_of(2)
        shard.index.put(np.array([1, 2], np.uint64), np.array([two, one], np.uint64))
        for user in (1, 2):
            with pytest.raises(DamagedHistory):
                read(shard, user)


def test_freed_pages_are_given_back(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    with opened(tmp_path) as shard:
        for step in range(20):
            append(shard, batch_of([1], [3000], make_rows(random, 3000, start_ms=NOW_MS - 10**10 + step * 10**8)))
            flush(shard)
        segment = tmp_path / "segments" / f"{segment_of(shard.index.place_of(1)):05d}.seg"
        assert segment.stat().st_blocks * 512 <= shard.space.live_bytes + 4096
        assert segment.stat().st_size > 1.5 * shard.space.live_bytes


def test_space_is_not_given_back_while_an_older_read_may_look_there(tmp_path: Path) -> None:
    random = np.random.default_rng(12)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [100], make_rows(random, 100)))
        flush(shard)
        ticket = shard.pins.pin()
        append(shard, batch_of([1], [100], make_rows(random, 100)))
        plan, _ = shard.plan_flush([1])
        assert plan is not None
        shard.publish_flush(shard.write_flush(plan))
        assert shard.take_freed() == []
        shard.pins.unpin(ticket)
        assert [run.pages for run in shard.take_freed()] == [1]


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(DataDirectoryError, match="another process"):
        Shard.open(tmp_path, SCHEMA)


def test_a_schema_that_does_not_extend_the_data_is_refused_and_a_later_one_reads_defaults(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(13), 50)
    with opened(tmp_path) as shard:
        append(shard, batch_of([1], [40], rows[:40]))
        flush(shard)
        append(shard, batch_of([1], [10], rows[40:]))
    document = SCHEMA.to_mapping()
    changed = Schema.from_mapping({**document, "event": {"columns": [*_columns(document)[:4]]}})
    with pytest.raises(DataDirectoryError, match="dwell_ms"):
        Shard.open(tmp_path, changed)
    added = {"name": "price", "type": "f32", "since": 2, "default": 1.5}
    later = Schema.from_mapping({**document, "version": 2, "event": {"columns": [*_columns(document), added]}})
    with opened(tmp_path, schema=later) as shard:
        tail = np.frombuffer(read(shard, 1).tail, later.row_dtype)
        assert tail["price"].tolist() == [1.5] * 10
        assert tail["item_id"].tolist() == rows["item_id"][40:].tolist()
    with pytest.raises(DataDirectoryError, match="older"):
        Shard.open(tmp_path, SCHEMA)


def _columns(document: dict[str, object]) -> list[object]:
    event = document["event"]
    assert isinstance(event, dict)
    columns = event["columns"]
    assert isinstance(columns, list)
    return columns


def test_appends_are_refused_when_the_tails_are_full(tmp_path: Path) -> None:
    config = ShardConfig(max_users=1000, tail_bytes=1 << 20)
    random = np.random.default_rng(14)
    with opened(tmp_path, config=config) as shard:
        batch = batch_of(list(range(100)), [100] * 100, make_rows(random, 10_000))
        for _ in range(shard.tails.max_rows // 10_000):
            append(shard, batch)
        with pytest.raises(StoreFull) as caught:
            append(shard, batch)
        assert caught.value.reason == "TAILS_FULL"
        rows = shard.tails.rows
        flush(shard)
        assert shard.tails.rows == 0 < rows
        append(shard, batch)


def test_more_users_than_the_index_may_hold_are_refused_and_known_ones_are_not(tmp_path: Path) -> None:
    random = np.random.default_rng(18)
    with opened(tmp_path, config=ShardConfig(max_users=100, tail_bytes=1 << 20)) as shard:
        append(shard, batch_of(list(range(100)), [1] * 100, make_rows(random, 100)))
        flush(shard)
        with pytest.raises(UsersFull):
            append(shard, batch_of([100], [1], make_rows(random, 1)))
        append(shard, batch_of([7], [1], make_rows(random, 1)))
        delete(shard, 8)
        delete(shard, 9)
        append(shard, batch_of([100], [1], make_rows(random, 1)))


@pytest.mark.parametrize("time_ms", [-1, NOW_MS + 25 * 3600 * 1000])
def test_a_time_out_of_range_is_refused_by_name(time_ms: int) -> None:
    rows = make_rows(np.random.default_rng(15), 3)
    rows["time_ms"][1] = time_ms
    with pytest.raises(InvalidAppend) as caught:
        batch_of([1], [3], rows)
    assert (caught.value.field, caught.value.reason) == ("columns[time_ms]", "TIME_OUT_OF_RANGE")


@pytest.mark.parametrize(("users", "counts"), [([1, 2], [3]), ([1], [2]), ([], []), ([1, 2], [3, 0])])
def test_counts_that_do_not_match_are_refused(users: list[int], counts: list[int]) -> None:
    with pytest.raises(InvalidAppend):
        batch_of(users, counts, make_rows(np.random.default_rng(16), 3))
