"""The service through real sockets: what is read, how it is sent, what is refused."""

import dataclasses
import gc
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final, cast

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laser_client.query import Encoding, Query
from seqvault.v1 import seqvault_pb2 as pb
from seqvault.v1 import seqvault_pb2_grpc as rpc
from seqvault_server.storage.append import MAX_EVENTS
from servicekit.service import Context
from tests.seqvault_server.conftest import OpenStore, Store

EPOCH_MS: Final = 1_600_000_000_000
NO_CONTEXT: Final = cast("Context", None)

Array = npt.NDArray[np.generic]


def make_columns(count: int, *, seed: int, span_ms: int = 10**8) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "item_id": random.integers(0, 500, count).astype(np.uint64),
        "time_ms": (EPOCH_MS + random.integers(0, span_ms, count)).astype(np.int64),
        "action": random.integers(0, 4, count).astype(np.uint8),
        "scene": random.integers(0, 5, count).astype(np.uint8),
        "dwell_ms": random.integers(0, 60_000, count).astype(np.uint32),
    }


async def fill(store: Store) -> dict[int, dict[str, Array]]:
    """Users of different shapes: only a tail, small, many blocks with slack and late events, absent (4)."""
    parts = {1: [300], 2: [40, 60], 3: [3000, 600, 600, 100]}
    users: dict[int, dict[str, Array]] = {}
    for user, counts in parts.items():
        for number, count in enumerate(counts):
            columns = make_columns(count, seed=user * 100 + number)
            await store.client.append([user], [count], columns)
            if user != 1 and number < len(counts) - 1:
                await store.vault.flush_all()
            before = users.get(user)
            users[user] = {k: np.concatenate([before[k], v]) for k, v in columns.items()} if before else columns
    ids = np.arange(0, 400, dtype=np.uint64)
    side_info = {"category": (ids % 7).astype("u4"), "author": ids * 3, "price": ids.astype("f4")}
    await store.client.put_items(ids, side_info)
    return users


def oracle(columns: dict[str, Array], query: Query) -> dict[str, Array]:
    """The query, word for word, over plain arrays."""
    order = np.argsort(columns["time_ms"], kind="stable")
    rows = {name: values[order] for name, values in columns.items()}
    time_ms = rows["time_ms"].view(np.int64)
    keep = np.ones(len(time_ms), np.bool_)
    if query.start_ms is not None:
        keep &= time_ms >= query.start_ms
    for end in (query.end_ms, query.as_of_ms):
        if end is not None:
            keep &= time_ms < end
    for name, values in (("action", query.actions), ("scene", query.scenes)):
        if values:
            keep &= np.isin(rows[name], np.array(values))
    kept = np.flatnonzero(keep)
    kept = kept[-query.max_events :] if query.max_events else kept
    return {name: rows[name][kept] for name in query.columns or columns}


TIMES = st.none() | st.integers(EPOCH_MS - 10**6, EPOCH_MS + 10**8 + 10**6)
QUERIES = st.builds(
    Query,
    columns=st.lists(st.sampled_from(["item_id", "time_ms", "action", "scene", "dwell_ms"]), unique=True).map(tuple),
    max_events=st.sampled_from([0, 1, 50, 1000, 100_000]),
    start_ms=TIMES,
    end_ms=TIMES,
    as_of_ms=TIMES,
    actions=st.lists(st.integers(0, 4), unique=True, max_size=3).map(tuple),
    scenes=st.lists(st.integers(0, 5), unique=True, max_size=3).map(tuple),
    side_info=st.sampled_from([(), ("category",), ("genres", "price")]),
)


async def test_blocks_and_plain_both_answer_the_query(open_store: OpenStore) -> None:
    async with open_store() as store:
        users = await fill(store)
        queries: list[Query] = []

        # Hypothesis makes the queries, the loop of the test runs them: it owns the store.
        @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(query=QUERIES)
        def collect(query: Query) -> None:
            queries.append(query)

        collect()
        assert len(queries) >= 100
        for number, query in enumerate(queries):
            user = 1 + number % 3
            expected = oracle(users[user], query)
            for encoding in (Encoding.BLOCKS, Encoding.PLAIN):
                asked = dataclasses.replace(query, encoding=encoding)
                history = await store.client.get_history(user, asked)
                assert history.found
                assert history.reads <= 1
                assert list(history.columns) == list(expected)
                for name, values in expected.items():
                    assert history.columns[name].tobytes() == values.tobytes(), (asked, name)
                if query.side_info:
                    all_columns = oracle(users[user], dataclasses.replace(query, columns=()))
                    assert history.side_info is not None
                    ids = np.unique(all_columns["item_id"])
                    assert history.side_info.item_ids.tolist() == ids.tolist()
                    assert history.side_info.is_present.tolist() == [item < 400 for item in ids.tolist()]


