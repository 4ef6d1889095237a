"""Blocks read back: any columns, older schemas, and every kind of damage refused."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqcore.decode import decode, open_blocks
from seqcore.errors import BlockError
from seqcore.format import FOOTER_BYTES, HEADER, HEADER_BYTES, Codec
from seqcore.schema import Column, Role, Schema, Type
from tests.seqcore.samples import (
    SCHEMA,
    Encoded,
    assert_bits_equal,
    at_version,
    count_calls,
    decode_all,
    make_blocks,
    rows_of,
    schemas,
    steady_rows,
)

ONE_FRAME_EVENTS, FRAME_PER_COLUMN_EVENTS = 3, 256


def small_block(codec: Codec) -> Encoded:
    return make_blocks(
        steady_rows(ONE_FRAME_EVENTS if codec is Codec.ONE_FRAME else FRAME_PER_COLUMN_EVENTS), schema=SCHEMA
    )


def resealed(data: bytes | bytearray) -> bytes:
    """The block with a checksum that is right for whatever its bytes have become."""
    body = bytes(data[:-FOOTER_BYTES])
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") + bytes(data[-4:])


@settings(max_examples=150)
@given(st.data())
def test_any_columns_round_trip(data: st.DataObject) -> None:
    schema = data.draw(schemas())
    counts = data.draw(st.lists(st.integers(1, 40) | st.integers(1, 5_000), min_size=1, max_size=4))
    rows = data.draw(rows_of(schema, counts=counts))
    encoded = make_blocks(rows, schema=schema, counts=counts)
    blocks = open_blocks(encoded.data, encoded.lengths, schema=schema)
    decoded = decode(blocks, schema=schema, columns=schema.event_columns)
    assert list(decoded) == [column.name for column in schema.event_columns]
    for name, values in decoded.items():
        assert_bits_equal(values, rows[name])
    wanted = data.draw(st.lists(st.sampled_from(schema.event_columns), unique=True))
    projected = decode(blocks, schema=schema, columns=wanted)
    assert list(projected) == [column.name for column in wanted]
    for name, values in projected.items():
        assert_bits_equal(values, rows[name])


@settings(max_examples=100)
@given(st.data())
def test_blocks_of_older_schemas_read_back_with_defaults(data: st.DataObject) -> None:
    schema = data.draw(schemas())
    versions = data.draw(st.lists(st.integers(1, schema.version), min_size=1, max_size=5))
    parts, encoded = [], Encoded(b"", np.empty(0, np.int64), make_blocks(steady_rows(1), schema=SCHEMA).blocks)
    for version in versions:
        older = at_version(schema, version)
        counts = [data.draw(st.integers(1, 30) | st.integers(200, 1_500))]
        rows = data.draw(rows_of(older, counts=counts))
        encoded += make_blocks(rows, schema=older, counts=counts)
        parts.append(rows)
    decoded = decode_all(encoded.data, encoded.lengths, schema=schema)
    for column in schema.event_columns:
        expected = [
            rows[column.name]
            if version >= column.since
            else np.full(len(rows), column.default, column.dtype)
            for version, rows in zip(versions, parts, strict=True)
        ]  # fmt: skip
        assert_bits_equal(decoded[column.name], np.concatenate(expected))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFC12345, 0x80000000, 0x00000001], ids=hex)
def test_bit_patterns_of_floats_survive(bits: int) -> None:
    schema = Schema(
        version=1, event_columns=(*SCHEMA.event_columns, Column(name="score", type=Type.F32))
    )  # fmt: skip
    rows = np.zeros(300, schema.row_dtype)
    rows["score"].view("<u4")[:] = bits
    encoded = make_blocks(rows, schema=schema)
    assert_bits_equal(decode_all(encoded.data, encoded.lengths, schema=schema)["score"], rows["score"])


@pytest.mark.parametrize("codec", Codec)
def test_every_flipped_bit_of_a_block_is_refused(codec: Codec) -> None:
    block = small_block(codec)
    for at in range(len(block.data)):
        for bit in range(8):
            damaged = bytearray(block.data)
            damaged[at] ^= 1 << bit
            with pytest.raises(BlockError):
                open_blocks(damaged, block.lengths, schema=SCHEMA)


@pytest.mark.parametrize("codec", Codec)
def test_every_truncation_of_a_block_is_refused(codec: Codec) -> None:
    block = small_block(codec)
    for length in range(len(block.data)):
        for claimed in (length, len(block.data)):
            with pytest.raises(BlockError):
                open_blocks(block.data[:length], np.array([claimed]), schema=SCHEMA)
            with pytest.raises(BlockError):
                open_blocks(block.data[:length], np.array([claimed]), schema=SCHEMA, offset_K=np.zeros(1, np.int64))


@settings(max_examples=300)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 100).map(lambda units: 16 * units), max_size=6))
@example([2**63 - 1, 2**63 - 1])
@example([2**62, 2**62, 2**62, 2**62])
@example([-16])
@example([0])
def test_lengths_that_lie_are_refused(lengths: list[int]) -> None:
    encoded = make_blocks(steady_rows(6), schema=SCHEMA, counts=[1, 2, 3])
    if lengths == encoded.lengths.tolist():
        return
    with pytest.raises(BlockError):
        open_blocks(encoded.data, np.array(lengths, np.int64), schema=SCHEMA)


def test_lengths_beyond_a_signed_word_are_refused() -> None:
    encoded = make_blocks(steady_rows(6), schema=SCHEMA)
    with pytest.raises(BlockError):
        open_blocks(encoded.data, np.array([2**64 - 96, len(encoded.data) + 96], np.uint64), schema=SCHEMA)


@pytest.mark.parametrize("offset", [-1, -16, -(2**63), 1, 16, 2**62, 2**63 - 1])
def test_offsets_that_lie_are_refused(offset: int) -> None:
    block = small_block(Codec.ONE_FRAME)
    with pytest.raises(BlockError):
        open_blocks(block.data, block.lengths, schema=SCHEMA, offset_K=np.array([offset]))


def test_blocks_are_found_between_gaps() -> None:
    rows = steady_rows(8)
    first, second = make_blocks(rows[:5], schema=SCHEMA), make_blocks(rows[5:], schema=SCHEMA)
    data = b"x" * 7 + first.data + b"y" * 32 + second.data + b"z"
    offset_K = np.array([7, 7 + len(first.data) + 32])
    lengths = np.concatenate([first.lengths, second.lengths])
    blocks = open_blocks(memoryview(data), lengths, schema=SCHEMA, offset_K=offset_K)
    for name, values in decode(blocks, schema=SCHEMA, columns=SCHEMA.event_columns).items():
        assert_bits_equal(values, rows[name])


def test_no_blocks_are_no_events() -> None:
    decoded = decode_all(b"", np.empty(0, np.int64), schema=SCHEMA)
    assert {name: (len(values), values.dtype) for name, values in decoded.items()} == {
        column.name: (0, column.dtype) for column in SCHEMA.event_columns
    }


def test_a_newer_format_and_a_newer_schema_are_refused_by_name() -> None:
    block = small_block(Codec.ONE_FRAME)
    with pytest.raises(BlockError, match="format"):
        open_blocks(resealed(with_field(block.data, "format", 2)), block.lengths, schema=SCHEMA)
    with pytest.raises(BlockError, match="schema version is newer than 1"):
        open_blocks(resealed(with_field(block.data, "schema", 2)), block.lengths, schema=SCHEMA)


@pytest.mark.parametrize("bad", range(4))
def test_the_error_says_where_the_bad_block_begins(bad: int) -> None:
    encoded = make_blocks(steady_rows(900), schema=SCHEMA, counts=[300, 100, 400, 100])
    offset = int(encoded.blocks.offset_K1[bad])
    end = offset + int(encoded.lengths[bad])
    damaged = bytearray(encoded.data)
    damaged[offset + 80] ^= 1
    with pytest.raises(BlockError) as failed:
        open_blocks(damaged, encoded.lengths, schema=SCHEMA)
    assert failed.value.offset == offset
    # A frame that is none, behind a checksum that is right.
    first_frame = encoded.data.index(b"\x28\xb5\x2f\xfd", offset)
    damaged = bytearray(encoded.data)
    damaged[first_frame] ^= 1
    damaged[offset:end] = resealed(damaged[offset:end])
    blocks = open_blocks(damaged, encoded.lengths, schema=SCHEMA)
    with pytest.raises(BlockError) as failed:
        decode(blocks, schema=SCHEMA, columns=SCHEMA.event_columns)
    assert failed.value.offset == offset


def with_field(data: bytes, field: str, value: int) -> bytearray:
    changed = bytearray(data)
    dtype, at = HEADER.fields[field][:2]  # type: ignore[index]
    changed[at : at + dtype.itemsize] = (value % 256**dtype.itemsize).to_bytes(dtype.itemsize, "little")
    return changed


def decode_hostile(data: bytes, lengths: Any, schema: Schema = SCHEMA) -> bool:
    """Whether bytes behind a right checksum are taken for a block; if so, they decode to what their header says."""
    try:
        blocks = open_blocks(data, lengths, schema=schema)
        decoded = decode(blocks, schema=schema, columns=schema.event_columns)
    except BlockError:
        return False
    count = int(blocks.header_K["count"].sum())
    assert all(len(values) == count for values in decoded.values())
    time = decoded[schema.time.name]
    assert (time[0], time[-1]) == (blocks.header_K["min_time"][0], blocks.header_K["max_time"][-1])
    return True


@pytest.mark.parametrize("codec", Codec)
def test_hostile_bytes_behind_a_right_checksum_never_crash_the_reader(codec: Codec) -> None:
    block = small_block(codec)
    taken = 0
    tracemalloc.start()
    for at in range(min(len(block.data) - FOOTER_BYTES, 240)):
        for value in (0, 1, 2, 9, 0x18, 0x80, 0xFF):
            hostile = bytearray(block.data)
            hostile[at] = value
            taken += decode_hostile(resealed(hostile), block.lengths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken > 0, "user, LSN or address may be anything to the decoder"
    assert peak < 2 << 20, "one block is at most 1,024 rows"


@settings(max_examples=1_000)
@given(
    codec=st.sampled_from(Codec),
    fields=st.dictionaries(
        st.sampled_from([name for name in HEADER.names or () if name not in {"magic", "length"}]),
        st.integers(0, 4) | st.integers(0, 2**64 - 1),
        max_size=3,
    ),
    behind_header=st.dictionaries(st.integers(0, 48), st.integers(0, 255), max_size=4),
)
def test_hostile_fields_together_never_crash_the_reader(
    codec: Codec, fields: dict[str, int], behind_header: dict[int, int]
) -> None:
    block = small_block(codec)
    data = block.data
    for field, value in fields.items():
        data = bytes(with_field(data, field, value))
    hostile = bytearray(data)
    for at, value in behind_header.items():
        hostile[HEADER_BYTES + at % (len(data) - HEADER_BYTES - FOOTER_BYTES)] = value
    decode_hostile(resealed(hostile), block.lengths)


def with_frame(frame: bytes) -> bytes:
    """A sealed block of SCHEMA whose 3 events call for 3 and 3 * 2 bytes of item and time, and whose frame is this one."""
    header = np.zeros(1, HEADER)
    header["magic"], header["format"], header["codec"], header["schema"] = 0x5653, 1, Codec.ONE_FRAME, 1
    header["column_count"], header["count"] = len(SCHEMA.event_columns), 3
    descriptors = bytes([1, 0x12, 0, 0, 0])
    used = HEADER_BYTES + len(descriptors) + 4 + len(frame) + FOOTER_BYTES
    header["length"] = length = -(-used // 16) * 16
    body = header.tobytes() + descriptors + len(frame).to_bytes(4, "little") + frame
    return resealed(body + bytes(length - len(body) - 4) + length.to_bytes(4, "little"))


FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
WINDOW_OF_128_MIB, WINDOW_OF_2_GIB = bytes([(27 - 10) << 3]), bytes([(31 - 10) << 3])


def block_of_frame(content: bytes, *, kind: int = 0, is_last: bool = True, regenerated: int | None = None) -> bytes:
    """RFC 8878: kind 0 is raw, 1 is one byte repeated."""
    size = len(content) if regenerated is None else regenerated
    return (size << 3 | kind << 1 | is_last).to_bytes(3, "little") + content


def test_a_frame_made_by_hand_is_read() -> None:
    data = with_frame(FRAME_MAGIC + b"\0" + WINDOW_OF_128_MIB + block_of_frame(bytes([7, 8, 9, *[0] * 6])))
    assert decode_all(data, np.array([len(data)]), schema=SCHEMA)["item_id"].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"no frame",
        FRAME_MAGIC,
        FRAME_MAGIC + b"\0" + WINDOW_OF_2_GIB + block_of_frame(bytes(9)),
        FRAME_MAGIC + b"\0" + WINDOW_OF_128_MIB + block_of_frame(bytes(8)),
        FRAME_MAGIC + b"\0" + WINDOW_OF_128_MIB + block_of_frame(bytes(10)),
        FRAME_MAGIC + b"\0" + WINDOW_OF_128_MIB + block_of_frame(bytes(9), is_last=False),
        FRAME_MAGIC + b"\0" + WINDOW_OF_128_MIB + block_of_frame(b"x", kind=1, is_last=False, regenerated=1 << 17) * 99,
        FRAME_MAGIC + b"\xe0" + (1 << 62).to_bytes(8, "little") + block_of_frame(bytes(9)),
        b"\x50\x2a\x4d\x18" + (9).to_bytes(4, "little") + bytes(9),
    ],
    ids=[
        "absent",
        "no frame",
        "cut short",
        "a window of 2 GiB",
        "too little",
        "too much",
        "without an end",
        "12 MiB of one byte",
        "said to hold 4 EiB",
        "skippable",
    ],
)
def test_a_frame_of_anything_else_is_refused(frame: bytes) -> None:
    data = with_frame(frame)
    tracemalloc.start()
    with pytest.raises(BlockError, match="frame"):
        decode_all(data, np.array([len(data)]), schema=SCHEMA)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_block_too_short_for_its_descriptors_is_refused() -> None:
    columns = [Column(name=f"plain_{i}", type=Type.U8) for i in range(30)]
    wide = Schema(version=1, event_columns=(*SCHEMA.event_columns[:2], *columns))
    header = np.zeros(1, HEADER)
    header["magic"], header["format"], header["codec"], header["schema"] = 0x5653, 1, Codec.FRAME_PER_COLUMN, 1
    header["column_count"], header["count"], header["length"] = len(wide.event_columns), 1, 96
    shortest = bytearray(header.tobytes() + bytes(20) + (96).to_bytes(4, "little"))
    for codec in Codec:
        shortest[3] = codec
        with pytest.raises(BlockError, match="descriptors run past the block"):
            decode_all(resealed(shortest), np.array([96]), schema=wide)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("codec", 3, "codec 3"),
        ("column_count", 4, "4 columns"),
        ("count", 0, "impossible schema version or count"),
        ("count", 1025, "impossible schema version or count"),
        ("schema", 0, "impossible schema version or count"),
        ("max_time", 5, "times do not end"),
        (0, 0x09, "descriptor of column 0"),
        (0, 0x12, "descriptor of column 0"),
        (1, 0x02, "descriptor of column 1"),
        (2, 0x02, "descriptor of column 2"),
        (5, 1 << 16, "frames run past"),
        (5, 0, "a frame of nothing"),
    ],
)
@pytest.mark.parametrize("codec", Codec)
def test_what_does_not_follow_the_format_is_named(codec: Codec, place: str | int, value: int, problem: str) -> None:
    """`place` is a field of the header; or behind it one of the 5 descriptors, or the first frame's length."""
    block = small_block(codec)
    if isinstance(place, str):
        tampered = with_field(block.data, place, value)
    else:
        tampered = bytearray(block.data)
        width = 1 if place < 5 else 4
        tampered[HEADER_BYTES + place : HEADER_BYTES + place + width] = value.to_bytes(width, "little")
    with pytest.raises(BlockError, match=problem):
        decode_all(resealed(tampered), block.lengths, schema=SCHEMA)


