"""The calls against a scripted server: what is sent, what comes back."""

from dataclasses import replace

import numpy as np
import pytest

from laser_client.client import MAX_BATCH_USERS, SeqVaultClient
from laser_client.config import ClientConfig
from laser_client.errors import ColumnError, DataCorrupted, InvalidRequest, ServerBug
from laser_client.query import Encoding, Query
from laser_client.wire import pack_columns, schema_to_proto
from seqcore.schema import Column, Type
from seqvault.v1 import seqvault_pb2 as pb
from tests.laser_client.histories import SCHEMA, blocks_reply, make_rows, plain_reply
from tests.laser_client.peer import Peer

NEWER = replace(
    SCHEMA,
    version=2,
    event_columns=(*SCHEMA.event_columns, Column(name="dwell_s", type=Type.F32, since=2, default=2.5)),
)
EVENT = {"item": [1], "time_ms": [2], "action": [3]}


async def test_rows_of_one_user_are_appended_together_in_their_order(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("Append", pb.AppendResponse(lsn=17))
    columns = {"item": [1, 2, 3, 2**64 - 1], "time_ms": [10, 20, 5, 40], "action": [0, 1, 2, 3]}
    assert await client.append_events([9, 2**64 - 1, 9, 3], columns) == 17
    (sent,) = peer.requests["Append"]
    assert list(sent.user_ids) == [3, 9, 2**64 - 1]
    assert list(sent.event_counts) == [1, 2, 1]
    data = {column.name: column.data for column in sent.columns}
    assert np.frombuffer(data["item"], "<u8").tolist() == [2**64 - 1, 1, 3, 2]
    assert data["action"] == bytes([3, 0, 2, 1])
    assert sent.producer_id == client.producer_id


async def test_appends_are_numbered_from_where_the_producer_stopped(peer: Peer) -> None:
    peer.script("Append", pb.AppendResponse())
    async with SeqVaultClient(peer.target, ClientConfig(producer_id=77, first_sequence=5)) as client:
        await client.append([1], [1], EVENT)
        await client.append([1], [1], EVENT)
    assert [(sent.producer_id, sent.sequence) for sent in peer.requests["Append"]] == [(77, 5), (77, 6)]


@pytest.mark.parametrize(
    ("user_ids", "event_counts", "columns", "field"),
    [
        ([-1], [1], EVENT, "user_ids"),
        ([0.5], [1], EVENT, "user_ids"),
        (5, [1], EVENT, "user_ids"),
        ([1], [-1], EVENT, "event_counts"),
        ([1], [2**32], {}, "event_counts"),
        ([1], [2], EVENT, "columns[item]"),
        ([1], [1], {**EVENT, "brand": [1]}, "columns[brand]"),
        ([1], [1], {**EVENT, "action": [256]}, "columns[action]"),
    ],
)
async def test_append_that_cannot_be_right_is_not_sent(
    peer: Peer,
    client: SeqVaultClient,
    user_ids: list[float],
    event_counts: list[int],
    columns: dict[str, list[int]],
    field: str,
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.append(user_ids, event_counts, columns)
    assert caught.value.field == field
    assert "Append" not in peer.requests


async def test_column_with_more_rows_than_users_is_not_sent(peer: Peer, client: SeqVaultClient) -> None:
    with pytest.raises(ColumnError, match="item"):
        await client.append_events([2, 1], {"item": [1, 2, 3], "time_ms": [1, 2], "action": [1, 2]})
    assert not peer.requests


async def test_column_that_the_server_got_since_is_found(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetSchema", *(pb.GetSchemaResponse(schema=schema_to_proto(schema)) for schema in (SCHEMA, NEWER)))
    peer.script("Append", pb.AppendResponse())
    assert await client.get_schema() == SCHEMA
    await client.append([1], [1], {**EVENT, "dwell_s": [1.5]})
    assert [column.name for column in peer.requests["Append"][0].columns][-1] == "dwell_s"


async def test_history_comes_as_columns(peer: Peer, client: SeqVaultClient) -> None:
    rows = make_rows(30)
    peer.script("GetHistory", blocks_reply(2**64 - 1, rows[:20], tail=rows[20:]))
    history = await client.get_history(2**64 - 1)
    assert (history.user_id, history.found, history.reads) == (2**64 - 1, True, 1)
    assert history.event_count == 30
    for name, values in history.columns.items():
        np.testing.assert_array_equal(values, rows[name])


async def test_query_is_sent_as_it_is(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetHistory", pb.GetHistoryResponse())
    query = Query(
        view="recent",
        max_events=9,
        start_ms=0,
        as_of_ms=8,
        actions=(1,),
        side_info=("price",),
        encoding=Encoding.PLAIN,
    )
    history = await client.get_history(1, query)
    assert peer.requests["GetHistory"][0].query == pb.Query(
        view="recent",
        max_events=9,
        start_ms=0,
        as_of_ms=8,
        actions=[1],
        side_info=["price"],
        encoding=pb.ENCODING_PLAIN,
    )
    assert list(history.columns) == ["time_ms", "item"]


@pytest.mark.parametrize("query", [Query(max_events=-1), Query(end_ms=2**63), Query(actions=(2**32,))])
async def test_query_out_of_range_is_not_sent(peer: Peer, client: SeqVaultClient, query: Query) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.get_history(1, query)
    assert caught.value.field == "query"
    assert not peer.requests


async def test_schema_is_fetched_once_and_again_when_a_reply_is_newer(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetSchema", *(pb.GetSchemaResponse(schema=schema_to_proto(schema)) for schema in (SCHEMA, NEWER)))
    rows = np.zeros(3, NEWER.row_dtype)
    rows["dwell_s"] = [1, 2, 3]
    peer.script(
        "GetHistory", blocks_reply(1, make_rows(3)), blocks_reply(1, make_rows(3)), blocks_reply(1, rows, schema=NEWER)
    )
    await client.get_history(1)
    await client.get_history(1)
    assert len(peer.requests["GetSchema"]) == 1
    history = await client.get_history(1)
    assert history.columns["dwell_s"].tolist() == [1, 2, 3]
    assert len(peer.requests["GetSchema"]) == 2
    assert (await client.get_schema()).version == 2


async def test_reply_newer_than_the_servers_own_schema_is_a_bug(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetHistory", blocks_reply(1, np.zeros(3, NEWER.row_dtype), schema=NEWER))
    with pytest.raises(ServerBug, match="newer"):
        await client.get_history(1)
    assert len(peer.requests["GetSchema"]) == 1


async def test_schema_that_breaks_a_rule_is_a_bug(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("GetSchema", pb.GetSchemaResponse())
    with pytest.raises(ServerBug) as caught:
        await client.get_schema()
    assert caught.value.reason == "SCHEMA_UNSUPPORTED"


def _stream_of(histories: dict[int, pb.GetHistoryResponse]) -> pb.BatchGetHistoryResponse:
    return pb.BatchGetHistoryResponse(
        histories=[pb.UserHistory(user_id=user, history=history) for user, history in histories.items()]
    )


async def test_batch_comes_in_the_order_asked_for(peer: Peer, client: SeqVaultClient) -> None:
    first, last = blocks_reply(8, make_rows(3)), plain_reply({"item": make_rows(2)["item"]})
    peer.script("BatchGetHistory", [_stream_of({8: first, 3: pb.GetHistoryResponse()}), _stream_of({5: last})])
    histories = [history async for history in client.batch_get_history([8, 3, 5])]
    assert [(h.user_id, h.found, h.event_count) for h in histories] == [(8, True, 3), (3, False, 0), (5, True, 2)]


async def test_long_batch_is_asked_for_in_parts(peer: Peer, client: SeqVaultClient) -> None:
    users = range(MAX_BATCH_USERS + 2)
    parts = (users[:MAX_BATCH_USERS], users[MAX_BATCH_USERS:])
    peer.script("BatchGetHistory", *([_stream_of(dict.fromkeys(part, pb.GetHistoryResponse()))] for part in parts))
    assert [history.user_id async for history in client.batch_get_history(users)] == list(users)
    assert [len(sent.user_ids) for sent in peer.requests["BatchGetHistory"]] == [MAX_BATCH_USERS, 2]


@pytest.mark.parametrize(
    ("users", "problem"), [([1, 9], "out of turn"), ([1], "1 users early"), ([1, 2, 2], "out of turn")]
)
async def test_batch_of_other_users_is_a_bug(
    peer: Peer, client: SeqVaultClient, users: list[int], problem: str
) -> None:
    peer.script("BatchGetHistory", [_stream_of({user: pb.GetHistoryResponse()}) for user in users])
    with pytest.raises(ServerBug, match=problem):
        _ = [history async for history in client.batch_get_history([1, 2])]


async def test_damaged_history_ends_a_batch(peer: Peer, client: SeqVaultClient) -> None:
    peer.script(
        "BatchGetHistory",
        [_stream_of({1: blocks_reply(1, make_rows(3))}), _stream_of({2: blocks_reply(1, make_rows(3))})],
    )
    histories = client.batch_get_history([1, 2])
    assert (await anext(histories)).user_id == 1
    with pytest.raises(DataCorrupted):
        await anext(histories)


async def test_items_are_put_and_read(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("PutItems", pb.PutItemsResponse(version=3))
    price = pack_columns({"price": [7, 0]}, SCHEMA.side_info_columns)
    peer.script("GetItems", pb.GetItemsResponse(present=b"\1\0", columns=price, version=4))
    assert await client.put_items([2**64 - 1], {"price": [7]}) == 3
    assert peer.requests["PutItems"][0] == pb.PutItemsRequest(
        item_ids=b"\xff" * 8, columns=[pb.Column(name="price", data=b"\7\0\0\0")]
    )
    items = await client.get_items([2**64 - 1, 1], ["price"])
    assert items.item_ids.tolist() == [2**64 - 1, 1]
    assert items.is_present.tolist() == [True, False]
    assert items.columns["price"].tolist() == [7, 0]
    assert items.version == 4


async def test_user_is_deleted(peer: Peer, client: SeqVaultClient) -> None:
    peer.script("DeleteUser", pb.DeleteUserResponse(found=True, erased_by_ms=99))
    deletion = await client.delete_user(4)
    assert (deletion.found, deletion.erased_by_ms) == (True, 99)
    assert peer.requests["DeleteUser"][0].user_id == 4