async def test_a_view_is_a_starting_point_that_the_query_narrows(open_store: OpenStore) -> None:
    async with open_store() as store:
        users = await fill(store)
        clicks = await store.client.get_history(3, Query(view="recent_clicks"))
        assert list(clicks.columns) == ["item_id", "time_ms", "dwell_ms"]
        expected = oracle(users[3], Query(columns=("item_id",), actions=(1,), max_events=1000))
        assert clicks.columns["item_id"].tolist() == expected["item_id"].tolist()
        fewer = await store.client.get_history(3, Query(view="recent_clicks", max_events=7, actions=(1, 2)))
        assert fewer.columns["item_id"].tolist() == expected["item_id"][-7:].tolist()
        none = await store.client.get_history(3, Query(view="recent_clicks", actions=(2,)))
        assert none.event_count == 0
        joined = await store.client.get_history(3, Query(view="search_purchases"))
        assert joined.side_info is not None
        assert list(joined.side_info.columns) == ["category", "price"]


async def test_a_batch_answers_in_the_order_of_the_request_in_bounded_messages(open_store: OpenStore) -> None:
    async with open_store() as store:
        users = await fill(store)
        assert [history.found async for history in store.client.batch_get_history([4, 5])] == [False, False]
        asked = [3, 4, 1, 2, 3] * 20
        got = [history async for history in store.client.batch_get_history(asked)]
        assert [history.user_id for history in got] == asked
        for history in got:
            expected = users.get(history.user_id)
            assert history.found == (expected is not None)
            assert history.event_count == (len(expected["item_id"]) if expected else 0)
        async with grpc.aio.insecure_channel(store.target) as channel:
            request = pb.BatchGetHistoryRequest(user_ids=[3] * 200)
            sizes = [message.ByteSize() async for message in stub_of(channel).BatchGetHistory(request, timeout=30)]
        assert len(sizes) > 1
        assert max(sizes) <= (1 << 20) + (1 << 16)


async def test_histories_items_and_deletions_survive_a_restart(open_store: OpenStore) -> None:
    async with open_store() as store:
        users = await fill(store)
        assert (await store.client.delete_user(2)).found
        assert not (await store.client.delete_user(2)).found
    async with open_store() as store:
        history = await store.client.get_history(3)
        assert history.columns["item_id"].tobytes() == oracle(users[3], Query())["item_id"].tobytes()
        assert not (await store.client.get_history(2)).found
        items = await store.client.get_items(np.array([5, 450], np.uint64), columns=["author"])
        assert items.is_present.tolist() == [True, False]
        assert items.columns["author"].tolist() == [15, 0]


@pytest.mark.parametrize("encoding", [Encoding.BLOCKS, Encoding.PLAIN])
async def test_a_read_makes_the_same_calls_for_100_and_10_000_events(open_store: OpenStore, encoding: Encoding) -> None:
    """Python and C calls on the loop's thread, from request to reply; decoding is counted where the decoder is tested."""
    async with open_store() as store:
        for user, count in ((1, 100), (2, 10_000)):
            columns = make_columns(count, seed=1, span_ms=10**6)
            await store.client.append([user], [count], columns)
        await store.vault.flush_all()
        counts = []
        for user in (1, 2):
            request = pb.GetHistoryRequest(user_id=user, query=Query(encoding=encoding).to_proto())
            await store.service.GetHistory(request, NO_CONTEXT)  # kernels and caches are warm
            # Whatever else the loop does meanwhile only adds to it.
            counts.append(min([await _calls(store, request) for _ in range(20)]))
        print(f"calls for 100 and 10,000 events as {encoding.name}: {counts}")
        assert counts[0] == counts[1]


async def _calls(store: Store, request: pb.GetHistoryRequest) -> int:
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.disable()  # Hypothesis hooks into the collector
    sys.setprofile(count)
    try:
        await store.service.GetHistory(request, NO_CONTEXT)
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def append_request(
    *,
    user_ids: Sequence[int] = (1,),
    event_counts: Sequence[int] = (3,),
    producer_id: int = 0,
    columns: Mapping[str, bytes] | None = None,
    without: str = "",
) -> pb.AppendRequest:
    """Three events of user 1, with what the arguments change."""
    packed = {name: values.tobytes() for name, values in make_columns(3, seed=1).items() if name != without}
    return pb.AppendRequest(
        user_ids=user_ids,
        event_counts=event_counts,
        producer_id=producer_id,
        columns=[pb.Column(name=name, data=data) for name, data in (packed | dict(columns or {})).items()],
    )


TOMORROW = np.full(3, int(time.time() * 1000) + 25 * 3600 * 1000, "<i8").tobytes()

REFUSED_APPENDS = [
    ("UNKNOWN_COLUMN", "columns[nope]", append_request(columns={"nope": b"abc"})),
    ("MISSING_COLUMN", "columns[action]", append_request(without="action")),
    ("COLUMN_LENGTH", "columns[item_id]", append_request(columns={"item_id": bytes(23)})),
    ("COLUMN_LENGTH", "columns[action]", append_request(columns={"action": bytes(6)})),
    ("TIME_OUT_OF_RANGE", "columns[time_ms]", append_request(columns={"time_ms": TOMORROW})),
    ("TIME_OUT_OF_RANGE", "columns[time_ms]", append_request(columns={"time_ms": np.full(3, -1, "<i8").tobytes()})),
    ("TOO_MANY_EVENTS", "event_counts", append_request(event_counts=[MAX_EVENTS + 1])),
    ("COUNTS_MISMATCH", "event_counts", append_request(user_ids=[1, 2])),
    ("COUNTS_MISMATCH", "event_counts", append_request(user_ids=[1, 2], event_counts=[3, 0])),
    ("SEQUENCE_MISSING", "sequence", append_request(producer_id=5)),
]