@pytest.mark.parametrize("wanted", [SCHEMA.event_columns, SCHEMA.event_columns[:2]], ids=["all", "two columns"])
def test_the_number_of_python_calls_does_not_depend_on_the_number_of_events(wanted: tuple[Column, ...]) -> None:
    def calls(count: int) -> int:
        encoded = make_blocks(steady_rows(count), schema=SCHEMA)
        decode_all(encoded.data, encoded.lengths, schema=SCHEMA)  # whatever is computed once is computed now
        return count_calls(
            lambda: decode(open_blocks(encoded.data, encoded.lengths, schema=SCHEMA), schema=SCHEMA, columns=wanted)
        )

    assert calls(100) == calls(10_000) > 0


def test_the_time_column_of_any_name_and_place_is_summed_up() -> None:
    schema = Schema(
        version=1,
        event_columns=(
            Column(name="plain", type=Type.I64),
            Column(name="when", type=Type.I64, role=Role.TIME),
            Column(name="what", type=Type.U64, role=Role.ITEM),
        ),
    )
    rows = np.zeros(5, schema.row_dtype)
    rows["plain"] = [5, -3, 8, -(2**63), 2**63 - 1]
    rows["when"] = [-(2**63), -1, 0, 0, 2**63 - 1]
    encoded = make_blocks(rows, schema=schema, counts=[2, 3])
    for name, values in decode_all(encoded.data, encoded.lengths, schema=schema).items():
        assert_bits_equal(values, rows[name])
