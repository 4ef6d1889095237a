"""Side-info of a shard: the steps of a put, and reads.

    validate   any thread       what is wrong is refused
    write      writer's thread  one LMDB transaction, synced         -> version; the put is durable
    publish    owner's thread   the in-memory table follows          -> the put is visible; only now ack it
    gather     owner's thread   from memory alone

The table changes only after LMDB committed, so a crash between the two loses nothing: `open` fills the table from LMDB.
Puts are written by one thread and published in the order of their versions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from seqcore.schema import Column, Schema
from seqvault_server.sideinfo.batch import ItemBatch, make_batch
from seqvault_server.sideinfo.item_file import MAP_SIZE_BYTES, MIN_FREE_BYTES, ItemFile
from seqvault_server.sideinfo.item_table import ItemTable

DEFAULT_MAX_ITEMS: Final = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SideInfoStatistics:
    """As of now; `version` is the newest published put."""

    items: int
    max_items: int
    version: int
    memory_bytes: int
    disk_bytes: int


class SideInfo:
    """See the module's text for which thread may call what."""

    def __init__(self, file: ItemFile, table: ItemTable, schema: Schema, max_items: int) -> None:
        self._file = file
        self._table = table
        self._schema = schema
        self._max_items = max_items
        self.version = file.version
        """The newest put that reads see, 0 before the first."""

    @classmethod
    def open(
        cls,
        path: Path,
        schema: Schema,
        *,
        max_items: int = DEFAULT_MAX_ITEMS,
        map_size_bytes: int = MAP_SIZE_BYTES,
        min_free_bytes: int = MIN_FREE_BYTES,
    ) -> Self:
        """Opens or makes the folder `path` and reads all items into memory: blocking, some seconds per million.

        Raises: SideInfoUnavailable: a newer format or schema than this program's, more than `max_items` there, damaged.
        """
        file = ItemFile.open(
            path, schema, max_items=max_items, map_size_bytes=map_size_bytes, min_free_bytes=min_free_bytes
        )
        try:
            table = ItemTable(schema, max_items=max_items)
            for batch in file.scan():
                for _ in table.put(batch):
                    pass
        except BaseException:
            file.close()
            raise
        return cls(file, table, schema, max_items)

    def close(self) -> None:
        """Call it when no write is under way. What was written is durable without it."""
        self._file.close()

    def statistics(self) -> SideInfoStatistics:
        return SideInfoStatistics(
            items=len(self._table),
            max_items=self._max_items,
            version=self.version,
            memory_bytes=self._table.memory_bytes,
            disk_bytes=self._file.size_bytes,
        )

    def validate(self, item_I: npt.NDArray[np.uint64], columns: Mapping[str, npt.NDArray[np.generic]]) -> ItemBatch:
        """A put, checked and packed: a copy.

        Raises: InvalidItems with the field and a reason.
        """
        return make_batch(self._schema, item_I=item_I, columns=columns)

    def write(self, batch: ItemBatch) -> int:
        """Blocking; the put is durable when it returns its version.

        Raises: SideInfoFull: `max_items`, the map or the disk, and nothing was written; SideInfoUnavailable, from then on
        for every write: the put may be there when side-info is opened again.
        """
        return self._file.write(batch)

    def publish(self, batch: ItemBatch, version: int) -> Iterator[None]:
        """Makes a written put visible, in steps of under a millisecond: run it to its end, yielding where it yields.

        Between two steps reads see some of the put's items, whole; `version` advances with the last one.
        """
        assert version == self.version + 1
        yield from self._table.put(batch)
        self.version = version

    def gather(
        self, item_I: npt.NDArray[np.uint64], columns: Sequence[Column]
    ) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.generic]]]:
        """1 or 0 for each item, known or not, and the columns, [items] or [items, length]: copies.

        An unknown item reads as each column's default, or zero where it has none.
        """
        return self._table.gather(item_I, columns)