@pytest.mark.parametrize(("reason", "field", "request_"), REFUSED_APPENDS, ids=range(len(REFUSED_APPENDS)))
async def test_a_wrong_append_is_refused_by_name_and_changes_nothing(
    open_store: OpenStore, reason: str, field: str, request_: pb.AppendRequest
) -> None:
    async with open_store() as store, grpc.aio.insecure_channel(store.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub_of(channel).Append(request_, timeout=10)
        assert details(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)
        assert store.vault.shard.next_lsn == 1
        assert not (await store.client.get_history(1)).found


REFUSED_QUERIES = [
    ("UNKNOWN_VIEW", "query.view", pb.Query(view="nope")),
    ("UNKNOWN_COLUMN", "query.columns[1]", pb.Query(columns=["item_id", "nope"])),
    ("DUPLICATE_COLUMN", "query.columns", pb.Query(columns=["item_id", "item_id"])),
    ("UNKNOWN_COLUMN", "query.side_info[0]", pb.Query(side_info=["nope"])),
    ("VALUE_OUT_OF_RANGE", "query.actions", pb.Query(actions=[256])),
    ("VALUE_OUT_OF_RANGE", "query.scenes", pb.Query(scenes=[256])),
    ("UNKNOWN_ENCODING", "query.encoding", pb.Query(encoding=9)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("reason", "field", "query"), REFUSED_QUERIES, ids=range(len(REFUSED_QUERIES)))
async def test_a_wrong_query_is_refused_by_name(
    open_store: OpenStore, reason: str, field: str, query: pb.Query
) -> None:
    async with open_store() as store, grpc.aio.insecure_channel(store.target) as channel:
        stub = stub_of(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetHistory(pb.GetHistoryRequest(user_id=1, query=query), timeout=10)
        assert details(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.BatchGetHistory(pb.BatchGetHistoryRequest(user_ids=[1], query=query), timeout=10):
                pass
        assert details(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)


async def test_other_limits_are_refused_by_name(open_store: OpenStore) -> None:
    ids = np.zeros(2, "<u8").tobytes()
    async with open_store() as store, grpc.aio.insecure_channel(store.target) as channel:
        stub = stub_of(channel)
        too_large = append_request(columns={"item_id": bytes(2 << 20)})
        for reason, field, code, call in (
            (
                "MESSAGE_TOO_LARGE",
                "AppendRequest",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                stub.Append(too_large, timeout=10),
            ),
            (
                "COLUMN_LENGTH",
                "item_ids",
                grpc.StatusCode.INVALID_ARGUMENT,
                stub.GetItems(pb.GetItemsRequest(item_ids=b"1234567"), timeout=10),
            ),
            (
                "TOO_MANY_ITEMS",
                "item_ids",
                grpc.StatusCode.INVALID_ARGUMENT,
                stub.GetItems(pb.GetItemsRequest(item_ids=bytes(8 * 65_537)), timeout=10),
            ),
            (
                "MISSING_COLUMN",
                "columns[category]",
                grpc.StatusCode.INVALID_ARGUMENT,
                stub.PutItems(pb.PutItemsRequest(item_ids=ids), timeout=10),
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert details(caught.value) == (code, reason, field)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.BatchGetHistory(pb.BatchGetHistoryRequest(user_ids=range(4097)), timeout=10):
                pass
        assert details(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_USERS", "user_ids")
        assert store.items.version == 0


async def test_a_damaged_history_is_data_loss(open_store: OpenStore) -> None:
    async with open_store() as store, grpc.aio.insecure_channel(store.target) as channel:
        await fill(store)
        path = next((store.vault.shard.segments.directory).glob("*.seg"))
        bytes_of = bytearray(path.read_bytes())
        bytes_of[:] = bytes(len(bytes_of))
        path.write_bytes(bytes_of)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub_of(channel).GetHistory(pb.GetHistoryRequest(user_id=3), timeout=10)
        assert details(caught.value) == (grpc.StatusCode.DATA_LOSS, "DAMAGED_HISTORY", "user_id")
        await store.client.append([9], [5], make_columns(5, seed=9))
        assert (await store.client.get_history(9)).event_count == 5


def stub_of(channel: grpc.aio.Channel) -> "rpc.SeqVaultAsyncStub":
    """The generated stub has one class at run time, two for types."""
    return cast("rpc.SeqVaultAsyncStub", rpc.SeqVaultStub(channel))


def details(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and field of a refusal."""
    metadata = error.trailing_metadata()
    status = Status.FromString(dict(metadata)["grpc-status-details-bin"])
    info, request = ErrorInfo(), BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(request)
    assert info.domain == "seqvault.v1"
    field = request.field_violations[0].field if request.field_violations else ""
    return error.code(), info.reason, field
