"""Makes the golden files of a new format, once: `python -m tests.golden.make` from the root of the repository.

They are never made again: a file that exists is an error.
"""

import json
from pathlib import Path

import numpy as np

from seqcore.format import FORMAT
from seqcore.schema import Schema
from seqvault_server.storage.encode import Runs, encode, seal, words_of
from tests.golden.events import COLUMNS, EXTENT, EXTENT_PARTS, FRAME_PER_COLUMN, ONE_FRAME, Part
from tests.seqcore.samples import at_version

PAGE_BYTES = 4096


def main() -> None:
    folder = Path(__file__).parent / f"format_{FORMAT}"
    folder.mkdir(exist_ok=True)
    schema = Schema.from_mapping({"version": 2, "event": {"columns": COLUMNS}})
    with (folder / "schema.json").open("x") as file:
        json.dump(schema.to_mapping(), file, indent=2)
        file.write("\n")
    for name, parts in (
        (ONE_FRAME.name, [ONE_FRAME]),
        (FRAME_PER_COLUMN.name, [FRAME_PER_COLUMN]),
        (EXTENT, EXTENT_PARTS),
    ):
        extent = bytearray()
        for part in parts:
            gap = -len(extent) % PAGE_BYTES
            block = blocks_of(part, schema, at=len(extent) + gap, gap=gap)
            extent += bytes(gap) + block
        with (folder / name).open("xb") as binary:
            binary.write(extent)


def blocks_of(part: Part, schema: Schema, *, at: int, gap: int) -> bytes:
    """The part's blocks, `at` bytes into their extent and `gap` bytes behind the block before."""
    older = at_version(schema, part.schema_version)
    rows = np.zeros(part.count, older.row_dtype)
    for name, values in part.columns().items():
        if name in rows.dtype.names:  # type: ignore[operator]
            rows[name] = values
    runs = Runs(
        np.array([part.user], np.uint64),
        np.array([0, part.count]),
        np.array([part.first_lsn], np.uint64),
        np.array([part.last_lsn], np.uint64),
    )
    blocks = encode(words_of(rows, older), runs, schema=older)
    gap_K = np.zeros(len(blocks.run_K), np.int64)
    gap_K[0] = gap
    seal(blocks, segment=part.segment, offset_K=blocks.offset_K1[:-1] + part.offset + at, gap_K=gap_K)
    return bytes(blocks.data)


if __name__ == "__main__":
    main()
