"""The client and the real store, in one process over a socket."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from laser_client.client import SeqVaultClient
from laser_client.errors import InvalidRequest
from laser_client.query import Encoding, Query
from seqvault_server.server import ServerConfig, opener
from servicekit.listen import ListenConfig
from servicekit.runner import serving
from tests.laser_client.histories import SCHEMA, make_rows


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SeqVaultClient]:
    schema = tmp_path / "schema.yaml"
    schema.write_text(yaml.safe_dump(SCHEMA.to_mapping()))
    config = ServerConfig(data=tmp_path / "data", schema=schema, listen=ListenConfig())
    async with (
        serving(opener(config), config=config.listen) as ports,
        SeqVaultClient(f"127.0.0.1:{ports.port}") as client,
    ):
        yield client


async def test_both_encodings_give_the_appended_events(store: SeqVaultClient) -> None:
    rows = make_rows(6_000)
    columns = {name: rows[name] for name in SCHEMA.event_column_of}
    users = np.where(np.arange(len(rows)) % 3 == 0, 2**64 - 1, 5)
    await store.append_events(users.astype(np.uint64), columns)
    wanted = rows[users == 5]
    for encoding in Encoding:
        history = await store.get_history(5, Query(encoding=encoding))
        assert history.found
        for name in columns:
            np.testing.assert_array_equal(history.columns[name], wanted[name], strict=True)
        newest = await store.get_history(5, Query(view="recent", actions=(1, 3), encoding=encoding))
        kept = wanted[np.isin(wanted["action"], (1, 3))][-5:]
        np.testing.assert_array_equal(newest.columns["item"], kept["item"], strict=True)
    batch = [history async for history in store.batch_get_history([5, 6, 2**64 - 1])]
    assert [history.event_count for history in batch] == [4_000, 0, 2_000]


async def test_side_info_joins_and_users_are_forgotten(store: SeqVaultClient) -> None:
    await store.put_items([8, 9], {"price": [80, 90]})
    await store.append_events([1, 1, 1], {"item": [9, 7, 9], "time_ms": [1, 2, 3], "action": [0, 0, 0]})
    side_info = (await store.get_history(1, Query(side_info=("price",)))).side_info
    assert side_info is not None
    assert side_info.item_ids.tolist() == [7, 9]
    assert side_info.is_present.tolist() == [False, True]
    assert side_info.columns["price"].tolist() == [0, 90]
    assert (await store.get_items([9, 7, 8])).columns["price"].tolist() == [90, 0, 80]
    assert (await store.delete_user(1)).found
    assert not (await store.delete_user(1)).found
    assert not (await store.get_history(1)).found


async def test_refusals_name_reason_and_field(store: SeqVaultClient) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await store.get_history(1, Query(view="no_such_view"))
    assert caught.value.reason == "UNKNOWN_VIEW"
    future_ms = int(time.time() * 1000) + 2 * 24 * 3600 * 1000
    with pytest.raises(InvalidRequest) as caught:
        await store.append([1], [1], {"item": [1], "time_ms": [future_ms], "action": [1]})
    assert (caught.value.reason, caught.value.field) == ("TIME_OUT_OF_RANGE", "columns[time_ms]")
    with pytest.raises(InvalidRequest) as caught:
        await store.append([1], [1], {"item": [1], "action": [1]})
    assert (caught.value.reason, caught.value.field) == ("MISSING_COLUMN", "columns[time_ms]")
