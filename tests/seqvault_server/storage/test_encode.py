"""The writer of blocks: what headers say, how rows are split, how large blocks get. Round trips: tests/seqcore/test_decode.py."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from seqcore.decode import open_blocks
from seqcore.errors import BlockError
from seqcore.format import (
    ALIGNMENT_BYTES,
    FOOTER,
    FOOTER_BYTES,
    HEADER,
    HEADER_BYTES,
    MAX_BLOCK_EVENTS,
    MIN_BLOCK_BYTES,
    Codec,
    Transform,
    max_block_bytes,
)
from seqcore.schema import Column, Role, Schema, Type
from seqvault_server.storage.encode import Runs, encode, seal, words_of
from tests.seqcore.samples import SCHEMA, make_blocks, rows_of, schemas, steady_rows


def runs_of(*counts: int) -> Runs:
    users = np.arange(len(counts), dtype=np.uint64) + np.uint64(2**64 - len(counts))
    return Runs(users, np.concatenate([[0], np.cumsum(counts)]), users - np.uint64(9), users - np.uint64(5))


def test_headers_say_what_the_blocks_hold() -> None:
    rows = steady_rows(1_500)
    rows["action"] = 1
    rows["action"][:2] = [63, 64]
    blocks = encode(words_of(rows, SCHEMA), runs_of(100, 1_400), schema=SCHEMA)
    assert blocks.run_K.tolist() == [0, 1, 1]
    header_K = blocks.header_K
    assert header_K["count"].tolist() == [100, 700, 700]
    assert header_K["codec"].tolist() == [Codec.ONE_FRAME, Codec.FRAME_PER_COLUMN, Codec.FRAME_PER_COLUMN]
    assert header_K["user"].tolist() == [2**64 - 2, 2**64 - 1, 2**64 - 1]
    assert header_K["first_lsn"].tolist() == [2**64 - 11, 2**64 - 10, 2**64 - 10]
    assert header_K["last_lsn"].tolist() == [2**64 - 7, 2**64 - 6, 2**64 - 6]
    assert header_K["min_time"].tolist() == rows["time_ms"][[0, 100, 800]].tolist()
    assert header_K["max_time"].tolist() == rows["time_ms"][[99, 799, 1_499]].tolist()
    assert header_K["action_mask"].tolist() == [1 << 63 | 1 << 0 | 1 << 1, 1 << 1, 1 << 1]
    assert header_K["schema"].tolist() == [1, 1, 1]
    assert header_K["column_count"].tolist() == [5, 5, 5]
    assert header_K["length"].tolist() == np.diff(blocks.offset_K1).tolist()
    assert header_K["reserved"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (1, [1]),
        (255, [255]),
        (256, [256]),
        (1_024, [1_024]),
        (1_025, [512, 513]),
        (2_049, [683, 683, 683]),
        (5_000, [1_000] * 5),
    ],
)
def test_long_runs_become_blocks_of_equal_parts(count: int, parts: list[int]) -> None:
    blocks = encode(words_of(steady_rows(count), SCHEMA), runs_of(count), schema=SCHEMA)
    assert blocks.header_K["count"].tolist() == parts


def test_a_schema_without_actions_has_no_action_mask() -> None:
    schema = Schema(version=1, event_columns=SCHEMA.event_columns[:2])
    blocks = encode(words_of(np.ones(3, schema.row_dtype), schema), runs_of(3), schema=schema)
    assert blocks.header_K["action_mask"].tolist() == [0]


def test_descriptors_keep_the_bytes_that_values_need() -> None:
    rows = np.zeros(4, SCHEMA.row_dtype)
    rows["item_id"] = [0, 255, 256, 1]
    rows["time_ms"] = [-(2**63), -(2**63), 70_000 - 2**63, 70_001 - 2**63]
    rows["action"] = 7
    rows["dwell_ms"] = [0, 0, 0, 2**31]
    blocks = encode(words_of(rows, SCHEMA), runs_of(4), schema=SCHEMA)
    descriptors = blocks.data[HEADER_BYTES : HEADER_BYTES + 5].tolist()
    assert descriptors == [2, Transform.DELTA << 4 | 3, 1, 0, 4]


@settings(max_examples=60)
@given(st.data())
def test_every_block_is_aligned_and_bounded(data: st.DataObject) -> None:
    schema = data.draw(schemas())
    counts = data.draw(st.lists(st.integers(1, 300) | st.integers(1, 3_000), min_size=1, max_size=4))
    encoded = make_blocks(data.draw(rows_of(schema, counts=counts)), schema=schema, counts=counts)
    bound = max_block_bytes(len(schema.event_columns), schema.row_dtype.itemsize)
    assert (encoded.lengths % ALIGNMENT_BYTES == 0).all()
    assert (encoded.lengths >= MIN_BLOCK_BYTES).all()
    assert (encoded.lengths <= bound).all()
    assert (encoded.blocks.header_K["count"] <= MAX_BLOCK_EVENTS).all()


def test_the_bound_holds_for_the_widest_rows_of_noise() -> None:
    plain = [Column(name=f"plain_{i}", type=Type.U64) for i in range(30)]
    schema = Schema(version=1, event_columns=(*SCHEMA.event_columns[:2], *plain))
    rng = np.random.default_rng(1)
    rows = np.frombuffer(rng.bytes(MAX_BLOCK_EVENTS * schema.row_dtype.itemsize), schema.row_dtype).copy()
    rows["time_ms"] = np.sort(rows["time_ms"])
    encoded = make_blocks(rows, schema=schema)
    assert encoded.lengths[0] > 0.99 * rows.nbytes, "noise does not compress, else the test shows nothing"
    assert encoded.lengths[0] <= max_block_bytes(32, schema.row_dtype.itemsize)


def test_an_unsealed_block_is_no_block() -> None:
    blocks = encode(words_of(steady_rows(3), SCHEMA), runs_of(3), schema=SCHEMA)
    with pytest.raises(BlockError, match="no block begins here"):
        open_blocks(bytes(blocks.data), np.diff(blocks.offset_K1), schema=SCHEMA)


def test_a_seal_writes_address_gap_checksum_and_trailer() -> None:
    blocks = encode(words_of(steady_rows(600), SCHEMA), runs_of(300, 300), schema=SCHEMA)
    seal(
        blocks,
        segment=np.array([7, 65_535], np.uint64),
        offset_K=np.array([8_192, 2**30 - 4_096]),
        gap_K=np.array([0, 4_080]),
    )
    data = bytes(blocks.data)
    for k, (begin, end) in enumerate(zip(blocks.offset_K1[:-1].tolist(), blocks.offset_K1[1:].tolist(), strict=True)):
        header = np.frombuffer(data, HEADER, 1, begin)[0]
        assert (header["segment"], header["offset"], header["gap"]) == [(7, 8_192, 0), (65_535, 2**30 - 4_096, 255)][k]
        footer = np.frombuffer(data, FOOTER, 1, end - FOOTER_BYTES)[0]
        assert footer["checksum"] == xxhash.xxh3_64_intdigest(data[begin : end - FOOTER_BYTES])
        assert footer["length"] == end - begin


def test_the_same_events_elsewhere_differ_in_address_and_checksum_alone() -> None:
    rows = steady_rows(300)
    here, there = (make_blocks(rows, schema=SCHEMA, offset=offset).data for offset in (4_096, 8_192))
    at = HEADER.fields["offset"][1]  # type: ignore[index]
    different = {i for i, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1]}
    assert different <= {*range(at, at + 4), *range(len(here) - FOOTER_BYTES, len(here) - 4)}
    assert at + 1 in different


def test_words_keep_the_bit_patterns_of_values() -> None:
    schema = Schema(
        version=1,
        event_columns=(*SCHEMA.event_columns[:2], Column(name="score", type=Type.F32), Column(name="x", type=Type.I64)),
    )
    rows = np.zeros(2, schema.row_dtype)
    rows["item_id"], rows["time_ms"] = [2**64 - 1, 1], [-1, 2]
    rows["score"].view("<u4")[:] = [0x7FC00001, 0x80000000]
    rows["x"] = [-(2**63), 3]
    assert words_of(rows, schema).tolist() == [
        [2**64 - 1, 1],
        [2**64 - 1, 2],
        [0x7FC00001, 0x80000000],
        [2**63, 3],
    ]


def test_any_order_of_columns_keeps_the_roles_apart() -> None:
    schema = Schema(
        version=1,
        event_columns=(
            Column(name="what", type=Type.U8, role=Role.ACTION),
            Column(name="when", type=Type.I64, role=Role.TIME),
            Column(name="item", type=Type.U64, role=Role.ITEM),
        ),
    )
    rows = np.zeros(2, schema.row_dtype)
    rows["what"], rows["when"] = [2, 5], [10, 20]
    blocks = encode(words_of(rows, schema), runs_of(2), schema=schema)
    assert blocks.header_K["action_mask"].tolist() == [1 << 2 | 1 << 5]
    assert (blocks.header_K["min_time"][0], blocks.header_K["max_time"][0]) == (10, 20)
