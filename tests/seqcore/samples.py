"""Schemas, events and blocks to test with: fixed ones, and Hypothesis strategies for any."""

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from seqcore.decode import decode, open_blocks
from seqcore.schema import Column, Role, Schema, Type
from seqvault_server.storage.encode import Blocks, Runs, encode, seal, words_of

Rows = npt.NDArray[np.void]
Arrays = Mapping[str, npt.NDArray[np.generic]]

SCHEMA = Schema(
    version=1,
    event_columns=(
        Column(name="item_id", type=Type.U64, role=Role.ITEM),
        Column(name="time_ms", type=Type.I64, role=Role.TIME),
        Column(name="action", type=Type.U8, role=Role.ACTION),
        Column(name="scene", type=Type.U16, role=Role.SCENE),
        Column(name="dwell_ms", type=Type.U32, default=0),
    ),
)


@dataclass(frozen=True)
class Encoded:
    """Sealed blocks and what went into them."""

    data: bytes
    lengths: npt.NDArray[np.int64]
    blocks: Blocks

    def __add__(self, other: "Encoded") -> "Encoded":
        return Encoded(self.data + other.data, np.concatenate([self.lengths, other.lengths]), self.blocks)


def steady_rows(count: int, *, schema: Schema = SCHEMA) -> Rows:
    """Rows of SCHEMA whose ranges, and so whose widths, are the same for any count above 2."""
    rows = np.zeros(count, schema.row_dtype)
    number = np.arange(count)
    rows["item_id"] = (number * 7919) % 60_000
    rows["item_id"][:2] = 60_000
    rows["time_ms"] = 1_700_000_000_000 + number * 3_000
    rows["action"], rows["scene"], rows["dwell_ms"] = number % 4 + 1, number % 3, number * 31 % 50_000
    rows["dwell_ms"][:2] = 50_000
    return rows


def make_blocks(rows: Rows, *, schema: Schema, counts: Sequence[int] | None = None, offset: int = 4096) -> Encoded:
    """The rows as sealed blocks, in runs of `counts` rows (one run by default) of users 1, 2, 3, ..."""
    starts = np.concatenate([[0], np.cumsum(counts or [len(rows)])]).astype(np.int64)
    users = np.arange(1, len(starts), dtype=np.uint64)
    runs = Runs(users, starts, users * np.uint64(10), users * np.uint64(10) + np.uint64(5))
    blocks = encode(words_of(rows, schema), runs, schema=schema)
    seal(blocks, segment=3, offset_K=blocks.offset_K1[:-1] + offset, gap_K=np.zeros(len(blocks.run_K), np.int64))
    return Encoded(bytes(blocks.data), np.diff(blocks.offset_K1), blocks)


def decode_all(data: bytes, lengths: npt.NDArray[np.integer], *, schema: Schema) -> dict[str, npt.NDArray[np.generic]]:
    return decode(open_blocks(data, lengths, schema=schema), schema=schema, columns=schema.event_columns)


def assert_bits_equal(decoded: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> None:
    """Bit patterns, so that a NaN equals itself and nothing else."""
    assert decoded.dtype == expected.dtype
    assert decoded.tobytes() == expected.tobytes()


def count_calls(measured: Callable[[], object]) -> int:
    """Calls of Python and C functions that the interpreter makes. The collector stays out: Hypothesis hooks into it."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in {"call", "c_call"}

    gc.disable()
    sys.setprofile(count)
    try:
        measured()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counted


def at_version(schema: Schema, version: int) -> Schema:
    """The schema as it was."""
    return Schema(version=version, event_columns=schema.event_columns_at(version))


_DEFAULTS: Mapping[Type, st.SearchStrategy[int | float]] = {
    Type.U8: st.integers(0, 2**8 - 1),
    Type.U16: st.integers(0, 2**16 - 1),
    Type.U32: st.integers(0, 2**32 - 1),
    Type.U64: st.integers(0, 2**64 - 1),
    Type.I64: st.integers(-(2**63), 2**63 - 1),
    Type.F32: st.floats(width=32, allow_nan=False, allow_infinity=False),
}


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """Any event columns, in any order, that came in up to three versions."""
    first = [("item", Type.U64, Role.ITEM), ("time", Type.I64, Role.TIME)]
    optional = [("action", Type.U8, Role.ACTION), ("scene", draw(st.sampled_from([Type.U8, Type.U16])), Role.SCENE)]
    plain = [(f"plain_{i}", draw(st.sampled_from(Type)), Role.PLAIN) for i in range(draw(st.integers(0, 5)))]
    others = draw(st.permutations(optional[: draw(st.integers(0, 2))] + plain))
    at_first = draw(st.integers(0, len(others)))
    version = draw(st.integers(1, 3))
    columns = [
        Column(name=name, type=type_, role=role)
        for name, type_, role in draw(st.permutations(first + others[:at_first]))
    ]
    if version > 1:
        later = sorted(draw(st.integers(2, version)) for _ in others[at_first:])
        for since, (name, type_, role) in zip(later, others[at_first:], strict=True):
            columns.append(Column(name=name, type=type_, role=role, since=since, default=draw(_DEFAULTS[type_])))
    return Schema(version=version, event_columns=tuple(columns))


@st.composite
def rows_of(draw: st.DrawFn, schema: Schema, *, counts: Sequence[int]) -> Rows:
    """Runs of `counts` rows, each sorted by time; every column of drawn width, 0 (all zeros) to whole random words."""
    total = sum(counts)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = np.zeros(total, schema.row_dtype)
    for column in schema.event_columns:
        bits = draw(st.integers(0, 8 * column.dtype.itemsize))
        words = rng.integers(0, 2**64 - 1, total, np.uint64, endpoint=True) & np.uint64(2**bits - 1)
        values = words.astype(f"u{column.dtype.itemsize}").view(column.dtype)
        if column.type is Type.I64 and draw(st.booleans()):
            values = -values
        rows[column.name] = values
    ends = np.cumsum(counts)
    for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True):
        rows[schema.time.name][start:end].sort()
    return rows
