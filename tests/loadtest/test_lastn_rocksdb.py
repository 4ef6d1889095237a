"""LastN on RocksDB answers like the store: the peer must do the same work to be compared."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import yaml

from laser_client.decode import History, decode_history
from loadtest.catalogue import Catalogue
from loadtest.drive import (
    APPEND,
    GET_HISTORY,
    PUT_ITEMS,
    append_request,
    call_all,
    history_requests,
    put_items_requests,
)
from loadtest.generator import EVENT_COLUMNS, Batch, Workload
from loadtest.peers.lastn_rocksdb import COSTS_METHOD, SETTLE_METHOD
from loadtest.server_process import Program, ServerProcess, disk_bytes, running
from loadtest.store_plan import SCHEMA
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb

WORKLOAD: Final = Workload.of_events(20_000, seed=3, catalogue=Catalogue(seed=3, item_count=2_000), cohort=1)


def _program(data: Path, *options: str) -> Program:
    arguments = ["loadtest.peers.lastn_rocksdb", "--data", str(data), "--schema", str(SCHEMA), *options]
    return Program(name="lastn", arguments=arguments, data=data)


async def _load(server: ServerProcess) -> None:
    await call_all(server, PUT_ITEMS, put_items_requests(WORKLOAD.catalogue), in_flight=1)
    requests = [append_request(batch, producer=0, sequence=0) for batch in WORKLOAD.batches()]
    await call_all(server, APPEND, requests, in_flight=4)


async def _read(server: ServerProcess, user: int, *, max_events: int = 0) -> History:
    (reply,) = await call_all(server, GET_HISTORY, history_requests([user], max_events=max_events), in_flight=1)
    schema = Schema.from_mapping(yaml.safe_load(SCHEMA.read_text()))
    return decode_history(pb.GetHistoryResponse.FromString(reply), user_id=user, schema=schema, columns=EVENT_COLUMNS)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with running(_program(tmp_path / "rows"), log=tmp_path / "log") as process:
        yield process


async def test_histories_are_those_appended(server: ServerProcess) -> None:
    await _load(server)
    for _ in range(2):
        for user, columns in WORKLOAD.histories():
            history = await _read(server, user)
            assert all(np.array_equal(history.columns[name], columns[name]) for name in EVENT_COLUMNS), user
        await call_all(server, SETTLE_METHOD, [b""], in_flight=1)
    costs = np.frombuffer((await call_all(server, COSTS_METHOD, [b""], in_flight=1))[0], "<f8")
    assert (costs > 0).all()


async def test_newest_n_are_the_last_n_oldest_first(server: ServerProcess) -> None:
    await _load(server)
    user, columns = next(WORKLOAD.histories())
    history = await _read(server, user, max_events=100)
    assert all(np.array_equal(history.columns[name], columns[name][-100:]) for name in EVENT_COLUMNS)


async def test_an_unknown_user_is_not_found(server: ServerProcess) -> None:
    await _load(server)
    history = await _read(server, 42)
    assert not history.found
    assert history.event_count == 0


async def test_extreme_users_do_not_see_their_neighbours_and_ties_keep_their_order(server: ServerProcess) -> None:
    users = np.array([0, 1, 2**64 - 1], np.uint64)
    for call in range(2):
        columns = {
            "item_id": np.arange(6, dtype=np.uint64) + np.uint64(10 * call),
            "time_ms": np.full(6, 1_000, np.int64),
            "action": np.zeros(6, np.uint8),
            "scene": np.zeros(6, np.uint8),
            "dwell_ms": np.zeros(6, np.uint32),
        }
        batch = Batch(user_ids_U=users, event_counts_U=np.array([2, 2, 2], np.uint32), columns=columns)
        await call_all(server, APPEND, [append_request(batch, producer=0, sequence=0)], in_flight=1)
    for user, items in ((0, [0, 1, 10, 11]), (1, [2, 3, 12, 13]), (2**64 - 1, [4, 5, 14, 15])):
        assert (await _read(server, user)).columns["item_id"].tolist() == items


async def test_rows_survive_a_restart_and_side_info_makes_them_fat(tmp_path: Path) -> None:
    fat, thin = _program(tmp_path / "fat"), _program(tmp_path / "thin", "--without-side-info")
    for program in (fat, thin):
        async with running(program, log=tmp_path / "log") as process:
            await _load(process)
            await call_all(process, SETTLE_METHOD, [b""], in_flight=1)
    user, columns = next(WORKLOAD.histories())
    async with running(fat, log=tmp_path / "log") as process:
        assert np.array_equal((await _read(process, user)).columns["item_id"], columns["item_id"])
    assert sum(disk_bytes(tmp_path / "fat").values()) > 1.5 * sum(disk_bytes(tmp_path / "thin").values())
