"""The truth about items: an LMDB environment, two named databases in it.

    items   item:u64 big-endian  ->  schema:u16 version:u64 row         values little-endian, no padding
    meta    "state"              ->  format:u16 schema:u16 version:u64  absent before the first put

`row` holds the side-info columns that the schema of that version had (`since` <= schema), in their order. `version` is
the put that wrote the item; in `state`, the newest put. A put is one transaction: items and `state` change together,
and are synced when it returns.

The map is address space, not memory or disk: the file grows with what is in it.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Self

import lmdb
import numpy as np
import numpy.typing as npt

from seqcore.schema import Schema, row_dtype
from seqcore.table import Words
from seqvault_server.sideinfo.batch import ItemBatch
from seqvault_server.sideinfo.errors import SideInfoFull, SideInfoUnavailable
from seqvault_server.storage.files import Files

FORMAT: Final = 1
MAP_SIZE_BYTES: Final = 1 << 40
MIN_FREE_BYTES: Final = 256 << 20
"""More than a put can dirty beside its own rows: 16,384 leaves and the branches above them."""

_STATE_KEY: Final = b"state"
_STATE: Final = np.dtype([("format", "<u2"), ("schema", "<u2"), ("version", "<u8")])
_HEADER: Final = np.dtype([("schema", "<u2"), ("version", "<u8")])
_ITEM: Final = np.dtype(">u8")
_WRITE_ITEMS: Final = 512
"""Items made into Python objects at once: no call holds the GIL for longer than that takes (0.1 ms)."""
_SCAN_ITEMS: Final = 16_384


class ItemFile:
    """See the module's text. Blocking; after `open`, `write` belongs to one thread. One process has it open at a time."""

    def __init__(
        self, path: Path, environment: lmdb.Environment, schema: Schema, max_items: int, min_free_bytes: int
    ) -> None:
        self.path = path
        self._environment = environment
        self._schema = schema
        self._max_items = max_items
        self._min_free_bytes = min_free_bytes
        self._items = environment.open_db(b"items")
        self._meta = environment.open_db(b"meta")
        self._row = row_dtype(schema.side_info_columns)
        self._failure = ""
        self.version = 0
        """The newest put in the file, 0 before the first."""

    @classmethod
    def open(cls, path: Path, schema: Schema, *, max_items: int, map_size_bytes: int, min_free_bytes: int) -> Self:
        """Opens or makes the environment in the folder `path`.

        Raises: SideInfoUnavailable: a newer format or schema than this program's, more than `max_items` there, not readable.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            environment = lmdb.open(str(path), map_size=map_size_bytes, max_dbs=2, mode=0o640)
        except (OSError, lmdb.Error) as error:
            raise SideInfoUnavailable(f"{path}: cannot be opened: {error}") from error
        try:
            environment.reader_check()
            _complete(path / "data.mdb", environment)
            file = cls(path, environment, schema, max_items, min_free_bytes)
            file._settle()
            for made in (path, path.parent):
                Files().sync_directory(made)
        except (OSError, lmdb.Error) as error:
            environment.close()
            raise SideInfoUnavailable(f"{path}: cannot be opened: {error}") from error
        except BaseException:
            environment.close()
            raise
        return file

    def close(self) -> None:
        self._environment.close()

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return (self.path / "data.mdb").stat().st_size

    def write(self, batch: ItemBatch) -> int:
        """Durable when it returns; returns the put's version.

        Raises: SideInfoFull: `max_items`, the map or the disk, and nothing was written; SideInfoUnavailable, from then on
        for every write: after a failed sync nobody knows whether the put is there until the file is opened again.
        """
        if self._failure:
            raise SideInfoUnavailable(self._failure)
        self._check_free(batch)
        version = self.version + 1
        # In order of the keys: neighbours share pages.
        order = np.argsort(batch.item_I)
        keys = batch.item_I[order].astype(_ITEM).view(f"V{_ITEM.itemsize}")
        values = _pack(self._schema.version, version, batch.rows[order])
        state = np.array((FORMAT, self._schema.version, version), _STATE)
        try:
            with self._environment.begin(write=True) as transaction:
                with transaction.cursor(self._items) as cursor:
                    for begin in range(0, len(keys), _WRITE_ITEMS):
                        chosen = slice(begin, begin + _WRITE_ITEMS)
                        cursor.putmulti(zip(keys[chosen].tolist(), values[chosen].tolist(), strict=True))
                if transaction.stat(self._items)["entries"] > self._max_items:
                    raise SideInfoFull(f"the store holds at most {self._max_items} items")  # and so aborts
                transaction.put(_STATE_KEY, state.tobytes(), db=self._meta)
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise SideInfoFull(f"{self.path}: {error}") from error
        except lmdb.Error as error:
            self._failure = f"{self.path}: a write failed: {error}"
            raise SideInfoUnavailable(self._failure) from error
        self.version = version
        return version

    def scan(self) -> Iterator[ItemBatch]:
        """All items, ascending, as rows of today's schema; columns that a row is older than hold their default.

        Raises: SideInfoUnavailable at an item that does not follow the format, naming it, or at a damaged page.
        """
        try:
            with self._environment.begin() as transaction, transaction.cursor(self._items) as cursor:
                entries = iter(cursor)
                while chunk := list(islice(entries, _SCAN_ITEMS)):
                    keys, values = zip(*chunk, strict=True)
                    item_I = np.frombuffer(b"".join(keys), _ITEM).astype(np.uint64)
                    yield ItemBatch(item_I=item_I, rows=self._unpack(item_I, values))
        except lmdb.Error as error:
            raise SideInfoUnavailable(f"{self.path}: cannot be read: {error}") from error

    def _check_free(self, batch: ItemBatch) -> None:
        """A disk that fills up under LMDB reads as an input/output error there, so it must not come to that."""
        disk = os.statvfs(self.path)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes < self._min_free_bytes + 2 * batch.rows.nbytes:
            raise SideInfoFull(f"{self.path}: {free_bytes >> 20} MiB free on the disk, too few for a put")

    def _settle(self) -> None:
        with self._environment.begin() as transaction:
            stored = transaction.get(_STATE_KEY, db=self._meta)
            count = transaction.stat(self._items)["entries"]
        if stored is not None:
            # Later formats may append to the state, but begin with the same two numbers.
            format_, schema = np.frombuffer(stored, "<u2", 2).tolist()
            if format_ > FORMAT:
                raise SideInfoUnavailable(
                    f"{self.path}: format {format_} is newer than {FORMAT}, the newest known here"
                )
            if schema > self._schema.version:
                problem = f"written with schema version {schema}, newer than {self._schema.version}"
                raise SideInfoUnavailable(f"{self.path}: {problem}")
            self.version = int(np.frombuffer(stored, _STATE)[0]["version"])
        if count > self._max_items:
            raise SideInfoUnavailable(f"{self.path}: holds {count} items, max_items is {self._max_items}")

    def _unpack(self, item_I: Words, values: Sequence[bytes]) -> npt.NDArray[np.void]:
        columns = self._schema.side_info_columns
        length_I = np.fromiter(map(len, values), np.int64, len(values))
        stride = _HEADER.itemsize + self._row.itemsize
        data = np.frombuffer(b"".join([value.ljust(stride, b"\0")[:stride] for value in values]), np.uint8)
        data_IB = data.reshape(-1, stride)
        schema_I = data_IB[:, :2].copy().view("<u2")[:, 0].astype(np.int64)
        expected_I = np.full(len(values), _HEADER.itemsize)
        for column in columns:
            expected_I += np.where(schema_I >= column.since, column.width_bytes, 0)
        bad = (length_I != expected_I) | (schema_I < 1) | (schema_I > self._schema.version)
        if bad.any():
            raise SideInfoUnavailable(f"{self.path}: item {item_I[bad.argmax()]} is damaged")
        rows = np.empty(len(values), self._row)
        _bytes_of(rows)[:] = data_IB[:, _HEADER.itemsize :]
        for column in columns:
            if column.since > 1:
                rows[column.name][schema_I < column.since] = column.default
        return rows


def _complete(data: Path, environment: lmdb.Environment) -> None:
    """Makes a file that was cut short as long as its pages: reading a missing page is a typed error then, and no SIGBUS.

    A whole file may be short, too, by pages that LMDB took and never used; it does not read those.
    """
    length = environment.stat()["psize"] * (environment.info()["last_pgno"] + 1)
    if data.stat().st_size < length:
        os.truncate(data, length)


def _pack(schema_version: int, version: int, rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """A value of `items` for each row, as bytes that `tolist` makes into `bytes`."""
    header = np.array((schema_version, version), _HEADER)
    packed = np.empty((len(rows), _HEADER.itemsize + rows.dtype.itemsize), np.uint8)
    packed[:, : _HEADER.itemsize] = np.frombuffer(header.tobytes(), np.uint8)
    packed[:, _HEADER.itemsize :] = _bytes_of(rows)
    return packed.view(f"V{packed.shape[1]}")[:, 0]


def _bytes_of(rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    """The same memory, [rows, bytes of a row]; a schema may have no side-info columns."""
    return np.ndarray((len(rows), rows.dtype.itemsize), np.uint8, rows)
