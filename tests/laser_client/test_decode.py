"""Replies to histories: both encodings say the same, damage is refused, length costs no Python calls."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import numpy as np
import pytest

from laser_client.decode import History, StaleSchema, decode_history
from laser_client.errors import DataCorrupted
from laser_client.wire import filter_to_proto, pack_columns
from seqcore.filters import Filter
from seqcore.schema import Column, Type
from seqvault.v1 import seqvault_pb2 as pb
from tests.laser_client.histories import SCHEMA, blocks_reply, make_rows, plain_reply

ALL = tuple(SCHEMA.event_column_of)
NEWER = replace(
    SCHEMA,
    version=2,
    event_columns=(*SCHEMA.event_columns, Column(name="dwell_s", type=Type.F32, since=2, default=2.5)),
)


def decoded(reply: pb.GetHistoryResponse, user: int = 5) -> History:
    return decode_history(reply, user_id=user, schema=SCHEMA, columns=ALL)


def assert_same_events(one: History, other: History) -> None:
    assert list(one.columns) == list(other.columns)
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name], strict=True)


@pytest.mark.parametrize("block_rows", [0, 1, 300, 2_500])
@pytest.mark.parametrize("tail_rows", [0, 1, 40])
@pytest.mark.parametrize(
    ("residual", "columns"),
    [
        (Filter(), ALL),
        (Filter(max_events=20), ("time_ms", "item")),
        (Filter(start_ms=3_000_000, end_ms=30_000_000), ("item",)),
        (Filter(actions=(0, 2), max_events=7), ALL),
    ],
)
def test_blocks_equal_plain(block_rows: int, tail_rows: int, residual: Filter, columns: tuple[str, ...]) -> None:
    rows = make_rows(block_rows + tail_rows)
    tail = rows[block_rows:][::-1]  # arrival is not the order of time
    reply = blocks_reply(5, rows[:block_rows], tail=tail)
    reply.blocks.residual.CopyFrom(filter_to_proto(residual))
    reply.blocks.columns[:] = columns
    history = decoded(reply)

    time = rows["time_ms"]
    is_kept = time >= (residual.start_ms or 0)
    is_kept &= time < (2**62 if residual.end_ms is None else residual.end_ms)
    is_kept &= np.isin(rows["action"], residual.actions or range(256))
    kept = rows[is_kept][-residual.max_events :]
    assert_same_events(history, decoded(plain_reply({name: kept[name] for name in columns})))
    assert history.event_count == len(kept)
    for values in history.columns.values():
        assert values.flags.c_contiguous
        assert values.flags.aligned


def test_events_of_one_time_stay_in_order_of_arrival() -> None:
    rows = make_rows(4)
    rows["time_ms"] = 77
    tail = make_rows(3, seed=8)
    tail["time_ms"] = 77
    history = decoded(blocks_reply(5, rows, tail=tail))
    np.testing.assert_array_equal(history.columns["item"], np.concatenate([rows["item"], tail["item"]]))


def test_unknown_user_has_the_columns_asked_for_without_rows() -> None:
    history = decode_history(pb.GetHistoryResponse(), user_id=1, schema=SCHEMA, columns=("action", "time_ms"))
    assert not history.found
    assert {name: (values.dtype.str, len(values)) for name, values in history.columns.items()} == {
        "action": ("|u1", 0),
        "time_ms": ("<i8", 0),
    }


def test_side_info_is_decoded() -> None:
    reply = blocks_reply(5, make_rows(2))
    reply.side_info.item_ids = np.array([3, 9], "<u8").tobytes()
    reply.side_info.present = b"\1\0"
    reply.side_info.columns.extend(pack_columns({"price": [70, 0]}, SCHEMA.side_info_columns))
    side_info = decoded(reply).side_info
    assert side_info is not None
    assert side_info.item_ids.tolist() == [3, 9]
    assert side_info.is_present.tolist() == [True, False]
    assert side_info.columns["price"].tolist() == [70, 0]


def test_block_of_another_user_is_refused() -> None:
    with pytest.raises(DataCorrupted, match="another user than 6"):
        decoded(blocks_reply(5, make_rows(10)), user=6)


def _lose_last_block_byte(reply: pb.GetHistoryResponse) -> None:
    reply.blocks.data = reply.blocks.data[:-1]


def _flip_a_byte(reply: pb.GetHistoryResponse) -> None:
    data = bytearray(reply.blocks.data)
    data[len(data) // 2] ^= 1
    reply.blocks.data = bytes(data)


def _lose_a_length(reply: pb.GetHistoryResponse) -> None:
    del reply.blocks.lengths[-1]


def _lose_last_tail_byte(reply: pb.GetHistoryResponse) -> None:
    reply.blocks.tail = reply.blocks.tail[:-1]


def _forget_the_schema_version(reply: pb.GetHistoryResponse) -> None:
    reply.blocks.schema_version = 0


def _cut_side_info(reply: pb.GetHistoryResponse) -> None:
    reply.side_info.item_ids = bytes(15)


def _cut_presence(reply: pb.GetHistoryResponse) -> None:
    reply.side_info.item_ids = bytes(16)
    reply.side_info.present = b"\1"


@pytest.mark.parametrize(
    "damage",
    [
        _lose_last_block_byte,
        _flip_a_byte,
        _lose_a_length,
        _lose_last_tail_byte,
        _forget_the_schema_version,
        _cut_side_info,
        _cut_presence,
    ],
)
def test_damaged_reply_is_refused(damage: Callable[[pb.GetHistoryResponse], None]) -> None:
    reply = blocks_reply(5, make_rows(1_500), tail=make_rows(2))
    decoded(reply)
    damage(reply)
    with pytest.raises(DataCorrupted) as caught:
        decoded(reply)
    assert caught.value.reason == "DAMAGED_REPLY"


def test_plain_reply_with_a_short_column_is_refused() -> None:
    reply = plain_reply({"item": make_rows(3)["item"]})
    reply.plain.columns[0].data = reply.plain.columns[0].data[:-8]
    with pytest.raises(DataCorrupted, match="3 rows"):
        decoded(reply)


def test_reply_of_a_newer_schema_asks_for_it() -> None:
    plain = plain_reply({"item": make_rows(3)["item"]})
    plain.plain.columns.append(pb.Column(name="dwell_s", data=bytes(12)))
    rows = np.zeros(1, NEWER.row_dtype)
    for reply in (plain, blocks_reply(5, rows, schema=NEWER)):
        with pytest.raises(StaleSchema):
            decoded(reply)


def test_tail_of_an_older_server_reads_as_defaults() -> None:
    rows = make_rows(3)
    reply = blocks_reply(5, rows[:2], tail=rows[2:])
    reply.blocks.columns.append("dwell_s")
    history = decode_history(reply, user_id=5, schema=NEWER, columns=())
    assert history.columns["dwell_s"].tolist() == [2.5, 2.5, 2.5]
    assert history.columns["item"].tolist() == rows["item"].tolist()


def _python_calls(run: Callable[[], object]) -> int:
    """Calls of Python and of C functions."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("encoding", ["blocks", "plain"])
@pytest.mark.parametrize("residual", [Filter(), Filter(max_events=50, actions=(1, 2), start_ms=1_100_000)])
def test_calls_do_not_grow_with_the_history(encoding: str, residual: Filter) -> None:
    def reply_of(count: int) -> pb.GetHistoryResponse:
        rows = make_rows(count)
        if encoding == "plain":
            return plain_reply({name: rows[name] for name in ALL})
        reply = blocks_reply(5, rows, tail=make_rows(20, start_ms=10**9))
        reply.blocks.residual.CopyFrom(filter_to_proto(residual))
        return reply

    few, many = reply_of(100), reply_of(10_000)
    decoded(few)  # caches of the schema are filled once
    calls = _python_calls(lambda: decoded(few))
    assert 0 < calls == _python_calls(lambda: decoded(many))
