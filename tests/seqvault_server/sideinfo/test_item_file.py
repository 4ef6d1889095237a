"""The file's format: older rows read with defaults, newer and damaged ones are refused by name."""

import os
from pathlib import Path

import lmdb
import numpy as np
import pytest

from seqvault_server.sideinfo.errors import SideInfoUnavailable
from seqvault_server.sideinfo.store import SideInfo
from tests.seqvault_server.sideinfo.harness import (
    NEXT_SCHEMA,
    SCHEMA,
    Columns,
    ids,
    make_columns,
    opened,
    put,
    read,
    same_bits,
)

OLD_ROW = 4 + 4 + 8


def test_rows_older_than_a_column_read_as_its_default(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    old, new = make_columns(random, 3), make_columns(random, 2, NEXT_SCHEMA)
    with opened(tmp_path) as side_info:
        put(side_info, ids(10, 20, 30), old)
    with opened(tmp_path, NEXT_SCHEMA) as side_info:
        put(side_info, ids(20, 25), new)
    for _ in range(2):
        with opened(tmp_path, NEXT_SCHEMA) as side_info:
            present, columns = read(side_info, ids(10, 20, 25, 30), NEXT_SCHEMA)
            assert present == [1, 1, 1, 1]
            assert same_bits({name: values[[1, 2]] for name, values in columns.items()}, new)
            for name, values in old.items():
                assert columns[name][[0, 3]].tobytes() == values[[0, 2]].tobytes()
            assert columns["author"][[0, 3]].tolist() == [2**64 - 1] * 2
            assert columns["shifts"][[0, 3]].tolist() == [[-3, -3]] * 2


def test_a_newer_schema_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path, NEXT_SCHEMA) as side_info:
        put(side_info, ids(1), make_columns(np.random.default_rng(2), 1, NEXT_SCHEMA))
    with pytest.raises(SideInfoUnavailable, match="written with schema version 2, newer than 1"):
        SideInfo.open(tmp_path, SCHEMA)


def _rewrite(path: Path, database: bytes, key: bytes, value: bytes) -> None:
    with (
        lmdb.open(str(path), max_dbs=2, map_size=1 << 30) as environment,
        environment.begin(write=True, db=environment.open_db(database)) as transaction,
    ):
        transaction.put(key, value)


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    _rewrite(tmp_path, b"meta", b"state", np.array([2, 1], "<u2").tobytes() + bytes(20))
    with pytest.raises(SideInfoUnavailable, match="format 2 is newer than 1"):
        SideInfo.open(tmp_path, SCHEMA)


@pytest.mark.parametrize(
    ("schema_version", "row_bytes"), [(1, OLD_ROW - 1), (1, OLD_ROW + 1), (0, 0), (2, OLD_ROW), (1, 0), (1, 500)]
)
def test_a_damaged_item_is_named(tmp_path: Path, schema_version: int, row_bytes: int) -> None:
    with opened(tmp_path) as side_info:
        put(side_info, ids(1, 258, 999), make_columns(np.random.default_rng(3), 3))
    value = schema_version.to_bytes(2, "little") + (1).to_bytes(8, "little") + bytes(row_bytes)
    _rewrite(tmp_path, b"items", (258).to_bytes(8, "big"), value)
    with pytest.raises(SideInfoUnavailable, match="item 258 is damaged"):
        SideInfo.open(tmp_path, SCHEMA)


def test_bytes_are_as_documented(tmp_path: Path) -> None:
    with opened(tmp_path) as side_info:
        columns: Columns = {
            "category": np.array([0x01020304], np.uint32),
            "price": np.array([1.0], np.float32),
            "genres": np.array([[1, 2, 3, 0xFFFF]], np.uint16),
        }
        put(side_info, ids(0x1122334455667788), columns)
    with lmdb.open(str(tmp_path), max_dbs=2, readonly=True) as environment:
        items, meta = environment.open_db(b"items", create=False), environment.open_db(b"meta", create=False)
        with environment.begin() as transaction:
            value = transaction.get(bytes.fromhex("1122334455667788"), db=items)
            state = transaction.get(b"state", db=meta)
    assert value == bytes.fromhex("0100 0100000000000000 04030201 0000803f 0100 0200 0300 ffff")
    assert state == bytes.fromhex("0100 0100 0100000000000000")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no LMDB file" * 1000)
    with pytest.raises(SideInfoUnavailable, match="cannot be opened"):
        SideInfo.open(tmp_path, SCHEMA)
    (tmp_path / "file").touch()
    with pytest.raises(SideInfoUnavailable, match="cannot be opened"):
        SideInfo.open(tmp_path / "file", SCHEMA)


@pytest.mark.parametrize("kept", [0.2, 0.6])
def test_a_file_cut_short_is_refused_and_does_not_kill_the_process(tmp_path: Path, kept: float) -> None:
    with opened(tmp_path) as side_info:
        for first in (0, 5_000):
            put(
                side_info,
                np.arange(first, first + 5_000, dtype=np.uint64),
                make_columns(np.random.default_rng(4), 5_000),
            )
    data = tmp_path / "data.mdb"
    os.truncate(data, int(data.stat().st_size * kept))
    with pytest.raises(SideInfoUnavailable, match="MDB_CORRUPTED"):
        SideInfo.open(tmp_path, SCHEMA)
