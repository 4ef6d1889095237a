"""A process that puts items until it is killed: prints each version once its put is durable and published.

    python putting_child.py FOLDER [FILE_LIMIT_BYTES]

Put v holds items v * 100 .. v * 100 + 98, and item 0, each with category v. With a limit, the write beyond it fails.
"""

import resource
import sys
from pathlib import Path

import numpy as np

from seqvault_server.sideinfo.errors import SideInfoUnavailable
from tests.seqvault_server.sideinfo.harness import SCHEMA, opened, put

ITEMS = 100


def items_of(version: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    items = np.arange(version * ITEMS, (version + 1) * ITEMS, dtype=np.uint64)
    items[-1] = 0
    return items


def main(folder: Path, limit_bytes: int | None) -> None:
    with opened(folder, SCHEMA, max_items=10_000_000) as side_info:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        try:
            while True:
                version = side_info.version + 1
                put(side_info, items_of(version), {"category": np.full(ITEMS, version, np.uint32)})
                print(version, flush=True)
        except SideInfoUnavailable as error:
            print(error, flush=True)
        try:
            put(side_info, items_of(1), {"category": np.zeros(ITEMS, np.uint32)})
        except SideInfoUnavailable as error:
            print(error, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
